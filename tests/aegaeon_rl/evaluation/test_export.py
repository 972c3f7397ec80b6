"""Exports: the files of one policy's first window, as the comparison ran it."""

from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from aegaeon_rl.evaluation import export
from aegaeon_rl.evaluation.compare import Plan, run_window
from aegaeon_rl.evaluation.export import EXPORTS, exported, record_window, write_exports
from aegaeon_rl.policies.registry import make_policy
from runtime.core import NS
from runtime.errors import UserError
from runtime.protocol import Policy


@pytest.fixture(scope="module")
def plan(plan_of: Any) -> Plan:
    made: Plan = plan_of(export_s=10.0, exports=True)
    return made


def test_recording_reaches_from_start_to_end(plan: Plan) -> None:
    recording = record_window(plan, make_policy("index"), 5.0, 12.0)
    shown = recording.timeline
    assert (recording.policy, recording.models) == ("index", plan.trace.models)
    assert (shown.start_ns, shown.end_ns) == (5 * NS, 12 * NS)
    assert (shown.spans["end_ns"] > 5 * NS).all()
    assert (shown.spans["start_ns"] < 12 * NS).all()
    assert recording.journal["time_ns"].max() <= 12 * NS


def test_requests_are_those_of_the_comparison(plan: Plan, tmp_path: Path) -> None:
    policy = make_policy("aegaeon")
    write_exports(tmp_path, plan, policy)
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(EXPORTS)
    table = pq.read_table(tmp_path / "requests.parquet")
    counted = table.filter(table["is_counted"])
    sample = run_window(plan, plan.pool, policy, plan.windows[0], 1.0).results
    for column in ("prompt_tokens", "due_tokens", "emitted_tokens", "on_time_tokens", "qos"):
        assert counted[column].to_pylist() == sample[column].tolist()
    models = [plan.trace.models[m] for m in sample["model"]]
    assert counted["model"].to_pylist() == models
    for column in ("arrival", "last_token", "stall"):
        assert counted[f"{column}_s"].to_numpy() * NS == pytest.approx(sample[f"{column}_ns"])
    assert table["request"].to_pylist() == list(range(table.num_rows))
    assert set(table["phase"].to_pylist()) <= {"done", "running", "ready", "waiting"}


def test_request_without_a_token_has_none(plan_of: Any, trace_of: Any) -> None:
    plan = plan_of(trace_of([(0.0, 0, 10, 5), (0.0, 1, 10**7, 5)]))
    rows = export.request_table(plan, make_policy("fcfs")).to_pylist()
    assert [row["phase"] for row in rows] == ["done", "failed"]
    assert rows[1]["first_token_s"] is rows[1]["last_token_s"] is None
    assert rows[0]["first_token_s"] < rows[0]["last_token_s"]


def test_export_ends_with_the_last_deadline(plan_of: Any, trace_of: Any, tmp_path: Path) -> None:
    plan = plan_of(trace_of([(0.0, 0, 10, 5), (3.0, 0, 10, 5)]), export_s=1e9)
    write_exports(tmp_path, plan, make_policy("index"))
    turns = pq.read_table(tmp_path / "decisions.parquet")
    last_s = pq.read_table(tmp_path / "requests.parquet")["last_token_s"].to_pylist()[-1]
    assert last_s > 3.0
    assert turns["end_s"].to_pylist()[-1] >= last_s


def test_exported_policy_is_the_one_named_or_the_best(plan_of: Any, policies: list[Policy]) -> None:
    assert exported(plan_of(), policies, "index").name == "index"
    assert exported(plan_of(export_policy="aegaeon"), policies, "index").name == "aegaeon"
    with pytest.raises(UserError, match=r"evaluate\.export_policy=fcfs: not among policies"):
        exported(plan_of(export_policy="fcfs"), policies, "index")


def test_files_that_fail_leave_nothing(
    plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(export, "write_trace", broken)
    with pytest.raises(OSError, match="disk full"):
        write_exports(tmp_path, plan, make_policy("index"))
    assert not list(tmp_path.glob("*.json.gz"))
    assert not list(tmp_path.glob(".*"))
