"""Logs are whole files that the trace tools and a replay read, whatever the disk does."""

import errno
import json
import logging
import os
import resource
from collections.abc import Callable
from pathlib import Path
from threading import Event
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from aegaeon_rl.policies.registry import make_policy
from runtime.core import NONE, EventKind, PoolSpec, SloSpec
from runtime.emulator.profile import load_profile
from runtime.emulator.run import run
from runtime.errors import UserError
from runtime.plain import from_plain
from runtime.pool.initial import new_state
from runtime.pool.state import EVENT
from runtime.service.logs import MOST_PENDING, Logs, Opening, RequestRow, read_journal
from runtime.service.spec import LogSpec
from runtime.timeline.replay import timeline
from traces import Trace, TraceKind
from traces.source import TraceSource, open_trace

SPEC = PoolSpec(name="one", profile="h100", checkpoints=("Qwen2.5-7B",), instances_per_node=1)
NAMES = ("a", "b")


def opening() -> Opening:
    from runtime.catalog import assign_checkpoints

    models = assign_checkpoints(NAMES, SPEC.checkpoints)
    costs = load_profile(SPEC.profile).table(models, SPEC.tp)
    return Opening(SPEC, models, (SloSpec(),) * 2, costs, policy="index")


def logs(folder: Path, **fields: Any) -> Logs:
    return Logs(LogSpec(folder=str(folder), **fields), opening())


def row(number: int, status: str = "done", tokens: int = 5) -> RequestRow:
    at = float(number)
    first, last = (at + 1, at + 2) if tokens else (None, None)
    return RequestRow(
        *(at, NAMES[number % 2], 7, tokens, "s", "ann", 0, f"r{number}", status, first, last),
        *(tokens, 0, 1, "index"),
    )


def event(kind: int, **fields: int) -> Any:
    made = np.zeros(1, EVENT)
    made["kind"], made["id"], made["model"], made["instance"] = kind, NONE, NONE, NONE
    for name, value in fields.items():
        made[name] = value
    return made[0]


def test_request_log_is_a_trace_of_what_was_served(tmp_path: Path, cli: Callable[..., Any]) -> None:
    written = logs(tmp_path / "logs")
    for number in (3, 1, 2, 0):
        written.request(row(number))
    written.request(row(4, "cancelled", 2))
    written.request(row(5, "shed", 0))
    written.close()
    path = written.folder / "requests-000001.parquet"
    trace = open_trace(TraceSource(path=str(path)))
    assert trace.arrival_s.tolist() == [0, 1, 2, 3, 4]
    assert trace.output_tokens.tolist() == [5, 5, 5, 5, 2]
    ended = cli("trace", "action=describe", f"trace.path={path}")
    assert ended.code == 0, ended.err
    assert pq.read_schema(path).metadata[b"start"].decode() == written.start


def test_files_are_rotated_by_rows_and_by_time(tmp_path: Path) -> None:
    written = logs(tmp_path, rotate_rows=3, rotate_s=0.0)
    for number in range(7):
        written.request(row(number))
    written.tick()
    written.close()
    sizes = [len(pq.read_table(p)) for p in sorted(written.folder.glob("requests-*"))]
    assert sizes == [3, 3, 1]


def test_journal_and_opening_make_the_run_again(tmp_path: Path) -> None:
    trace = Trace(
        name="rows",
        kind=TraceKind.SYNTHETIC,
        models=NAMES,
        model=np.array([0, 1, 0], np.int32),
        arrival_s=np.array([0.0, 0.01, 0.02]),
        prompt_tokens=np.array([50, 60, 9], np.int32),
        output_tokens=np.array([20, 10, 3], np.int32),
    )
    made = run(trace, SPEC, make_policy("index"), SloSpec(), journal=True)
    written = logs(tmp_path, rotate_rows=5)
    for each in made.journal:
        written.event(each, "policy")
    written.close()
    facts = json.loads((written.folder / "run.json").read_text())
    journal = read_journal(written.folder)
    assert journal.tobytes() == made.journal.tobytes()
    assert from_plain(PoolSpec, facts["pool"]) == SPEC
    given = opening()
    costs = np.zeros_like(given.costs)
    for t, cells in enumerate(facts["costs"]):
        for m, cell in enumerate(cells):
            for name, value in cell.items():
                costs[name][t, m] = value
    assert costs.tobytes() == given.costs.tobytes()
    lives = timeline(new_state(SPEC, given.models, given.slos, costs), journal).lives
    assert lives["emitted_tokens"].tolist() == [20, 10, 3]


def test_decisions_say_who_answered(tmp_path: Path) -> None:
    written = logs(tmp_path)
    written.event(event(EventKind.ARRIVAL, id=0, model=0))
    written.event(event(EventKind.TURN, instance=0, model=1, quota_ns=5), "policy")
    written.event(event(EventKind.ROUTE, instance=0, id=7, is_fallback=1), "late", 0)
    written.close()
    table = pq.read_table(written.folder / "decisions-000001.parquet").to_pylist()
    assert [(r["decision"], r["kind"], r["model"], r["source"]) for r in table] == [
        (1, "turn", "b", "policy"),
        (2, "route", "a", "late"),
    ]
    assert [r["is_fallback"] for r in table] == [False, True]


@pytest.mark.parametrize("fails", ["write", "rename"])
def test_disk_that_is_full_costs_rows_and_one_warning(
    tmp_path: Path, fails: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    written = logs(tmp_path, rotate_rows=2)
    full = OSError(errno.ENOSPC, "No space left on device")
    with monkeypatch.context() as patch, caplog.at_level(logging.WARNING):

        def fail(*arguments: Any, **keys: Any) -> None:
            if fails == "write":
                Path(arguments[1]).write_bytes(b"half")
            raise full

        if fails == "write":
            patch.setattr("runtime.service.logs.pq.write_table", fail)
        else:
            patch.setattr("runtime.service.logs.os.replace", fail)
        for number in range(6):
            written.request(row(number))
        written.writer.submit(int).result()
    assert (written.lost_rows, written.files.errors) == (6, 3)
    assert [p.name for p in written.folder.iterdir()] == ["run.json"]
    assert len([r for r in caplog.records if "rows are lost" in r.getMessage()]) == 1
    written.request(row(9))
    written.close()
    assert len(pq.read_table(written.folder / "requests-000001.parquet")) == 1


def test_disk_that_stands_still_costs_rows_and_not_memory(tmp_path: Path) -> None:
    written, goes_on = logs(tmp_path, rotate_rows=1), Event()
    written.writer.submit(goes_on.wait)
    for number in range(100):
        written.request(row(number))
    assert len(written.pending) == MOST_PENDING
    goes_on.set()
    written.close()
    assert written.lost_rows == 100 - MOST_PENDING
    assert len(list(written.folder.glob("requests-*.parquet"))) == MOST_PENDING


def test_limit_on_file_size_leaves_nothing_in_halves(tmp_path: Path) -> None:
    written = logs(tmp_path)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, before[1]))
    try:
        written.request(row(0))
        written.close()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert written.lost_rows == 1
    assert [p.name for p in written.folder.iterdir()] == ["run.json"]


def test_folder_that_cannot_be_made_is_refused_in_a_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"logs.folder=.*file"):
        logs(tmp_path / "file")
    assert os.listdir(tmp_path) == ["file"]


def test_two_starts_in_a_second_have_folders_of_their_own(tmp_path: Path) -> None:
    first, second = logs(tmp_path), logs(tmp_path)
    assert first.folder != second.folder
    for written in (first, second):
        written.close()
