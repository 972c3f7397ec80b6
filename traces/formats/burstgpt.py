"""BurstGPT (CSV), github.com/HPMLL/BurstGPT: seconds since midnight of the first day.

A response of 0 tokens is a failed request. The third file adds Session ID, empty for API calls.
"""

from traces.formats.format import Format
from traces.mapping import ColumnMap, TimeUnit

BURSTGPT = Format(
    name="burstgpt",
    columns=ColumnMap(
        arrival_s="Timestamp",
        model="Model",
        prompt_tokens="Request tokens",
        output_tokens="Response tokens",
        session="Session ID",
        unit=TimeUnit.S,
        drop_empty=True,
    ),
)
