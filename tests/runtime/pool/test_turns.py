"""A turn: whom it takes, its stages, who joins, and what it leaves."""

from typing import Any

import pytest

from runtime.core import (
    FOREVER_NS,
    NONE,
    Command,
    Dispatch,
    EventKind,
    KvPlace,
    Phases,
    RequestPhase,
    Stage,
)
from runtime.pool.transitions import Outcome

PREFILL, BATCH, INCOMING, OUTGOING = range(4)
P, D, B = Phases.PREFILL, Phases.DECODE, Phases.BOTH


def end(pool: Any, g: int = 0) -> None:
    pool.apply(EventKind.TURN_ENDED, instance=g)


def test_a_turn_walks_its_stages(hand_pool: Any) -> None:
    pool = hand_pool()
    pool.arrive(0)
    seen = [pool.stage()]
    pool.turn(0, 0, quota_ns=20_000_000)
    seen.append(pool.stage())
    pool.apply(EventKind.WEIGHTS_READY, instance=0)
    pool.apply(EventKind.SWITCHED, instance=0)
    seen.append(pool.stage())
    pool.prefill(0)
    seen.append(pool.stage())
    pool.steps(0, 2)
    seen.append(pool.stage())
    end(pool)
    seen.append(pool.stage())
    names = [stage.name for stage in seen]
    assert names == ["FREE", "COMMANDED", "PREFILL", "DECODE", "ENDING", "FREE"]


def test_prefill_without_decode_ends_after_the_last_prompt(hand_pool: Any) -> None:
    pool = hand_pool()
    slots = [pool.arrive(0) for _ in range(3)]
    pool.start(0, 0, phases=P)
    pool.prefill(0, 2)
    assert (pool.owned(0, PREFILL), pool.ready(0), pool.stage()) == (
        slots[2:],
        slots[:2],
        Stage.PREFILL,
    )
    pool.prefill(0)
    assert (pool.stage(), pool.ready(0)) == (Stage.ENDING, slots)


def test_decode_takes_only_requests_with_kv(hand_pool: Any) -> None:
    pool = hand_pool()
    ready = pool.arrive(0)
    pool.serve(0, 0)
    waiting = pool.arrive(0)
    pool.start(0, 0, phases=D)
    assert (pool.owned(0, BATCH), pool.waiting(0)) == ([ready], [waiting])


def test_a_batch_reopens_in_place_at_the_end(hand_pool: Any) -> None:
    pool = hand_pool()
    r = pool.arrive(0)
    pool.serve(0, 0)
    req = pool.req(r)
    assert (req["phase"], req["kv"], req["instance"]) == (RequestPhase.READY, KvPlace.DEVICE, 0)
    assert pool.state.outbox["kind"][: pool.state.pool["commands"][0]].max() < Command.MOVE_OUT


@pytest.mark.parametrize("can_preempt", [True, False])
def test_without_token_preemption_a_turn_outlives_its_quota(
    hand_pool: Any, can_preempt: bool
) -> None:
    pool = hand_pool(token_preempt=can_preempt)
    r = pool.arrive(0)
    pool.start(0, 0, quota_ns=20_000_000)
    pool.prefill(0)
    pool.steps(0, 9)
    assert pool.stage() == (Stage.ENDING if can_preempt else Stage.DECODE)
    if not can_preempt:
        pool.apply(EventKind.FINISHED, request=r)
        assert pool.stage() == Stage.ENDING


@pytest.mark.parametrize("survives", [True, False])
def test_a_switch_loses_kv_on_the_device_when_the_pool_says_so(
    hand_pool: Any, survives: bool
) -> None:
    pool = hand_pool(kv_survives_switch=survives)
    kept, taken = pool.arrive(0), pool.arrive(1)
    pool.serve(0, 0)
    pool.start(0, 1)
    assert pool.owned(0, PREFILL) == [taken]
    if survives:
        assert (pool.owned(0, OUTGOING), pool.state.pool["recomputed"][0]) == ([kept], 0)
    else:
        assert (pool.waiting(0), pool.state.pool["recomputed"][0]) == ([kept], 1)
        assert (pool.req(kept)["kv"], pool.req(kept)["emitted_tokens"]) == (KvPlace.NOWHERE, 1)
    assert pool.inst()["kv_used_bytes"] == (160 if survives else 80)


def test_a_turn_of_the_same_model_keeps_kv_that_a_switch_would_lose(hand_pool: Any) -> None:
    pool = hand_pool(kv_survives_switch=False)
    r = pool.arrive(0)
    pool.serve(0, 0)
    pool.start(0, 0)
    assert (pool.owned(0, BATCH), pool.state.pool["recomputed"][0]) == ([r], 0)


def chunked(hand_pool: Any) -> tuple[Any, int]:
    """A prompt of 12 tokens of which one chunk of 5 is done; returns its slot."""
    pool = hand_pool(prefill_chunk_tokens=5)
    r = pool.arrive(0, 12)
    pool.start(0, 0)
    pool.prefill(0, 0)
    assert (pool.req(r)["prefilled_tokens"], pool.stage()) == (5, Stage.PREFILL)
    return pool, r


def test_a_prompt_is_complete_with_its_last_chunk(hand_pool: Any) -> None:
    pool, r = chunked(hand_pool)
    pool.prefill(0, 0)
    assert (pool.req(r)["prefilled_tokens"], pool.req(r)["emitted_tokens"]) == (10, 0)
    pool.prefill(0, 1)
    assert (pool.req(r)["prefilled_tokens"], pool.req(r)["emitted_tokens"]) == (0, 1)
    assert pool.stage() == Stage.DECODE


def test_a_failure_loses_the_chunks_done(hand_pool: Any) -> None:
    pool, r = chunked(hand_pool)
    pool.apply(EventKind.INSTANCE_FAILED, instance=0)
    assert (pool.waiting(0), pool.req(r)["prefilled_tokens"]) == ([r], 0)


def test_a_cancelled_prompt_is_let_go_between_chunks(hand_pool: Any) -> None:
    pool, r = chunked(hand_pool)
    other = pool.arrive(0, 4)
    pool.apply(EventKind.CANCEL, request=r)
    pool.prefill(0, 0)
    assert pool.req(r)["phase"] == RequestPhase.CANCELLED
    assert (pool.owned(0, PREFILL), pool.inst()["kv_used_bytes"]) == ([other], 80)


def test_kv_leaves_at_every_end_when_the_pool_says_so(hand_pool: Any) -> None:
    pool = hand_pool(kv_reload_every_turn=True)
    r = pool.arrive(0)
    pool.serve(0, 0)
    assert pool.owned(0, OUTGOING) == [r]


@pytest.mark.parametrize(("tag", "taken"), [(NONE, 3), (7, 2), (8, 1)])
def test_a_tag_selects_the_requests_of_a_turn(hand_pool: Any, tag: int, taken: int) -> None:
    pool = hand_pool(dispatch=Dispatch.PUSH)
    for label in (7, 8, 7):
        pool.apply(EventKind.ROUTE, request=pool.arrive(0), instance=0, tag=label)
    assert pool.turn(0, 0, tag=tag) == Outcome.OK
    assert pool.size(0, PREFILL) == taken


@pytest.mark.parametrize(
    ("fields", "joins"),
    [({}, True), ({"joins": 0}, False), ({"phases": D}, False), ({"tag": 3}, False)],
)
def test_arrivals_join_a_running_turn_that_takes_them(
    hand_pool: Any, fields: dict[str, int], joins: bool
) -> None:
    pool = hand_pool(dispatch=Dispatch.PUSH)
    first = pool.arrive(0)
    pool.apply(EventKind.ROUTE, request=first, instance=0, tag=3)
    pool.serve(0, 0)
    pool.start(0, 0, **fields)
    pool.drain()
    late = pool.arrive(0)
    pool.apply(EventKind.ROUTE, request=late, instance=0, tag=4)
    assert pool.owned(0, PREFILL) == ([late] if joins else [])
    assert pool.drain() == ([(Command.JOIN, 0)] if joins else [])
    since = pool.state.models["waiting_since_ns"][0]
    assert (since == FOREVER_NS) == joins


@pytest.mark.parametrize(("on_first", "joined"), [(1, 0), (2, 1)])
def test_an_arrival_joins_the_smallest_batch_then_the_lowest_instance(
    hand_pool: Any, on_first: int, joined: int
) -> None:
    """Instance 1 decodes one resident, instance 0 as many requests as given."""
    pool = hand_pool(instances_per_node=2)
    pool.arrive(0)
    pool.serve(1, 0)
    for _ in range(on_first):
        pool.arrive(0)
    pool.start(0, 0)
    pool.prefill(0, on_first)
    pool.start(1, 0)
    assert (pool.size(0, BATCH), pool.size(1, BATCH)) == (on_first, 1)
    late = pool.arrive(0)
    assert pool.owned(joined, PREFILL) == [late]


def test_a_turn_needs_a_free_instance_and_work(hand_pool: Any) -> None:
    pool = hand_pool(roles=(P,))
    assert pool.turn(0, 0) == Outcome.REFUSED  # no work
    r = pool.arrive(0)
    assert pool.turn(0, 0, phases=D) == Outcome.REFUSED  # not its role
    assert pool.turn(0, 0, tag=5) == Outcome.REFUSED  # no such label
    assert pool.turn(0, 0) == Outcome.OK
    assert pool.turn(0, 0) == Outcome.REFUSED  # busy
    assert pool.owned(0, PREFILL) == [r]


def test_a_prefill_only_instance_sends_kv_to_the_host(hand_pool: Any) -> None:
    pool = hand_pool(instances_per_node=2, roles=(P, D))
    r = pool.arrive(0)
    pool.start(0, 0)
    pool.prefill(0)
    assert (pool.owned(0, OUTGOING), pool.stage(0)) == ([r], Stage.ENDING)
    end(pool)
    pool.apply(EventKind.KV_OUT_DONE, instance=0, n=1)
    assert pool.ready(0) == [r]
    pool.start(1, 0)
    assert pool.stage(1) == Stage.KV_IN
    pool.apply(EventKind.KV_IN_DONE, instance=1, n=1)
    assert pool.owned(1, BATCH) == [r]


def test_a_pushed_request_is_routed_again_after_a_disaggregated_prefill(hand_pool: Any) -> None:
    pool = hand_pool(instances_per_node=2, roles=(P, D), dispatch=Dispatch.PUSH)
    r = pool.arrive(0)
    pool.apply(EventKind.ROUTE, request=r, instance=0)
    pool.serve(0, 0)
    pool.apply(EventKind.KV_OUT_DONE, instance=0, n=1)
    assert (pool.routing(), pool.req(r)["route"]) == ([r], NONE)
    assert pool.apply(EventKind.ROUTE, request=r, instance=0) == Outcome.REFUSED
    assert pool.apply(EventKind.ROUTE, request=r, instance=1) == Outcome.OK
    assert pool.inst(1)["routed"] == 1


def test_residents_of_the_last_model_leave_when_another_comes(hand_pool: Any) -> None:
    pool = hand_pool()
    old = pool.arrive(0)
    pool.serve(0, 0)
    pool.arrive(1)
    pool.turn(0, 1)
    assert pool.owned(0, OUTGOING) == [old]
    assert pool.state.models["waiting_since_ns"][0] == FOREVER_NS  # no turn could take it now


def test_served_time_and_waiting_time_follow_turns(hand_pool: Any) -> None:
    pool = hand_pool()
    pool.arrive(0, at_s=1.0)
    assert pool.state.models["waiting_since_ns"][0] == 1_000_000_000
    pool.serve(0, 0)
    assert pool.inst()["served_ns"] == pool.state.pool["now_ns"][0]
    assert pool.state.models["waiting_since_ns"][0] == pool.state.pool["now_ns"][0]  # it is ready


@pytest.mark.parametrize(("decoded", "stage"), [(1, Stage.DECODE), (2, Stage.ENDING)])
def test_the_quota_counts_decode_time(hand_pool: Any, decoded: int, stage: Stage) -> None:
    pool = hand_pool()
    pool.arrive(0)
    pool.start(0, 0, quota_ns=20_000_000)
    pool.prefill(0, seconds=5.0)
    pool.steps(0, decoded)
    assert pool.stage() == stage
    assert pool.inst()["decoded_ns"] == decoded * 10_000_000


def co_located(hand_pool: Any, **changes: Any) -> tuple[Any, int]:
    """KV of a request of model 0 (160 bytes of 1000) on the device; returns its slot."""
    pool = hand_pool(kv_stays=True, **changes)
    r = pool.arrive(0, 15)
    pool.serve(0, 0)
    return pool, r


def test_kv_of_another_model_stays_where_the_pool_lets_it(hand_pool: Any) -> None:
    pool, resident = co_located(hand_pool)
    other = pool.arrive(1, 15)
    pool.serve(0, 1)
    assert (pool.ready(0), pool.ready(1)) == ([resident], [other])
    assert pool.inst()["kv_used_bytes"] == 320
    pool.start(0, 0)
    assert (pool.stage(), pool.owned(0, BATCH)) == (Stage.DECODE, [resident])


def test_a_turn_takes_what_fits_beside_the_kv_that_stays(hand_pool: Any) -> None:
    pool, resident = co_located(hand_pool)
    first, second = pool.arrive(1, 39), pool.arrive(1, 47)  # 400 and 480 bytes of the 840 left
    pool.turn(0, 1)
    assert (pool.owned(0, PREFILL), pool.waiting(1)) == ([first], [second])
    assert pool.ready(0) == [resident]


def test_kv_that_stays_leaves_where_nothing_fits_beside_it(hand_pool: Any) -> None:
    pool, resident = co_located(hand_pool)
    large = pool.arrive(1, 95)  # 960 bytes
    pool.turn(0, 1)
    assert (pool.owned(0, OUTGOING), pool.owned(0, PREFILL)) == ([resident], [large])
    assert pool.inst()["kv_promised_bytes"] == 960
