"""`apply`, event by event: what each one changes, refuses and tells the driver."""

from typing import Any

import numpy as np
import pytest

from runtime.core import NONE, Command, Dispatch, EventKind, KvPlace, Phases, RequestPhase, Stage
from runtime.pool.state import EVENT
from runtime.pool.transitions import RATE_TAU_S, Outcome, apply

PREFILL, BATCH, INCOMING, OUTGOING = range(4)


def phase(pool: Any, r: int) -> RequestPhase:
    return RequestPhase(int(pool.req(r)["phase"]))


def test_the_clock_never_goes_back(hand_pool: Any) -> None:
    pool = hand_pool()
    pool.arrive(0, at_s=3.0)
    pool.arrive(0, at_s=1.0)
    assert pool.now_s == 3.0


def test_arrivals_fill_a_slot_afresh(hand_pool: Any) -> None:
    pool = hand_pool(capacity=1, priorities=True)
    r = pool.arrive(0, 4, tag=0)
    pool.start(0, 0)
    pool.prefill(0)
    pool.apply(EventKind.FINISHED, request=r)
    assert pool.drain()[-1] == (Command.RETIRE, r)
    assert pool.ended == [(0, RequestPhase.DONE)]
    again = pool.arrive(1, 9, at_s=5.0, tag=2)
    req = pool.req(again)
    assert again == r
    assert (req["id"], req["generation"], req["model"], req["priority"]) == (1, 2, 1, 2)
    assert (req["emitted_tokens"], req["on_time_tokens"], req["first_token_ns"]) == (0, 0, NONE)
    assert (req["prompt_tokens"], req["qos_ns"], req["stall_ns"], req["tag"]) == (9, 0, 0, NONE)


def test_a_full_table_changes_nothing(hand_pool: Any) -> None:
    pool = hand_pool(capacity=1)
    pool.arrive(0)
    assert pool.apply(EventKind.ARRIVAL, id=9, model=0, n=4) == Outcome.TABLE_FULL


def test_the_arrival_rate_is_a_decaying_mean(hand_pool: Any) -> None:
    pool = hand_pool()
    for t in (0.0, 30.0):
        pool.arrive(0, at_s=t)
    expected = (1 + np.exp(-30 / RATE_TAU_S)) / RATE_TAU_S
    assert pool.state.models["rate_rps"][0] == pytest.approx(expected)


def test_a_full_queue_sheds(hand_pool: Any) -> None:
    pool = hand_pool(max_queue=2)
    slots = [pool.arrive(0) for _ in range(3)]
    assert [phase(pool, r).name for r in slots] == ["WAITING", "WAITING", "SHED"]
    pool.drain()
    pool.start(0, 0)
    assert phase(pool, pool.arrive(1)) == RequestPhase.WAITING  # owned requests do not queue


def test_a_full_queue_counts_what_waits_for_a_route(hand_pool: Any) -> None:
    pool = hand_pool(max_queue=2, dispatch=Dispatch.PUSH)
    routed = pool.arrive(0)
    pool.apply(EventKind.ROUTE, request=routed, instance=0)
    slots = [pool.arrive(0) for _ in range(2)]
    assert [phase(pool, r).name for r in slots] == ["WAITING", "SHED"]


@pytest.mark.parametrize("where", ["waiting", "ready", "host", "routing"])
def test_an_unowned_request_is_cancelled_at_once(hand_pool: Any, where: str) -> None:
    dispatch = Dispatch.PUSH if where == "routing" else Dispatch.PULL
    pool = hand_pool(dispatch=dispatch)
    r = pool.arrive(0)
    if where in ("ready", "host"):
        pool.serve(0, 0)
    if where == "host":
        pool.apply(EventKind.CANCEL, request=pool.arrive(1))
        pool.arrive(1)
        pool.serve(0, 1)
        pool.apply(EventKind.KV_OUT_DONE, instance=0, n=1)
    assert pool.apply(EventKind.CANCEL, request=r) == Outcome.OK
    assert phase(pool, r) == RequestPhase.CANCELLED
    assert pool.apply(EventKind.CANCEL, request=r) == Outcome.REFUSED
    assert (Command.RETIRE, r) in pool.drain()


def test_an_owned_request_is_cancelled_at_its_boundary(hand_pool: Any) -> None:
    pool = hand_pool()
    kept, r = pool.arrive(0), pool.arrive(0)
    pool.start(0, 0)
    pool.prefill(0, 2)
    pool.drain()
    assert pool.apply(EventKind.CANCEL, request=r) == Outcome.OK
    assert pool.apply(EventKind.CANCEL, request=r) == Outcome.REFUSED
    assert pool.drain() == [(Command.JOIN, 0)]
    assert phase(pool, r) == RequestPhase.RUNNING
    pool.steps(0, 1)
    assert (phase(pool, r), pool.owned(0, BATCH)) == (RequestPhase.CANCELLED, [kept])
    # the engine met its end at the same boundary: too late
    assert pool.apply(EventKind.FINISHED, request=r) == Outcome.REFUSED


@pytest.mark.parametrize("phases", [Phases.BOTH, Phases.PREFILL])
def test_a_cancelled_request_never_waits_again(hand_pool: Any, phases: Phases) -> None:
    """Neither the end of a turn nor the end of a prefill may offer it to another turn."""
    pool = hand_pool()
    r = pool.arrive(0)
    pool.start(0, 0, phases=phases, quota_ns=0)
    if phases == Phases.BOTH:
        pool.prefill(0)
    pool.apply(EventKind.CANCEL, request=r)
    if phases == Phases.PREFILL:
        pool.prefill(0)
    else:
        pool.apply(EventKind.TURN_ENDED, instance=0)
    assert phase(pool, r) == RequestPhase.CANCELLED
    assert pool.inst()["kv_used_bytes"] == 0


def test_a_cancelled_move_out_ends_with_the_move(hand_pool: Any) -> None:
    pool = hand_pool()
    r = pool.arrive(0)
    pool.serve(0, 0)
    pool.arrive(1)
    pool.turn(0, 1)
    pool.apply(EventKind.CANCEL, request=r)
    assert pool.owned(0, OUTGOING) == [r]
    pool.apply(EventKind.KV_OUT_DONE, instance=0, n=1)
    assert phase(pool, r) == RequestPhase.CANCELLED
    assert pool.state.nodes["host_kv_used_bytes"][0] == 0


def test_only_requests_without_a_token_expire(hand_pool: Any) -> None:
    pool = hand_pool()
    served = pool.arrive(0)
    pool.serve(0, 0)
    running = pool.arrive(1)
    pool.turn(0, 1)
    waiting = pool.arrive(0)
    outcomes = [pool.apply(EventKind.EXPIRE, request=r) for r in (served, running, waiting)]
    assert outcomes == [Outcome.REFUSED, Outcome.REFUSED, Outcome.OK]
    assert phase(pool, waiting) == RequestPhase.FAILED


def test_a_request_may_expire_before_it_is_routed(hand_pool: Any) -> None:
    pool = hand_pool(dispatch=Dispatch.PUSH)
    r = pool.arrive(0)
    assert pool.apply(EventKind.EXPIRE, request=r) == Outcome.OK
    assert (phase(pool, r), pool.routing()) == (RequestPhase.FAILED, [])


def test_finished_releases_kv_wherever_the_boundary_left_it(hand_pool: Any) -> None:
    """In the batch, resident, on its way out, or dropped for want of host memory."""
    for roles, phases, host_bytes in (
        ((3,), 3, 10_000),
        ((3,), 1, 10_000),
        ((1,), 1, 10_000),
        ((1,), 1, 0),
    ):
        pool = hand_pool(roles=roles, host_kv_bytes=host_bytes)
        r = pool.arrive(1)
        pool.start(0, 1, phases=phases)
        pool.prefill(0)
        assert pool.apply(EventKind.FINISHED, request=r) == Outcome.OK
        assert (phase(pool, r), pool.stage()) == (RequestPhase.DONE, Stage.ENDING)
        assert pool.inst()["kv_used_bytes"] == pool.inst()["outgoing_bytes"] == 0
        assert pool.inst()["batch_context_tokens"] == 0


def test_moves_out_end_in_order_and_in_part(hand_pool: Any) -> None:
    pool = hand_pool()
    slots = [pool.arrive(0) for _ in range(3)]
    pool.serve(0, 0)
    pool.arrive(1)
    pool.turn(0, 1)
    pool.apply(EventKind.KV_OUT_DONE, instance=0, n=2)
    assert (pool.ready(0), pool.owned(0, OUTGOING)) == (slots[:2], slots[2:])


def test_tokens_are_charged_with_their_gaps(hand_pool: Any) -> None:
    pool = hand_pool()
    r = pool.arrive(0)
    pool.start(0, 0)
    pool.prefill(0, seconds=0.5)
    pool.apply(EventKind.STEPS, instance=0, n=3, x=0.01, y=0.01, at_s=pool.now_s + 0.06)
    req = pool.req(r)
    assert (req["emitted_tokens"], req["on_time_tokens"]) == (4, 4)
    assert req["first_token_ns"] == 500_000_000
    assert req["stall_ns"] == 30_000_000
    assert pool.state.gaps.sum() == 3
    assert pool.inst()["busy_ns"] == pool.inst()["compute_ns"] == 560_000_000


def test_a_failed_instance_loses_its_kv_and_no_request(hand_pool: Any) -> None:
    pool = hand_pool(instances_per_node=2)
    resident = pool.arrive(0)
    pool.serve(0, 0)
    pool.arrive(1)
    pool.serve(0, 1)
    pool.apply(EventKind.KV_OUT_DONE, instance=0, n=1)
    incoming, prefilling = resident, pool.arrive(0)
    pool.turn(0, 0)  # one comes from the host, one waits for its prefill, one leaves
    (leaving,) = pool.owned(0, OUTGOING)
    pool.apply(EventKind.INSTANCE_FAILED, instance=0)
    assert pool.stage(0) == Stage.DOWN
    assert pool.ready(0) == [incoming]  # its host copy was the source
    assert pool.req(incoming)["kv"] == KvPlace.HOST
    assert (pool.waiting(0), pool.waiting(1)) == ([prefilling], [leaving])
    assert pool.apply(EventKind.INSTANCE_FAILED, instance=0) == Outcome.REFUSED
    pool.start(1, 0)
    assert (pool.owned(1, INCOMING), pool.owned(1, PREFILL)) == ([incoming], [prefilling])


def test_a_failure_sends_routed_requests_back_to_the_router(hand_pool: Any) -> None:
    pool = hand_pool(dispatch=Dispatch.PUSH, instances_per_node=2)
    kept, lost, running = (pool.arrive(0) for _ in range(3))
    for r, g in ((running, 0), (kept, 1)):
        pool.apply(EventKind.ROUTE, request=r, instance=g)
    pool.turn(0, 0, joins=0)
    pool.apply(EventKind.ROUTE, request=lost, instance=0)
    pool.apply(EventKind.INSTANCE_FAILED, instance=0)
    assert (pool.routing(), pool.waiting(0)) == ([lost, running], [kept])
    assert pool.apply(EventKind.ROUTE, request=lost, instance=0) == Outcome.REFUSED
    pool.apply(EventKind.INSTANCE_JOINED, instance=0)
    assert pool.apply(EventKind.ROUTE, request=lost, instance=0) == Outcome.OK


def test_a_cancelled_request_does_not_survive_its_instance(hand_pool: Any) -> None:
    pool = hand_pool()
    r = pool.arrive(0)
    pool.start(0, 0)
    pool.apply(EventKind.CANCEL, request=r)
    pool.apply(EventKind.INSTANCE_FAILED, instance=0)
    assert phase(pool, r) == RequestPhase.CANCELLED


def test_an_instance_joins_only_when_it_was_down(hand_pool: Any) -> None:
    pool = hand_pool()
    assert pool.apply(EventKind.INSTANCE_JOINED, instance=0) == Outcome.REFUSED
    pool.apply(EventKind.INSTANCE_FAILED, instance=0)
    assert pool.apply(EventKind.INSTANCE_JOINED, instance=0) == Outcome.OK
    assert pool.stage() == Stage.FREE


def test_idle_is_an_answer_of_free_instances_only(hand_pool: Any) -> None:
    pool = hand_pool()
    assert pool.apply(EventKind.IDLE, instance=0) == Outcome.OK
    pool.arrive(0)
    pool.turn(0, 0)
    assert pool.apply(EventKind.IDLE, instance=0) == Outcome.REFUSED
    assert pool.stage() == Stage.COMMANDED


def test_switches_are_counted_with_their_time(hand_pool: Any) -> None:
    pool = hand_pool()
    for m, t in ((0, 0.0), (0, 10.0), (1, 20.0)):
        pool.apply(EventKind.CANCEL, request=pool.arrive(0, at_s=t))
        pool.drain()
        pool.arrive(m)
        pool.turn(0, m)
        if m != 0 or t == 0.0:
            pool.apply(EventKind.WEIGHTS_READY, instance=0, at_s=t + 1.5)
        pool.apply(EventKind.SWITCHED, instance=0)
        pool.prefill(0)
        for r in pool.owned(0, BATCH):
            pool.apply(EventKind.FINISHED, request=r)
        pool.apply(EventKind.TURN_ENDED, instance=0)
    assert (pool.inst()["switches"], pool.inst()["switch_ns"]) == (2, 3_000_000_000)


def test_apply_is_a_function_of_state_and_event(hand_pool: Any) -> None:
    pool = hand_pool()
    pool.arrive(0)
    pool.serve(0, 0)
    left, right = pool.replay(), pool.replay()
    event = np.zeros(1, EVENT)
    event["kind"], event["request"], event["time_ns"] = EventKind.CANCEL, 0, 10**9
    assert apply(left, event[0]) == apply(right, event[0]) == Outcome.OK
    for name in left.layout:
        assert getattr(left, name).tobytes() == getattr(right, name).tobytes()


def test_a_route_to_no_instance_sheds(hand_pool: Any) -> None:
    """Before its prefill, or with its KV in host memory."""
    pool = hand_pool(dispatch=Dispatch.PUSH, roles=(Phases.PREFILL,))
    served, fresh = pool.arrive(0), pool.arrive(1)
    pool.apply(EventKind.ROUTE, request=served, instance=0)
    pool.serve(0, 0)
    pool.apply(EventKind.KV_OUT_DONE, instance=0, n=1)
    assert pool.routing() == [served, fresh]
    for r in (served, fresh):
        assert pool.apply(EventKind.ROUTE, request=r, instance=NONE) == Outcome.OK
        assert phase(pool, r) == RequestPhase.SHED
        assert pool.apply(EventKind.ROUTE, request=r, instance=NONE) == Outcome.REFUSED
    assert pool.routing() == []
    assert pool.state.nodes["host_kv_used_bytes"][0] == 0
    assert pool.drain()[-2:] == [(Command.RETIRE, served), (Command.RETIRE, fresh)]


def test_a_run_that_goes_on_counts_tokens_and_leaves_the_rest_to_its_end(hand_pool: Any) -> None:
    pool = hand_pool()
    r, other = pool.arrive(0), pool.arrive(0)
    pool.start(0, 0)
    pool.prefill(0, 2)
    joined = pool.arrive(0)
    pool.apply(EventKind.CANCEL, request=other)
    pool.apply(EventKind.STEPS, instance=0, n=1, x=0.01, at_s=pool.now_s + 0.01, goes_on=1)
    assert pool.req(r)["emitted_tokens"] == pool.req(other)["emitted_tokens"] == 2
    assert (pool.owned(0, BATCH), pool.owned(0, PREFILL)) == ([r, other], [joined])
    assert (pool.stage(), pool.inst()["stage_ns"] / 1e9) == (Stage.DECODE, pool.now_s)
    pool.steps(0, 1)
    assert (pool.owned(0, BATCH), pool.stage()) == ([r], Stage.PREFILL)
    assert phase(pool, other) == RequestPhase.CANCELLED


def test_a_run_that_goes_on_takes_its_room_back_from_those_who_wait_to_join(
    hand_pool: Any,
) -> None:
    pool = hand_pool(vram_bytes=420)  # room for 5 blocks of 4 tokens
    r = pool.arrive(0, 4)
    pool.start(0, 0)
    pool.prefill(0)
    pool.steps(0, 2)
    joined = pool.arrive(0, 7)
    assert pool.owned(0, PREFILL) == [joined]
    for _ in range(6):
        at_s = pool.now_s + 0.01
        pool.apply(EventKind.STEPS, instance=0, n=1, x=0.01, at_s=at_s, goes_on=1)
    held = -(-int(pool.req(r)["prompt_tokens"] + pool.req(r)["emitted_tokens"]) // 4)
    assert pool.inst()["kv_used_bytes"] <= 320
    assert held == 4
