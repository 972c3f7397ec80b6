"""Workloads of the SOSP'25 artifact of Aegaeon (CSV): hours:minutes:seconds since the start."""

from traces.formats.format import Format
from traces.mapping import ColumnMap, TimeUnit
from traces.trace import TraceKind

AEGAEON = Format(
    name="aegaeon",
    columns=ColumnMap(
        arrival_s="Request Time",
        model="Model Name",
        prompt_tokens="Input Length",
        output_tokens="Output Length",
        unit=TimeUnit.CLOCK,
    ),
    kind=TraceKind.SYNTHETIC,
)
