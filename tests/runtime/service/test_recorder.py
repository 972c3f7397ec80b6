"""What the recorder writes of requests."""

from types import SimpleNamespace
from typing import cast

from runtime.pool.state import State
from runtime.service.logs import Logs, RequestRow
from runtime.service.messages import End
from runtime.service.metrics import Metrics
from runtime.service.recorder import Recorder


def test_rows_name_the_policy_in_charge_when_they_were_written() -> None:
    rows, names = list[RequestRow](), ["index"]
    logs = cast(Logs, SimpleNamespace(request=rows.append))
    state = cast(State, SimpleNamespace())
    recorder = Recorder(Metrics(["a"]), state, lambda: names[-1], logs)
    recorder.on_refusal("r1", "a", End.SHED, 0)
    names.append("fcfs")
    recorder.on_refusal("r2", "a", End.REFUSED, 0)
    assert [(row.policy, row.status) for row in rows] == [("index", "shed"), ("fcfs", "failed")]
