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
# a missing session or client is None, a missing priority 0, a missing list of blocks empty
OPTIONAL = pa.schema(
    [
        ("session", pa.string()),
        ("client", pa.string()),
        ("priority", pa.int8()),
        ("prefix_blocks", pa.large_list(pa.int64())),  # ids, first block of the prompt first
    ]
)
COLUMNS = (*REQUIRED.names, *OPTIONAL.names)
