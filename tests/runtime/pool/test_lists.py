"""Lists through the public door: order of arrival, whatever the order of slots."""

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.core import Dispatch, EventKind


def ids(pool: Any, slots: list[int]) -> list[int]:
    return [int(pool.req(r)["id"]) for r in slots]


def test_waiting_requests_are_listed_by_arrival(hand_pool: Any) -> None:
    pool = hand_pool()
    slots = [pool.arrive(0, at_s=t) for t in (0.0, 0.5, 1.0)]
    other = pool.arrive(1)
    assert pool.waiting(0) == slots
    assert pool.waiting(1) == [other]


def test_a_request_that_waits_again_returns_to_its_place(hand_pool: Any) -> None:
    """r0 and r1 lose their KV with their instance; they stand before the younger r2 again."""
    pool = hand_pool()
    r0, r1 = pool.arrive(0), pool.arrive(0)
    pool.serve(0, 0)
    assert pool.ready(0) == [r0, r1]
    r2 = pool.arrive(0)
    pool.apply(EventKind.INSTANCE_FAILED, instance=0)
    assert pool.waiting(0) == [r0, r1, r2]


def test_equal_arrivals_are_ordered_by_id_not_by_slot(hand_pool: Any) -> None:
    pool = hand_pool()
    first, second = pool.arrive(0), pool.arrive(0)
    pool.apply(EventKind.CANCEL, request=first)
    pool.drain()
    third = pool.arrive(0)
    assert third == first < second  # the slot was recycled
    pool.serve(0, 0)
    pool.apply(EventKind.INSTANCE_FAILED, instance=0)
    assert ids(pool, pool.waiting(0)) == [1, 2]


def test_requests_to_route_come_oldest_first_after_a_failure(hand_pool: Any) -> None:
    pool = hand_pool(dispatch=Dispatch.PUSH, nodes=2)
    for g in (0, 1, 0):
        pool.apply(EventKind.ROUTE, request=pool.arrive(0), instance=g)
    pool.apply(EventKind.CANCEL, request=pool.waiting(0)[0])
    pool.drain()
    pool.apply(EventKind.ROUTE, request=pool.arrive(0), instance=0)
    pool.apply(EventKind.INSTANCE_FAILED, instance=0)
    assert ids(pool, pool.routing()) == [2, 3]
    assert ids(pool, pool.waiting(0)) == [1]


@settings(max_examples=40, deadline=None)
@given(kept=st.lists(st.booleans(), min_size=1, max_size=12))
def test_any_member_can_leave(hand_pool: Any, kept: list[bool]) -> None:
    """Head, tail, middle and last of a list: what stays keeps its order."""
    pool = hand_pool()
    slots = [pool.arrive(0) for _ in kept]
    for r, stays in zip(slots, kept, strict=True):
        if not stays:
            pool.apply(EventKind.CANCEL, request=r)
    assert pool.waiting(0) == [r for r, stays in zip(slots, kept, strict=True) if stays]


def test_a_full_table_grows_in_place(hand_pool: Any) -> None:
    pool = hand_pool(capacity=2)
    slots = [pool.arrive(0) for _ in range(7)]
    assert pool.waiting(0) == slots
    assert len(pool.state.requests) == 8
    assert len(set(slots)) == 7
