"""Gantt bars read off a journal: one turn at a time on a GPU, cut to the window."""

from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from aegaeon_rl.evaluation.gantt import Bar, bars
from aegaeon_rl.policies.registry import make_policy
from runtime.core import NS, EventKind, PoolSpec, SloSpec
from runtime.emulator.run import run
from runtime.pool.state import EVENT
from traces import Trace

TURN, SWITCHED, ENDED, FAILED = (
    EventKind.TURN,
    EventKind.SWITCHED,
    EventKind.TURN_ENDED,
    EventKind.INSTANCE_FAILED,
)
EVENTS = (  # kind, instance, seconds, model
    (TURN, 0, 1.0, 7),
    (TURN, 1, 1.5, 8),
    (EventKind.STEPS, 0, 1.8, -1),
    (SWITCHED, 0, 2.0, -1),
    (ENDED, 0, 4.0, -1),
    (SWITCHED, 1, 5.0, -1),
    (TURN, 0, 4.5, 9),
    (FAILED, 0, 6.0, -1),
    (ENDED, 2, 6.5, -1),  # of a turn before the journal began
    (TURN, 2, 7.0, 7),
)
WHOLE = [
    Bar(0, 7, 1.0, 2.0, 4.0),
    Bar(0, 9, 4.5, 6.0, 6.0),  # it failed before its weights were in place
    Bar(1, 8, 1.5, 5.0, 10.0),  # open at the end
    Bar(2, 7, 7.0, 10.0, 10.0),
]


@pytest.fixture(scope="module")
def journal() -> Any:
    table = np.zeros(len(EVENTS), EVENT)
    for row, (kind, instance, at_s, model) in zip(table, EVENTS, strict=True):
        row["kind"], row["instance"], row["model"] = kind, instance, model
        row["time_ns"] = round(at_s * NS)
    return table


@pytest.mark.parametrize(
    ("start_s", "end_s", "expected"),
    [
        (0.0, 10.0, WHOLE),
        (3.0, 4.75, [Bar(0, 7, 3, 3, 4), Bar(0, 9, 4.5, 4.75, 4.75), Bar(1, 8, 3, 4.75, 4.75)]),
        (0.0, 1.0, []),
        (4.0, 4.5, [Bar(1, 8, 4.0, 4.5, 4.5)]),  # ends that only touch the window are not in it
    ],
)
def test_bars_of_a_hand_made_journal(
    journal: Any, start_s: float, end_s: float, expected: list[Bar]
) -> None:
    assert sorted(bars(journal, start_s, end_s)) == sorted(expected)


@pytest.mark.parametrize("name", ["aegaeon", "serverlessllm", "index"])
def test_turns_of_a_gpu_never_overlap(market: Trace, pool: PoolSpec, name: str) -> None:
    journal = run(market, pool, make_policy(name), SloSpec(), horizon_s=60.0, journal=True).journal
    shown = bars(journal, 10.0, 50.0)
    assert {bar.instance for bar in shown} == {0, 1}
    assert len({bar.model for bar in shown}) > 3
    for bar in shown:
        assert 10.0 <= bar.start_s <= bar.work_s <= bar.end_s <= 50.0
    for g in (0, 1):
        own = sorted((bar for bar in shown if bar.instance == g), key=lambda bar: bar.start_s)
        assert all(before.end_s <= after.start_s for before, after in pairwise(own))
    whole = bars(journal, 0.0, 60.0)
    assert len(whole) == (journal["kind"] == EventKind.TURN).sum()
