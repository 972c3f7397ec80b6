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
# a missing session or client is None, a missing priority 0
OPTIONAL = pa.schema([("session", pa.string()), ("client", pa.string()), ("priority", pa.int8())])
NUMBERS = ("arrival_s", "prompt_tokens", "output_tokens", "priority")
TEXTS = ("model", "session", "client")
