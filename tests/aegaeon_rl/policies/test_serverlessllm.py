"""`serverlessllm`: batches of four, a batch until it drains, fifteen seconds for a first token."""

from typing import Any

import pytest

from aegaeon_rl.policies.serverlessllm import ServerlessLlm
from runtime.core import NS, Dispatch, EventKind, PrefetchMode, RequestPhase, SloSpec
from runtime.emulator.run import Run, run
from traces import Trace

SLO = SloSpec()


def play(trace: Trace, pool: Any) -> Run:
    return run(trace, pool, ServerlessLlm(), SLO, journal=True)


def column(result: Run, kind: EventKind, name: str) -> list[int]:
    return [int(v) for v in result.journal[result.journal["kind"] == kind][name]]


def test_batch_takes_four_then_another_worker_opens_one(trace_of: Any, flat_pool: Any) -> None:
    result = play(trace_of(*[(0.0, 0, 10, 5)] * 9), flat_pool(3))
    assert column(result, EventKind.ROUTE, "instance") == [0] * 4 + [1] * 4 + [2]
    assert column(result, EventKind.ROUTE, "tag") == [1] * 4 + [2] * 4 + [3]


def test_batch_has_room_again_when_a_member_ends(trace_of: Any, flat_pool: Any) -> None:
    rows = [(0.0, 0, 10, 2), *[(0.0, 0, 10, 900)] * 3, (5.0, 0, 10, 5), (5.0, 0, 10, 5)]
    result = play(trace_of(*rows), flat_pool(2))
    assert column(result, EventKind.ROUTE, "instance") == [0] * 5 + [1]


def test_new_batch_goes_to_the_worker_that_is_idle_for_longest(
    trace_of: Any, flat_pool: Any
) -> None:
    rows = [(float(3 * i), i, 10, 2) for i in range(5)]  # each is over before the next comes
    result = play(trace_of(*rows), flat_pool(3))
    assert column(result, EventKind.ROUTE, "instance") == [0, 1, 2, 0, 1]


def test_worker_that_loads_is_still_the_one_idle_for_longest(trace_of: Any, flat_pool: Any) -> None:
    """Worker 1 decodes all along; at 5 s worker 0 is idle, at 5.2 s and 5.4 s it loads."""
    rows = [(0.0, 0, 10, 2), (0.1, 1, 10, 900), (5.0, 2, 10, 2), (5.2, 3, 10, 2), (5.4, 4, 10, 2)]
    result = play(trace_of(*rows), flat_pool(2))
    assert column(result, EventKind.ROUTE, "instance") == [0, 1, 0, 0, 0]


def test_new_batches_take_turns_over_workers_at_work(trace_of: Any, flat_pool: Any) -> None:
    rows = [(0.0, 0, 10, 900), (0.1, 1, 10, 900), (4.0, 2, 10, 5), (4.1, 3, 10, 5)]
    result = play(trace_of(*rows), flat_pool(2))
    assert column(result, EventKind.ROUTE, "instance") == [0, 1, 0, 1]


def test_idle_worker_draws_the_model_it_holds(trace_of: Any, flat_pool: Any) -> None:
    rows = [(0.0, 0, 10, 5), (3.0, 1, 10, 5), (6.0, 0, 10, 5)]
    result = play(trace_of(*rows), flat_pool(3))
    assert column(result, EventKind.ROUTE, "instance") == [0, 1, 0]
    assert int(result.instances["switches"].sum()) == 2


def test_prompts_of_a_batch_are_filled_in_one_call(trace_of: Any, flat_pool: Any) -> None:
    result = play(trace_of(*[(0.0, 0, 100, 5)] * 3), flat_pool(1))
    assert column(result, EventKind.PREFILLED, "n") == [3]


def test_batches_of_a_worker_drain_in_the_order_they_were_opened(
    trace_of: Any, flat_pool: Any
) -> None:
    """The third finds its model running, but no longer last in the queue."""
    rows = [(0.0, 0, 10, 300), (0.1, 1, 10, 5), (0.2, 0, 10, 300)]
    result = play(trace_of(*rows), flat_pool(1))
    assert column(result, EventKind.TURN, "model") == [0, 1, 0]
    ends = result.results["last_token_ns"]
    assert ends[0] < ends[1] < ends[2]


@pytest.mark.parametrize(("output", "phase"), [(1300, "DONE"), (1500, "FAILED")])
def test_request_without_a_token_after_fifteen_seconds_fails(
    trace_of: Any, flat_pool: Any, output: int, phase: str
) -> None:
    """A step takes about 10.8 ms, a load 1 s: 1300 tokens end before 15.5 s, 1500 after."""
    trace = trace_of((0.0, 0, 10, output), (0.5, 1, 10, 5))
    result = play(trace, flat_pool(1))
    assert RequestPhase(result.results["phase"][1]).name == phase
    expired = column(result, EventKind.EXPIRE, "time_ns")
    assert expired == ([15 * NS + NS // 2] if phase == "FAILED" else [])


def test_configure_shares_nothing_and_prefetches_nothing(flat_pool: Any) -> None:
    pool = ServerlessLlm().configure(flat_pool(2))
    assert pool.roles == ()
    assert pool.dispatch is Dispatch.PUSH
    assert pool.prefetch is PrefetchMode.NONE
    assert pool.ttft_timeout_s == 15.0
    assert pool.weight_slots == 1
