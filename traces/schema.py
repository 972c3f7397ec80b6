"""The Arrow schema of a trace file, and its metadata keys."""

import pyarrow as pa

REQUIRED = pa.schema(
    [
        ("arrival_s", pa.float64()),  # seconds since the start of the trace, non-decreasing
        ("model", pa.string()),
        ("prompt_tokens", pa.int32()),
        ("output_tokens", pa.int32()),
    ]
)
OPTIONAL = pa.schema([("session", pa.string()), ("client", pa.string()), ("priority", pa.int8())])
METADATA_KEYS = ("name", "kind", "licence", "lineage")  # lineage: a JSON list of steps
