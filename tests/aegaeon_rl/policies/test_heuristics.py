"""Each heuristic decides as its name says, on a queue made for it."""

from typing import Any

import pytest

from aegaeon_rl.policies import heuristics
from aegaeon_rl.policies.index import Index
from runtime.core import EventKind, SloSpec
from runtime.emulator.run import run

SHIPPED = (heuristics.fcfs, heuristics.least_slack, heuristics.collate, heuristics.index)


def turns(trace: Any, pool: Any, policy: Index, slo: SloSpec | None = None) -> list[int]:
    journal = run(trace, pool, policy, slo or SloSpec(), journal=True).journal
    return [int(m) for m in journal[journal["kind"] == EventKind.TURN]["model"]]


@pytest.mark.parametrize("make", SHIPPED)
def test_heuristic_is_named_as_its_factory(make: Any) -> None:
    assert make().name == make.__name__
    assert make() == make()


def test_fcfs_serves_the_oldest_request_first(trace_of: Any, flat_pool: Any) -> None:
    trace = trace_of((0.0, 3, 9, 2), (0.1, 2, 9, 2), (0.2, 0, 9, 2), (0.3, 1, 9, 2), (0.4, 1, 9, 2))
    assert turns(trace, flat_pool(1, weight_slots=1), heuristics.fcfs()) == [3, 2, 0, 1]


def test_least_slack_serves_the_nearest_deadline_and_the_late_last(
    trace_of: Any, flat_pool: Any
) -> None:
    pool = flat_pool(1, weight_slots=1)
    on_time = trace_of((0.0, 1, 9, 2), (0.3, 2, 9, 2), (0.6, 0, 9, 2))
    assert turns(on_time, pool, heuristics.least_slack()) == [1, 2, 0]
    # due 1.5 s after arrival, loads of 1 s: at 1.0 s model 2 (1.8 s) is lost, model 0 (2.5 s) not
    late = trace_of((0.0, 1, 9, 2), (0.3, 2, 9, 2), (1.0, 0, 9, 2))
    assert turns(late, pool, heuristics.least_slack(), SloSpec(ttft_s=1.5)) == [1, 0, 2]


def test_collate_stays_with_the_loaded_model_and_then_takes_the_largest_crowd(
    trace_of: Any, flat_pool: Any
) -> None:
    crowd = [(0.5, 2, 9, 2)] * 3
    trace = trace_of((0.0, 0, 9, 300), (0.4, 1, 9, 2), *crowd)
    order = turns(trace, flat_pool(1, weight_slots=1), heuristics.collate())
    assert order == [0, 0, 0, 0, 2, 1]  # turns of 1 s; 300 steps take about 3.1 s


def test_index_stays_while_it_has_slack(trace_of: Any, flat_pool: Any) -> None:
    """A request on time behind a loaded model waits; a turn lasts until it would overtake."""
    trace = trace_of((0.0, 0, 9, 60), (0.2, 1, 9, 2))
    order = turns(trace, flat_pool(1), heuristics.index_untuned())
    assert order == [0] * (len(order) - 1) + [1]
    assert len(order) == 3  # 0.5 s, the rest of 60 steps, and the other
