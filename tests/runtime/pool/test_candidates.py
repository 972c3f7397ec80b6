"""Which decision is due, and which rows it offers, with the reason for each one it does not."""

from typing import Any

import numpy as np
import pytest

from runtime.core import (
    FOREVER_NS,
    NONE,
    DecisionKind,
    Dispatch,
    EventKind,
    Masked,
    Phases,
    PrefetchMode,
    Stage,
)
from runtime.pool.candidates import (
    can_idle,
    can_route,
    fill_rows,
    first_route,
    has_turn_work,
    row_mask,
)
from runtime.pool.transitions import Outcome

TURN, PREFETCH, ROUTE = DecisionKind.TURN, DecisionKind.PREFETCH, DecisionKind.ROUTE
P, D, B = Phases.PREFILL, Phases.DECODE, Phases.BOTH


def mask(pool: Any, kind: DecisionKind, g: int, m: int) -> Masked:
    return Masked(row_mask(pool.state, kind, g, m))


def test_a_model_without_requests_has_no_work(hand_pool: Any) -> None:
    pool = hand_pool()
    assert mask(pool, TURN, 0, 0) == Masked.NO_WORK
    pool.arrive(0)
    assert mask(pool, TURN, 0, 0) == Masked.OPEN
    assert mask(pool, TURN, 0, 1) == Masked.NO_WORK
    assert pool.rows(TURN, 0) == ([0], 0)


def test_a_model_whose_requests_a_turn_owns_is_taken(hand_pool: Any) -> None:
    pool = hand_pool(instances_per_node=2)
    pool.arrive(0)
    pool.turn(0, 0)
    assert mask(pool, TURN, 1, 0) == Masked.TAKEN


def test_residents_of_another_instance_are_taken(hand_pool: Any) -> None:
    pool = hand_pool(instances_per_node=2)
    pool.arrive(0)
    pool.serve(0, 0)
    assert (mask(pool, TURN, 1, 0), mask(pool, TURN, 0, 0)) == (Masked.TAKEN, Masked.OPEN)


def test_roles_mask_work_they_cannot_do(hand_pool: Any) -> None:
    pool = hand_pool(instances_per_node=2, roles=(P, D))
    pool.arrive(0)
    assert (mask(pool, TURN, 0, 0), mask(pool, TURN, 1, 0)) == (Masked.OPEN, Masked.WRONG_ROLE)
    pool.serve(0, 0)
    pool.apply(EventKind.KV_OUT_DONE, instance=0, n=1)
    assert (mask(pool, TURN, 0, 0), mask(pool, TURN, 1, 0)) == (Masked.WRONG_ROLE, Masked.OPEN)


def test_pushed_requests_are_open_only_where_they_were_routed(hand_pool: Any) -> None:
    pool = hand_pool(dispatch=Dispatch.PUSH, instances_per_node=2)
    r = pool.arrive(0)
    assert pool.rows(TURN, 0) == ([], 0)
    pool.apply(EventKind.ROUTE, request=r, instance=1)
    assert (mask(pool, TURN, 0, 0), mask(pool, TURN, 1, 0)) == (Masked.TAKEN, Masked.OPEN)


@pytest.mark.parametrize(("network_bytes_s", "is_open"), [(10.0, True), (0.0, False)])
def test_kv_of_another_node_needs_a_network(
    hand_pool: Any, network_bytes_s: float, is_open: bool
) -> None:
    pool = hand_pool(nodes=2, network_bytes_s=network_bytes_s, kv_reload_every_turn=True)
    pool.arrive(0)
    pool.serve(0, 0)
    pool.apply(EventKind.KV_OUT_DONE, instance=0, n=1)
    assert has_turn_work(pool.state, 0, 0, B, NONE)
    assert has_turn_work(pool.state, 1, 0, B, NONE) == is_open


def test_a_prefetch_of_the_active_model_is_in_place(hand_pool: Any) -> None:
    pool = hand_pool()
    pool.arrive(0)
    pool.start(0, 0, joins=0)
    pool.arrive(0)
    pool.arrive(1)
    assert mask(pool, PREFETCH, 0, 0) == Masked.IN_PLACE
    assert pool.rows(PREFETCH, 0) == ([1], 0)
    pool.apply(EventKind.PREFETCH, instance=0, model=1)
    assert mask(pool, PREFETCH, 0, 1) == Masked.OPEN  # what was prefetched may be kept


def urgent_pool(hand_pool: Any, **changes: Any) -> Any:
    """Six models; model m's one request is due later the smaller m is, but 5 is last of all."""
    pool = hand_pool(weights=(10,) * 6, **changes)
    for m in (4, 3, 2, 1, 0, 5):
        pool.arrive(m, at_s=pool.now_s + 0.1)
    return pool


@pytest.mark.parametrize("k", [6, 5, 3, 1])
def test_rows_are_the_most_urgent_models_in_order_of_urgency(hand_pool: Any, k: int) -> None:
    assert urgent_pool(hand_pool).rows(TURN, 0, k) == ([4, 3, 2, 1, 0, 5][:k], 6 - k)


@pytest.mark.parametrize("k", [6, 4, 2])
def test_models_on_time_come_before_late_ones(hand_pool: Any, k: int) -> None:
    """At 1.25 s the models 4 and 3, due at 1.1 and 1.2 s, are late, 4 more so."""
    pool = urgent_pool(hand_pool)
    pool.apply(EventKind.CANCEL, request=pool.arrive(0, at_s=1.25))
    assert pool.rows(TURN, 0, k) == ([2, 1, 0, 5, 3, 4][:k], 6 - k)


def test_models_due_at_once_come_in_order_of_appearance(hand_pool: Any) -> None:
    pool = hand_pool(weights=(10,) * 4)
    for m in (2, 0, 3, 1):
        pool.arrive(m)
    assert pool.rows(TURN, 0) == ([0, 1, 2, 3], 0)


def test_urgency_is_the_next_deadline_not_the_age(hand_pool: Any) -> None:
    """An old request with many tokens emitted is due later than a young one without any."""
    pool = hand_pool(weights=(100, 100, 100), instances_per_node=2)
    pool.arrive(0)
    pool.start(0, 0)
    pool.prefill(0)
    pool.steps(0, 30)  # due at 1 + 31 * 0.1 s
    for r in pool.owned(0, 1):
        assert pool.req(r)["emitted_tokens"] == 31
    pool.apply(EventKind.TURN_ENDED, instance=0)
    pool.arrive(1, at_s=2.0)  # due at 3 s
    pool.arrive(2)
    pool.start(0, 2)  # the KV of model 0 leaves
    pool.apply(EventKind.KV_OUT_DONE, instance=0, n=1)
    assert pool.rows(TURN, 1, 1) == ([1], 1)
    assert pool.rows(TURN, 1, 2) == ([1, 0], 0)


def test_models_that_an_instance_holds_always_have_a_row(hand_pool: Any) -> None:
    """Model 5 is the least urgent, but loaded on instance 0."""
    pool = urgent_pool(hand_pool, instances_per_node=2)
    pool.start(0, 5)
    pool.prefill(0)
    pool.apply(EventKind.TURN_ENDED, instance=0)
    assert pool.rows(TURN, 0, 3) == ([5, 4, 3], 3)
    assert pool.rows(TURN, 1, 3) == ([4, 3, 2], 3)


@pytest.mark.parametrize(("now_s", "rows"), [(0.4, [0, 1]), (0.6, [0]), (0.9, [0, 1])])
def test_a_starving_model_must_be_served(hand_pool: Any, now_s: float, rows: list[int]) -> None:
    """0.5 s is the bound; model 0 waits since 0 s, model 1 since 0.2 s."""
    pool = hand_pool(weights=(10, 10, 10), max_wait_s=0.5)
    pool.arrive(0)
    pool.arrive(1, at_s=0.2)
    pool.apply(EventKind.CANCEL, request=pool.arrive(2, at_s=now_s))
    assert pool.rows(TURN, 0) == (rows, 0)


def starving_pool(hand_pool: Any, **changes: Any) -> Any:
    """Model 0 waits beyond the bound of 0.5 s, model 1 since now."""
    pool = hand_pool(max_wait_s=0.5, **changes)
    pool.arrive(0, tag=0)
    pool.arrive(1, at_s=0.6, tag=5)
    return pool


def test_a_row_beside_a_starving_one_says_why_it_is_masked(hand_pool: Any) -> None:
    pool = starving_pool(hand_pool)
    assert (mask(pool, TURN, 0, 0), mask(pool, TURN, 0, 1)) == (Masked.OPEN, Masked.STARVED_OTHER)
    assert not can_idle(pool.state, 0)


def test_an_answer_that_ignores_a_starving_model_is_refused(hand_pool: Any) -> None:
    pool = starving_pool(hand_pool)
    assert pool.turn(0, 1) == Outcome.REFUSED
    assert pool.apply(EventKind.IDLE, instance=0) == Outcome.REFUSED
    posed = pool.posed(*pool.decision())
    assert (posed["kind"][0], posed["model"][0]) == (EventKind.TURN, 0)
    assert 0 < posed["quota_ns"][0] < FOREVER_NS
    assert pool.apply_record(posed) == Outcome.OK


def test_the_posed_answer_serves_the_longest_starving_model(hand_pool: Any) -> None:
    pool = hand_pool(max_wait_s=0.5)
    pool.arrive(1)
    pool.arrive(0, at_s=0.1)
    pool.apply(EventKind.CANCEL, request=pool.arrive(0, at_s=2.0))
    assert pool.posed(*pool.decision())["model"][0] == 1
    assert pool.turn(0, 0) == Outcome.OK  # any starving model will do


def test_a_push_policy_decides_alone_who_starves(hand_pool: Any) -> None:
    pool = starving_pool(hand_pool, dispatch=Dispatch.PUSH)
    for r in pool.routing():
        pool.apply(EventKind.ROUTE, request=r, instance=0)
    pool.apply(EventKind.CANCEL, request=pool.arrive(1, at_s=2.0))
    assert pool.posed(*pool.decision())["kind"][0] == EventKind.IDLE
    assert pool.apply(EventKind.IDLE, instance=0) == Outcome.OK


def test_a_higher_priority_masks_the_rows_below_it(hand_pool: Any) -> None:
    pool = hand_pool(weights=(10,) * 4, priorities=True)
    for m, priority in ((0, 0), (1, 2), (2, -1), (3, 2), (0, 1)):
        pool.arrive(m, tag=priority)
    assert pool.rows(TURN, 0) == ([1, 3], 0)
    assert (mask(pool, TURN, 0, 0), mask(pool, TURN, 0, 3)) == (Masked.OUTRANKED, Masked.OPEN)
    assert pool.rows(PREFETCH, 0, 4)[0] == [0, 1, 2, 3]


def test_a_priority_that_an_instance_cannot_take_masks_nothing_there(hand_pool: Any) -> None:
    """Model 0's urgent request has its KV on instance 0; 1 may still serve what waits."""
    pool = hand_pool(instances_per_node=2, priorities=True)
    pool.arrive(0, tag=3)
    pool.serve(0, 0)
    pool.arrive(0, tag=0)
    pool.arrive(1, tag=1)
    assert (pool.rows(TURN, 0), pool.rows(TURN, 1)) == (([0], 0), ([1], 0))


def test_the_wait_bound_comes_before_priorities(hand_pool: Any) -> None:
    pool = starving_pool(hand_pool, priorities=True)
    assert pool.rows(TURN, 0) == ([0], 0)
    assert mask(pool, TURN, 0, 1) == Masked.STARVED_OTHER


@pytest.mark.parametrize(("priorities", "order"), [(True, [2, 1, 0]), (False, [0, 1, 2])])
def test_turns_take_higher_priorities_first_where_the_pool_says_so(
    hand_pool: Any, priorities: bool, order: list[int]
) -> None:
    pool = hand_pool(priorities=priorities)
    slots = [pool.arrive(0, tag=priority) for priority in (0, 1, 4)]
    assert pool.waiting(0) == [slots[i] for i in order]
    assert pool.state.pool["ranked"][0] == (2 if priorities else 0)
    pool.turn(0, 0)
    assert pool.owned(0, 0) == [slots[i] for i in order]
    assert pool.state.pool["ranked"][0] == 0


def test_starvation_displaces_rows_and_overflow(hand_pool: Any) -> None:
    pool = hand_pool(weights=(10,) * 4, max_wait_s=0.5)
    pool.arrive(2)
    for m in (0, 1, 3):
        pool.arrive(m, at_s=0.6)
    assert pool.rows(TURN, 0, 1) == ([2], 0)


def test_without_a_bound_nothing_starves(hand_pool: Any) -> None:
    pool = hand_pool()
    pool.arrive(0)
    pool.arrive(1, at_s=1e6)
    assert pool.rows(TURN, 0) == ([1, 0], 0)


def test_routes_come_before_turns_before_prefetches(hand_pool: Any) -> None:
    pool = hand_pool(dispatch=Dispatch.PUSH, instances_per_node=2)
    first, second, third = pool.arrive(0), pool.arrive(1), pool.arrive(1)
    assert pool.decision() == (ROUTE, first)
    pool.apply(EventKind.ROUTE, request=first, instance=1)
    assert pool.decision() == (ROUTE, second)
    for r in (second, third):
        pool.apply(EventKind.ROUTE, request=r, instance=1)
    assert pool.decision() == (TURN, 1)
    assert pool.stage(0) == Stage.IDLE
    pool.start(1, 0)
    assert pool.decision() == (PREFETCH, 1)
    pool.apply(EventKind.PREFETCH, instance=1, model=NONE)
    assert pool.decision() == (DecisionKind.NONE, NONE)


def test_idle_lasts_until_something_changes(hand_pool: Any) -> None:
    pool = hand_pool()
    pool.arrive(0)
    assert pool.decision() == (TURN, 0)
    pool.apply(EventKind.IDLE, instance=0)
    assert pool.decision() == (DecisionKind.NONE, NONE)
    pool.arrive(1)
    assert pool.decision() == (TURN, 0)


def test_a_declined_prefetch_is_asked_again_after_an_arrival(hand_pool: Any) -> None:
    pool = hand_pool()
    pool.arrive(0)
    pool.start(0, 0)
    pool.arrive(1)
    assert pool.decision() == (PREFETCH, 0)
    pool.apply(EventKind.PREFETCH, instance=0, model=NONE)
    assert pool.decision() == (DecisionKind.NONE, NONE)
    pool.arrive(1)
    assert pool.decision() == (PREFETCH, 0)
    pool.apply(EventKind.PREFETCH, instance=0, model=1)
    assert pool.decision() == (DecisionKind.NONE, NONE)  # a load is under way


@pytest.mark.parametrize(
    "changes",
    [{"prefetch": PrefetchMode.NONE}, {"prefetch": PrefetchMode.RETROACTIVE}, {"weight_slots": 1}],
)
def test_pools_that_cannot_prefetch_are_not_asked(hand_pool: Any, changes: dict[str, Any]) -> None:
    pool = hand_pool(**changes)
    pool.arrive(0)
    pool.start(0, 0)
    pool.arrive(1)
    assert pool.decision() == (DecisionKind.NONE, NONE)


def test_a_route_needs_a_live_instance_of_the_right_role(hand_pool: Any) -> None:
    pool = hand_pool(dispatch=Dispatch.PUSH, instances_per_node=3, roles=(D, P, B))
    r = pool.arrive(0)
    assert [can_route(pool.state, r, g) for g in range(3)] == [False, True, True]
    assert first_route(pool.state, r) == 1
    pool.apply(EventKind.INSTANCE_FAILED, instance=1)
    assert first_route(pool.state, r) == 2
    pool.apply(EventKind.INSTANCE_FAILED, instance=2)
    assert first_route(pool.state, r) == NONE
    assert pool.decision()[0] == DecisionKind.NONE


@pytest.mark.parametrize("kind", [TURN, PREFETCH])
def test_pose_is_the_answer_that_changes_nothing(hand_pool: Any, kind: DecisionKind) -> None:
    pool = hand_pool()
    pool.arrive(0, at_s=2.0)
    event = pool.posed(kind, 0)[0]
    expected = EventKind.IDLE if kind == TURN else EventKind.PREFETCH
    assert (event["kind"], event["instance"], event["model"]) == (expected, 0, NONE)
    assert event["time_ns"] == pool.state.pool["now_ns"][0]
    assert (event["tag"], event["joins"], event["phases"]) == (NONE, 1, B)


def test_pose_of_a_route_takes_the_first_instance(hand_pool: Any) -> None:
    pool = hand_pool(dispatch=Dispatch.PUSH, instances_per_node=2, roles=(D, P))
    pool.arrive(0)
    r = pool.arrive(0)
    event = pool.posed(ROUTE, r)[0]
    assert (event["kind"], event["request"], event["instance"]) == (EventKind.ROUTE, r, 1)
    assert event["id"] == 1


def test_rows_beyond_the_count_are_left_alone(hand_pool: Any) -> None:
    pool = hand_pool()
    pool.arrive(1)
    rows = np.full(4, -7, np.int64)
    assert fill_rows(pool.state, TURN, 0, rows) == (1, 0)
    assert rows.tolist() == [1, -7, -7, -7]


def test_a_request_that_no_instance_may_take_blocks_none_behind_it(hand_pool: Any) -> None:
    """Its KV waits for the one instance that decodes, which is down."""
    pool = hand_pool(dispatch=Dispatch.PUSH, instances_per_node=2, roles=(P, D))
    stranded = pool.arrive(0)
    pool.apply(EventKind.ROUTE, request=stranded, instance=0)
    pool.serve(0, 0)
    pool.apply(EventKind.KV_OUT_DONE, instance=0, n=1)
    assert pool.decision() == (ROUTE, stranded)
    pool.apply(EventKind.INSTANCE_FAILED, instance=1)
    assert pool.decision() == (DecisionKind.NONE, NONE)
    late = [pool.arrive(0), pool.arrive(1)]
    assert pool.routing() == [stranded, *late]
    for r in late:
        assert pool.decision() == (ROUTE, r)
        pool.apply(EventKind.ROUTE, request=r, instance=0)
    assert pool.routing() == [stranded]
    pool.apply(EventKind.INSTANCE_JOINED, instance=1)
    assert pool.decision() == (ROUTE, stranded)
