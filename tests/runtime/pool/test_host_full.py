"""KV that must leave while host memory is full: dropped, kept on the device, or queued to leave.

A block is 4 tokens and 40 bytes; an instance holds 25 blocks.
"""

from typing import Any

import pytest

from runtime.core import Command, EventKind, HostKvFull, KvPlace, Phases, RequestPhase, Stage
from runtime.pool.transitions import Outcome

WAIT, RECOMPUTE = HostKvFull.WAIT, HostKvFull.RECOMPUTE
INCOMING, OUTGOING = 2, 3


def state_of(pool: Any, r: int) -> tuple[RequestPhase, KvPlace]:
    return RequestPhase(int(pool.req(r)["phase"])), KvPlace(int(pool.req(r)["kv"]))


def recomputed(pool: Any) -> int:
    return int(pool.state.pool["recomputed"][0])


def left_behind(pool: Any, prompt: int) -> int:
    """A prefilled request of model 0 on instance 0, whose next turn is of model 1."""
    r: int = pool.arrive(0, prompt=prompt)
    pool.serve(0, 0)
    return r


@pytest.mark.parametrize(
    ("full", "expected", "drops"),
    [
        (WAIT, (RequestPhase.READY, KvPlace.DEVICE), 0),
        (RECOMPUTE, (RequestPhase.WAITING, KvPlace.NOWHERE), 1),
    ],
)
def test_switch_keeps_kv_without_host_room_only_where_it_may_wait(
    hand_pool: Any, full: HostKvFull, expected: Any, drops: int
) -> None:
    pool = hand_pool(host_kv_bytes=0, host_kv_full=full)
    r = left_behind(pool, 8)
    pool.arrive(1)
    pool.serve(0, 1)
    assert (state_of(pool, r), recomputed(pool)) == (expected, drops)
    assert pool.turn(0, 0) == Outcome.OK


def test_kv_that_waits_resumes_where_it_is(hand_pool: Any) -> None:
    pool = hand_pool(host_kv_bytes=0, host_kv_full=WAIT)
    r = left_behind(pool, 8)
    pool.arrive(1)
    pool.serve(0, 1)
    pool.start(0, 0)
    assert (pool.stage(), pool.owned(0, 1)) == (Stage.DECODE, [r])


def test_kv_that_may_wait_leaves_as_far_as_the_host_has_room(hand_pool: Any) -> None:
    pool = hand_pool(host_kv_bytes=120, host_kv_full=WAIT)
    first, second = pool.arrive(0, prompt=8), pool.arrive(0, prompt=8)  # 3 blocks with a token
    pool.serve(0, 0)
    pool.arrive(1)
    pool.turn(0, 1)
    assert state_of(pool, first)[1] == KvPlace.MOVING_OUT
    assert state_of(pool, second) == (RequestPhase.READY, KvPlace.DEVICE)


@pytest.mark.parametrize(("prompt", "drops"), [(31, 0), (32, 1), (90, 1)])
def test_turn_that_needs_the_room_of_waiting_kv_drops_it(
    hand_pool: Any, prompt: int, drops: int
) -> None:
    """17 blocks wait; a prompt of 31 tokens and the token that follows take the other 8."""
    pool = hand_pool(host_kv_bytes=0, host_kv_full=WAIT)
    r = left_behind(pool, 64)
    pool.arrive(1, prompt=prompt)
    pool.turn(0, 1)
    assert recomputed(pool) == drops
    assert state_of(pool, r)[0] == (RequestPhase.WAITING if drops else RequestPhase.READY)


def prefiller(hand_pool: Any, **changes: Any) -> Any:
    """Instance 0 prefills, instance 1 decodes, on one node."""
    roles = (Phases.PREFILL, Phases.DECODE)
    return hand_pool(instances_per_node=2, roles=roles, **changes)


@pytest.mark.parametrize("full", [WAIT, RECOMPUTE])
def test_prefilled_kv_queues_for_the_host_and_leaves_once_it_has_room(
    hand_pool: Any, full: HostKvFull
) -> None:
    pool = prefiller(hand_pool, host_kv_bytes=80, host_kv_full=full)
    first, second = pool.arrive(0), pool.arrive(0)  # 2 blocks each with their token
    pool.serve(0, 0)
    assert pool.owned(0, OUTGOING) == [first, second]
    assert state_of(pool, second) == (RequestPhase.READY, KvPlace.DEVICE)
    assert pool.inst(0)["queued_bytes"] == 80
    pool.apply(EventKind.KV_OUT_DONE, instance=0, n=1)
    pool.start(1, 0)
    pool.drain()
    pool.apply(EventKind.KV_IN_DONE, instance=1, n=1)
    assert state_of(pool, second)[1] == KvPlace.MOVING_OUT
    assert (Command.MOVE_OUT, 0) in pool.drain()
    assert recomputed(pool) == 0


def test_prefilled_kv_that_the_host_could_never_hold_is_recomputed(hand_pool: Any) -> None:
    pool = prefiller(hand_pool, host_kv_bytes=79)
    r = pool.arrive(0)
    pool.serve(0, 0)
    assert (state_of(pool, r)[0], recomputed(pool)) == (RequestPhase.WAITING, 1)


@pytest.mark.parametrize(("prompt", "drops"), [(55, 0), (56, 1)])
def test_prefill_beside_queued_kv_drops_it_only_for_want_of_room(
    hand_pool: Any, prompt: int, drops: int
) -> None:
    """11 blocks are on their way, 11 queued; when the first are gone 14 are free for another."""
    pool = prefiller(hand_pool, host_kv_bytes=440)
    for _ in range(2):
        pool.arrive(0, prompt=40)
    pool.serve(0, 0)
    pool.apply(EventKind.KV_OUT_DONE, instance=0, n=1)
    assert pool.inst(0)["queued_bytes"] == 440
    pool.arrive(1, prompt=prompt)
    pool.turn(0, 1)
    assert recomputed(pool) == drops


def test_cancelled_request_lets_a_smaller_one_behind_it_leave(hand_pool: Any) -> None:
    pool = prefiller(hand_pool, host_kv_bytes=200)
    pool.arrive(0, prompt=8)  # 3 blocks
    large, small = pool.arrive(0, prompt=12), pool.arrive(0)  # 4 and 2: together too many
    pool.serve(0, 0)
    assert state_of(pool, small)[1] == KvPlace.DEVICE
    pool.apply(EventKind.CANCEL, request=large)
    assert state_of(pool, small)[1] == KvPlace.MOVING_OUT


def test_failed_instance_loses_what_queued_there(hand_pool: Any) -> None:
    pool = prefiller(hand_pool, host_kv_bytes=80)
    requests = [pool.arrive(0), pool.arrive(0)]
    pool.serve(0, 0)
    pool.apply(EventKind.INSTANCE_FAILED, instance=0)
    assert pool.state.pool["queued"][0] == 0
    assert {state_of(pool, r)[0] for r in requests} == {RequestPhase.WAITING}


def test_residents_that_take_no_part_make_room_for_a_step(hand_pool: Any) -> None:
    """A batch that fills the device with another's idle KV could not take one step: that leaves."""
    pool = hand_pool()
    pool.arrive(0, prompt=47, tag=0)  # 12 blocks with its token
    pool.arrive(0, prompt=51, tag=1)  # 13
    pool.serve(0, 0)
    pool.req(0)["tag"], pool.req(1)["tag"] = 0, 1
    pool.start(0, 0, tag=0)
    assert state_of(pool, 1)[1] == KvPlace.MOVING_OUT
    assert pool.stage() in (Stage.BLOCKED, Stage.DECODE)
