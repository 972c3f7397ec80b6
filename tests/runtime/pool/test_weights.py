"""Weight slots, loads and prefetches of an instance, and the host cache behind them."""

from typing import Any

import numpy as np
import pytest

from runtime.core import (
    NONE,
    NS,
    Command,
    DecisionKind,
    EventKind,
    Masked,
    PrefetchMode,
    RequestPhase,
    SlotState,
    Stage,
)
from runtime.errors import UserError
from runtime.pool.candidates import prefetch_mask
from runtime.pool.features import F, row_features
from runtime.pool.transitions import Outcome


def models_in(pool: Any, g: int = 0) -> list[int]:
    return pool.state.slots["model"][g].tolist()


def load_s(pool: Any, g: int = 0) -> float:
    return float(pool.inst(g)["load_left_ns"]) / NS


def finish(pool: Any, g: int = 0) -> None:
    while pool.stage(g) == Stage.PREFILL:
        pool.prefill(g)
    if pool.stage(g) == Stage.DECODE:
        for r in pool.owned(g, 1):
            pool.apply(EventKind.FINISHED, request=r)
    pool.apply(EventKind.TURN_ENDED, instance=g)


def test_a_turn_loads_cold_weights_over_the_host_link(hand_pool: Any) -> None:
    pool = hand_pool()
    pool.arrive(0)
    pool.turn(0, 0)
    assert (pool.stage(), load_s(pool)) == (Stage.COMMANDED, 1.0)  # 100 bytes at 100 B/s
    assert pool.drain() == [(Command.LOAD, 0), (Command.START, 0)]
    pool.apply(EventKind.WEIGHTS_READY, instance=0)
    assert pool.drain() == [(Command.START, 0)]
    pool.apply(EventKind.SWITCHED, instance=0)
    assert (pool.stage(), pool.inst()["switches"]) == (Stage.PREFILL, 1)


def test_a_miss_in_the_host_cache_is_bound_by_the_disk_once(hand_pool: Any) -> None:
    pool = hand_pool(weights=(100, 100, 100), host_weight_bytes=200, weight_slots=1)
    assert pool.state.hosted["is_cached"].tolist() == [[1, 1, 0]]
    pool.arrive(2)
    pool.turn(0, 2)
    assert load_s(pool) == 2.0  # 50 B/s
    pool.apply(EventKind.WEIGHTS_READY, instance=0)
    assert pool.state.hosted["is_cached"].tolist() == [[0, 1, 1]]  # the least recently used left


def test_weights_larger_than_the_host_cache_evict_nothing(hand_pool: Any) -> None:
    pool = hand_pool(weights=(100, 300), host_weight_bytes=200)
    pool.arrive(1)
    pool.start(0, 1)
    assert pool.state.hosted["is_cached"].tolist() == [[1, 0]]


def test_a_resident_model_switches_without_a_load(hand_pool: Any) -> None:
    pool = hand_pool()
    for m in (0, 1):
        pool.arrive(m)
        pool.start(0, m)
        finish(pool)
    pool.drain()
    pool.arrive(0)
    pool.turn(0, 0)
    assert pool.drain() == [(Command.START, 0)]
    assert (pool.inst()["loading_slot"], models_in(pool)) == (NONE, [0, 1])


def test_the_least_recently_loaded_idle_slot_is_overwritten(hand_pool: Any) -> None:
    pool = hand_pool(weights=(10,) * 4, weight_slots=3)
    for m in (0, 1, 2, 3):
        pool.arrive(m, at_s=m)
        pool.start(0, m)
        finish(pool)
    assert models_in(pool) == [3, 1, 2]


def test_a_prefetch_fills_another_slot_and_the_switch_uses_it(hand_pool: Any) -> None:
    pool = hand_pool()
    pool.arrive(0)
    pool.arrive(1)
    pool.start(0, 0)
    assert pool.apply(EventKind.PREFETCH, instance=0, model=1) == Outcome.OK
    assert models_in(pool) == [0, 1]
    assert pool.state.models["prefetched_on"].tolist() == [0, 1]
    pool.apply(EventKind.WEIGHTS_READY, instance=0)
    finish(pool)
    pool.drain()
    pool.turn(0, 1)
    assert pool.drain() == [(Command.START, 0)]
    assert pool.inst()["prefetched_switches"] == 1
    assert pool.state.models["prefetched_on"].tolist() == [0, 0]


def test_a_turn_of_another_model_drops_a_prefetch_under_way(hand_pool: Any) -> None:
    pool = hand_pool(weights=(100, 100, 100))
    for m in (0, 1, 2):
        pool.arrive(m)
    pool.start(0, 0)
    pool.apply(EventKind.PREFETCH, instance=0, model=1)
    finish(pool)
    pool.turn(0, 2)
    assert sorted(models_in(pool)) == [0, 2]
    assert pool.state.models["prefetched_on"].tolist() == [0, 0, 0]


def test_a_turn_of_the_model_being_prefetched_waits_the_rest(hand_pool: Any) -> None:
    pool = hand_pool()
    pool.arrive(0)
    pool.arrive(1)
    pool.start(0, 0)
    pool.apply(EventKind.PREFETCH, instance=0, model=1)
    finish(pool)
    pool.drain()
    pool.turn(0, 1)
    assert pool.drain() == [(Command.START, 0)]
    assert (pool.stage(), pool.state.slots["state"].tolist()) == (
        Stage.COMMANDED,
        [[SlotState.READY, SlotState.LOADING]],
    )
    pool.apply(EventKind.WEIGHTS_READY, instance=0)
    assert pool.drain() == [(Command.START, 0)]


def test_kv_has_the_link_before_a_load(hand_pool: Any) -> None:
    pool = hand_pool(weights=(100, 100, 100))
    pool.arrive(0)
    pool.serve(0, 0)
    pool.arrive(1)
    pool.serve(0, 1)
    pool.apply(EventKind.KV_OUT_DONE, instance=0, n=1)
    pool.start(0, 0)
    assert pool.stage() == Stage.KV_IN
    pool.arrive(2)
    pool.apply(EventKind.PREFETCH, instance=0, model=2)
    assert pool.inst()["load_since_ns"] == NONE
    pool.apply(EventKind.KV_IN_DONE, instance=0, n=1, at_s=5.0)
    assert (pool.inst()["load_since_ns"], load_s(pool)) == (5 * NS, 1.0)


def test_a_load_that_yields_the_link_keeps_its_progress(hand_pool: Any) -> None:
    pool = hand_pool(weights=(100, 100, 100), instances_per_node=2)
    joiner = pool.arrive(0)
    pool.serve(1, 0)
    pool.arrive(1)
    pool.serve(1, 1)  # the joiner's KV leaves instance 1
    pool.arrive(0)
    pool.start(0, 0)
    pool.prefill(0)
    pool.apply(EventKind.PREFETCH, instance=0, model=2)
    pool.apply(EventKind.KV_OUT_DONE, instance=1, n=1)
    assert pool.owned(0, 2) == [joiner]
    pool.steps(0, 1, 0.25)
    assert (pool.stage(0), pool.inst(0)["load_since_ns"], load_s(pool)) == (Stage.KV_IN, NONE, 0.75)
    pool.apply(EventKind.KV_IN_DONE, instance=0, n=1, at_s=9.0)
    assert (pool.inst(0)["load_since_ns"], load_s(pool)) == (9 * NS, 0.75)


@pytest.mark.parametrize(("compute_s", "left_s"), [(0.2, 0.79), (5.0, 0.01)])
def test_retroactive_prefetch_credits_compute_down_to_a_floor(
    hand_pool: Any, compute_s: float, left_s: float
) -> None:
    """SOSP'25: the switch costs what compute since the last one has not hidden, 10 ms at least."""
    pool = hand_pool(prefetch=PrefetchMode.RETROACTIVE)
    pool.arrive(0)
    pool.arrive(1)
    pool.start(0, 0)
    pool.prefill(0)
    pool.steps(0, 1, compute_s)
    finish(pool)
    pool.turn(0, 1)
    assert load_s(pool) == pytest.approx(left_s)


def test_a_prefetch_that_was_not_asked_for_is_refused(hand_pool: Any) -> None:
    """Else it would drop the very load that a commanded turn waits for."""
    pool = hand_pool()
    pool.arrive(0)
    pool.arrive(1)
    pool.turn(0, 0)
    assert pool.apply(EventKind.PREFETCH, instance=0, model=1) == Outcome.REFUSED
    pool.apply(EventKind.WEIGHTS_READY, instance=0)
    pool.apply(EventKind.SWITCHED, instance=0)
    assert pool.apply(EventKind.PREFETCH, instance=0, model=0) == Outcome.REFUSED  # in place
    assert pool.apply(EventKind.PREFETCH, instance=0, model=1) == Outcome.OK
    assert pool.apply(EventKind.PREFETCH, instance=0, model=1) == Outcome.REFUSED


def test_one_slot_has_no_room_for_a_prefetch(hand_pool: Any) -> None:
    pool = hand_pool(weight_slots=1)
    pool.arrive(0)
    pool.arrive(1)
    pool.start(0, 0)
    assert pool.apply(EventKind.PREFETCH, instance=0, model=1) == Outcome.REFUSED
    finish(pool)
    pool.turn(0, 1)
    assert models_in(pool) == [1]


def test_a_failure_forgets_loads_and_prefetches(hand_pool: Any) -> None:
    pool = hand_pool()
    pool.arrive(0)
    pool.arrive(1)
    pool.start(0, 0)
    pool.apply(EventKind.PREFETCH, instance=0, model=1)
    pool.apply(EventKind.INSTANCE_FAILED, instance=0)
    assert models_in(pool) == [NONE, NONE]
    assert pool.state.models["prefetched_on"].tolist() == [0, 0]
    assert pool.inst()["epoch"] == 1


def resident(pool: Any, *models: int) -> None:
    """One turn of each, in order."""
    for m in models:
        pool.arrive(m, at_s=pool.now_s + 1)
        pool.start(0, m)
        finish(pool)


def test_weight_budget_keeps_what_fits_and_evicts_the_least_recently_used(hand_pool: Any) -> None:
    """Sizes 50, 30, 30, 60 under 120 bytes: 0, 1 and 2 fit together."""
    pool = hand_pool(weights=(50, 30, 30, 60), weight_slots=4, weight_budget_bytes=120)
    resident(pool, 0, 1, 2)
    assert models_in(pool) == [0, 1, 2, NONE]
    resident(pool, 0)  # it was loaded first and is used last
    pool.arrive(3)
    pool.turn(0, 3)
    assert models_in(pool) == [0, NONE, NONE, 3]
    assert pool.state.pool["reserved_bytes"][0] == 120


def test_weight_budget_counts_for_kv_whether_used_or_not(hand_pool: Any) -> None:
    pool = hand_pool(weights=(50, 30), weight_budget_bytes=90, slots_reserved=False)
    pool.arrive(0, prompt=4 * ((1200 - 90) // 40) - 1)
    pool.arrive(0, prompt=4 * ((1200 - 90) // 40))
    pool.drain()
    assert pool.ended == [(1, RequestPhase.FAILED)]


def test_weight_budget_of_one_model_evicts_the_active_one_for_a_turn(hand_pool: Any) -> None:
    pool = hand_pool(weights=(100, 60), weight_slots=3, weight_budget_bytes=100)
    resident(pool, 0)
    pool.arrive(1)
    pool.turn(0, 1)
    assert models_in(pool) == [NONE, 1, NONE]


def test_turn_evicts_an_unused_prefetch_last(hand_pool: Any) -> None:
    """Active 0 and prefetched 1 beside used 2: a turn of 3 takes 2's room, then 0's, then 1's."""
    for size, left in ((20, [0, 1, 3]), (50, [NONE, 1, 3]), (80, [NONE, NONE, 3])):
        pool = hand_pool(weights=(20, 20, 20, size), weight_slots=3, weight_budget_bytes=80)
        resident(pool, 0, 1, 2)
        pool.arrive(1)
        pool.arrive(3)
        resident(pool, 0)
        # 2 is the least recently used; 1 is marked as ahead by its prefetch
        pool.arrive(0)
        pool.start(0, 0)
        assert pool.apply(EventKind.PREFETCH, instance=0, model=1) == Outcome.OK
        finish(pool)
        pool.turn(0, 3)
        assert models_in(pool) == left


def test_prefetch_that_does_not_fit_beside_the_active_model_is_masked(hand_pool: Any) -> None:
    pool = hand_pool(weights=(60, 40, 50), weight_slots=3, weight_budget_bytes=100)
    for m in (0, 1, 2):
        pool.arrive(m)
    pool.start(0, 0)
    assert pool.decision() == (DecisionKind.PREFETCH, 0)
    assert pool.rows(DecisionKind.PREFETCH, 0)[0] == [1]
    assert prefetch_mask(pool.state, 0, 2) == Masked.DOES_NOT_FIT
    assert pool.apply(EventKind.PREFETCH, instance=0, model=2) == Outcome.REFUSED
    assert pool.apply(EventKind.PREFETCH, instance=0, model=1) == Outcome.OK


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"weight_budget_bytes": 99}, "pool.weight_budget_bytes=99: expected at least the largest"),
        ({"weight_budget_bytes": 1200}, "lower pool.weight_budget_bytes"),
    ],
)
def test_weight_budget_must_hold_a_model_and_leave_room(
    hand_pool: Any, changes: dict[str, int], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        hand_pool(**changes)


@pytest.mark.parametrize(
    ("chunk_bytes", "later_s", "left_s"),
    [
        (0, 0.3, 1.0),
        (25, 0.3, 1.2),  # 0.25 s a chunk: 0.2 s to the next boundary
        (25, 0.5, 1.0),
        (40, 0.1, 1.1),  # counted from the end: 20, 40 and 40 bytes
        (1000, 0.3, 1.7),
    ],
)
def test_dropped_load_keeps_the_link_until_its_chunk_ends(
    hand_pool: Any, chunk_bytes: int, later_s: float, left_s: float
) -> None:
    pool = hand_pool(weights=(100, 100, 100), load_chunk_bytes=chunk_bytes)
    for m in (0, 1, 2):
        pool.arrive(m)
    pool.start(0, 0)
    pool.apply(EventKind.PREFETCH, instance=0, model=1)
    pool.prefill(0, seconds=later_s)
    pool.apply(EventKind.FINISHED, request=pool.owned(0, 1)[0])
    pool.apply(EventKind.TURN_ENDED, instance=0)
    out = np.zeros(F, np.float32)
    row_features(pool.state, 0, 2, out)
    assert float(out[8]) == pytest.approx(left_s)  # what the scheduler expected
    pool.turn(0, 2)
    assert load_s(pool) == left_s


def test_chunk_of_a_fast_load_takes_its_bytes_time_before_a_slow_one(hand_pool: Any) -> None:
    """Model 2 comes from a disk of 50 B/s: 20 bytes left of a chunk count 0.4 s of that."""
    pool = hand_pool(weights=(100, 100, 100), load_chunk_bytes=25, host_weight_bytes=200)
    for m in (0, 1, 2):
        pool.arrive(m)
    pool.start(0, 0)
    pool.apply(EventKind.PREFETCH, instance=0, model=1)
    pool.prefill(0, seconds=0.3)
    pool.apply(EventKind.FINISHED, request=pool.owned(0, 1)[0])
    pool.apply(EventKind.TURN_ENDED, instance=0)
    pool.turn(0, 2)
    assert load_s(pool) == 2.4
