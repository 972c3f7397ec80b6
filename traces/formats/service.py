"""The request log of the live service (Parquet): a trace, and what became of each request.

One row a request, in order of arrival; seconds since the service's start, which the metadata
`start` states in ISO 8601. docs/traces.md says what each column means.
"""

import pyarrow as pa

from traces.formats.format import Format
from traces.mapping import OWN

SCHEMA = pa.schema(
    [
        ("arrival_s", pa.float64()),
        ("model", pa.string()),
        ("prompt_tokens", pa.int32()),
        ("output_tokens", pa.int32()),  # sent; 0 where none was
        ("session", pa.string()),
        ("client", pa.string()),
        ("priority", pa.int8()),
        ("request_id", pa.string()),
        ("status", pa.string()),  # a key of IS_SERVED
        ("first_token_s", pa.float64()),  # null where no token was sent
        ("last_token_s", pa.float64()),
        ("tokens_on_time", pa.int32()),
        ("instance", pa.int32()),
        ("turns", pa.int32()),
        ("policy", pa.string()),
    ]
)
# A cancelled request counts with the tokens it got; of the others the demand is not known.
IS_SERVED = {"done": True, "cancelled": True, "failed": False, "shed": False, "running": False}

SERVICE = Format(
    name="service",
    columns=OWN,
    needs=("arrival_s", "model", "prompt_tokens", "output_tokens", "request_id", "status"),
    failed={"status": frozenset(status for status, served in IS_SERVED.items() if not served)},
    keeps_zero=True,
)
