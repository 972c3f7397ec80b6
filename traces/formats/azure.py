"""Azure LLM inference traces of 2023 and 2024 (CSV), github.com/Azure/AzurePublicDataset.

One file is one service and names no model. The 2023 files state times without an offset.
"""

from traces.formats.format import Format
from traces.mapping import ColumnMap, TimeUnit

AZURE = Format(
    name="azure",
    columns=ColumnMap(
        arrival_s="TIMESTAMP",
        prompt_tokens="ContextTokens",
        output_tokens="GeneratedTokens",
        unit=TimeUnit.ISO,
        drop_empty=True,
    ),
)
