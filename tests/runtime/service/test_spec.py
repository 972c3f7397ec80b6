"""What a service is told to do is checked where it is told."""

from typing import Any

import pytest

from runtime.errors import UserError
from runtime.service.spec import Limits, LogSpec


@pytest.mark.parametrize(
    ("made", "keys", "line"),
    [
        (Limits, {"queue": 0}, "server.limits.queue=0: expected at least 1"),
        (Limits, {"first_token_s": float("inf")}, "server.limits.first_token_s=inf: expected"),
        (Limits, {"request_s": float("nan")}, "server.limits.request_s=nan: expected"),
        (LogSpec, {"rotate_rows": 0}, "logs.rotate_rows=0: expected at least 1"),
    ],
)
def test_limit_that_cannot_be_kept_is_refused(made: Any, keys: dict[str, Any], line: str) -> None:
    with pytest.raises(UserError, match=line):
        made(**keys)
