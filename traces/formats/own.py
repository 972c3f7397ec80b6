"""The trace's own columns; and the request log of the live service, which has more."""

from traces.formats.format import Format
from traces.mapping import OWN

OWN_FORMAT = Format(name="trace", columns=OWN, keeps_zero=True)

# One row a request, in order of arrival. docs/traces.md says what each column means.
SERVICE_COLUMNS = (
    *("arrival_s", "model", "prompt_tokens", "output_tokens", "session", "client", "priority"),
    *("request_id", "status", "instance", "policy", "turns"),
    *("first_token_s", "last_token_s", "tokens_on_time"),
)
SERVED = ("done", "cancelled")  # a cancelled one counts with the tokens it got
NOT_SERVED = ("failed", "shed", "running")

SERVICE_FORMAT = Format(
    name="service",
    columns=OWN,
    needs=("arrival_s", "model", "prompt_tokens", "output_tokens", "request_id", "status"),
    failed={"status": frozenset(NOT_SERVED)},
    keeps_zero=True,
)
