"""Each law notices the corruption of each column it guards, and names it."""

import re
from typing import Any

import pytest

from runtime.core import FOREVER_NS, NONE, Dispatch, EventKind, KvPlace, RequestPhase, Stage
from runtime.pool.integrity import IntegrityError, check_integrity


@pytest.fixture
def busy(hand_pool: Any) -> Any:
    """One of everything: instance 0 decodes r0, moves r1 in, will prefill r2, moves r5 out and
    prefetches model 1; r3 waits, r4 is ready on the host; instance 1 is idle.

    Slots: r0 batch, r1 incoming, r2 prefill, r3 waiting of model 1, r4 ready of model 1 (host),
    r5 outgoing of model 2, r6 ended, r7.. free.
    """
    pool = hand_pool(weights=(100, 100, 100), capacity=10, nodes=2, vram_bytes=2000)
    r1 = pool.arrive(0, 5)
    pool.serve(0, 0)  # r1 resident
    r4 = pool.arrive(1, 5)
    pool.serve(0, 1)  # r1 leaves
    r5 = pool.arrive(2, 5)
    pool.serve(0, 2)  # r4 leaves
    pool.apply(EventKind.KV_OUT_DONE, instance=0, n=2)
    r0 = pool.arrive(0, 5)
    pool.start(0, 0, phases=3)  # r5 leaves, r1 comes in
    pool.apply(EventKind.PREFETCH, instance=0, model=1)
    r3 = pool.arrive(1, 5)
    r6 = pool.arrive(2, 5)
    pool.apply(EventKind.CANCEL, request=r6)
    r2 = pool.arrive(0, 5)
    assert pool.owned(0, 2) == [r1]
    assert pool.owned(0, 0) == [r0, r2]
    assert (pool.owned(0, 3), pool.waiting(1), pool.ready(1)) == ([r5], [r3], [r4])
    assert pool.stage(0) == Stage.KV_IN
    return pool


def slot_in(pool: Any, where: str) -> int:
    found = {
        "waiting": pool.waiting(1),
        "ready": pool.ready(1),
        "incoming": pool.owned(0, 2),
        "prefill": pool.owned(0, 0),
        "outgoing": pool.owned(0, 3),
    }
    return int(found[where][0])


def expect(pool: Any, message: str) -> None:
    with pytest.raises(IntegrityError, match=re.escape(message)) as caught:
        check_integrity(pool.state)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("where", "column", "value", "message"),
    [
        ("waiting", "list", 0, "list is 0, expected 1"),
        ("waiting", "next", 99, "next is 99, expected the slot of a request in no other place"),
        ("waiting", "prev", 3, "prev is 3, expected -1"),
        ("prefill", "next", NONE, "tail is"),
        ("waiting", "phase", RequestPhase.READY, "phase, kv is 2, 0, expected WAITING, NOWHERE"),
        ("waiting", "phase", RequestPhase.DONE, "phase in LIVE is False, expected True"),
        ("waiting", "phase", 77, "phase is 77, expected 0..7"),
        ("waiting", "prefilled_tokens", 1, "prefilled_tokens is 1, expected 0"),
        ("prefill", "prefilled_tokens", 99, "prefilled_tokens is 99, expected 0.."),
        ("waiting", "kv", KvPlace.HOST, "phase, kv is 1, 2, expected WAITING, NOWHERE"),
        ("ready", "kv", KvPlace.MOVING_OUT, "expected READY, DEVICE or READY, HOST"),
        ("incoming", "kv", KvPlace.HOST, "phase, kv is 3, 2, expected RUNNING, MOVING_IN"),
        ("waiting", "model", 0, "model is 0, expected 1"),
        ("waiting", "model", 9, "model is 9, expected 0..2"),
        ("incoming", "model", 1, "model is 1, expected 0"),
        ("incoming", "instance", 1, "instance is 1, expected 0"),
        ("waiting", "instance", 0, "instance is 0, expected -1"),
        ("ready", "node", NONE, "node is -1, expected 0..1"),
        ("outgoing", "node", 1, "node is 1, expected 0"),
        ("waiting", "route", 0, "route is 0, expected -1"),
        ("waiting", "is_cancelled", 1, "is_cancelled is 1, expected 0"),
        ("ready", "on_time_tokens", 2, "on_time_tokens is 2, expected 0..1"),
        ("ready", "emitted_tokens", 0, "on_time_tokens is 1, expected 0..0"),
        ("waiting", "first_token_ns", 0, "first_token_ns is 0, expected -1"),
        ("ready", "first_token_ns", NONE, "first_token_ns is -1, expected"),
        ("ready", "last_token_ns", 1 << 60, "last_token_ns is 1152921504606846976, expected"),
        ("prefill", "prompt_tokens", 50, "instances[0].kv_used_bytes is"),
        ("ready", "prompt_tokens", 50, "nodes[0].host_kv_used_bytes is"),
    ],
)
def test_corrupt_request_is_named(
    busy: Any, where: str, column: str, value: int, message: str
) -> None:
    r = slot_in(busy, where)
    busy.state.requests[column][r] = value
    expect(busy, message)


@pytest.mark.parametrize(
    ("table", "row", "column", "value", "message"),
    [
        ("lists", 1, "head", NONE, "lists[1].tail is"),
        ("lists", 0, "head", 3, "expected"),
        ("lists", 1, "tail", NONE, "lists[1].tail is -1, expected"),
        ("lists", 1, "count", 0, "lists[1].count is 0, expected 1"),
        ("pool", 0, "free_head", NONE, "phase == FREE is True, expected False"),
        ("pool", 0, "free_head", 0, "expected"),
        ("pool", 0, "in_flight", 0, "pool[0].in_flight is 0, expected 7"),
        ("pool", 0, "cancelling", 1, "pool[].cancelling is 1, expected 0"),
        ("models", 1, "waiting_s", 0.0, "models[1].waiting_s is False, expected True"),
        ("pool", 0, "ranked", 1, "pool[].ranked is 1, expected 0"),
        ("pool", 0, "claimable", 3, "pool[].claimable is 3, expected 2"),
        ("pool", 0, "commands", 10_000, "pool[].commands is 10000, expected 0.."),
        ("instances", 0, "kv_used_bytes", 7, "instances[0].kv_used_bytes is 7, expected 320"),
        ("instances", 1, "kv_promised_bytes", 40, "instances[1].kv_used_bytes is 0, expected -40"),
        ("instances", 0, "outgoing_bytes", 0, "instances[0].outgoing_bytes is 0, expected 80"),
        ("instances", 0, "batch_context_tokens", 1, "batch_context_tokens is 1, expected 0"),
        ("instances", 1, "routed", 1, "instances[1].routed is 1, expected 0"),
        ("instances", 0, "model", 1, "requests[0].model is 0, expected 1"),
        ("instances", 0, "active_slot", NONE, "instances[0].active_slot is True, expected False"),
        ("instances", 0, "loading_slot", NONE, "slots[0, 0].state is True, expected False"),
        ("instances", 0, "load_left_ns", -5, "load_left_ns is -5, expected 0.."),
        ("instances", 0, "stage", Stage.DECODE, "DECODE requests is 0, expected 1.."),
        ("instances", 0, "stage", Stage.IDLE, "models[0].running_on is 1, expected 0"),
        ("instances", 0, "stage", 99, "instances[0].stage is 99, expected 0..8"),
        ("instances", 0, "role", 1, "instances[0].turn_phases is 2, expected 0"),
        ("models", 0, "running_on", 0, "models[0].running_on is 0, expected 1"),
        ("models", 1, "prefetched_on", 0, "models[1].prefetched_on is 0, expected 1"),
        ("models", 1, "waiting_since_ns", FOREVER_NS, "models[1].waiting_since_ns is"),
        ("models", 0, "waiting_since_ns", 0, "models[0].waiting_since_ns is 0, expected"),
        ("models", 0, "block_bytes", 1, "instances[0].kv_used_bytes is"),
        ("nodes", 0, "host_kv_used_bytes", 0, "nodes[0].host_kv_used_bytes is 0, expected"),
        ("nodes", 0, "host_kv_bytes", 10, "nodes[0].host_kv_used_bytes is"),
        ("nodes", 1, "host_weight_used_bytes", 1, "nodes[1].host_weight_used_bytes is 1, expect"),
        ("nodes", 1, "host_weight_bytes", 1, "host_weight_used_bytes is 300, expected 0..1"),
        ("hosted", (1, 2), "is_cached", 0, "nodes[1].host_weight_used_bytes is 300, expected 200"),
        ("pool", 0, "vram_bytes", 300, "instances[0].kv_used_bytes is"),
        ("slots", (0, 1), "model", 1, "slots[0, 1].model is 1, expected -1"),
        ("slots", (0, 1), "state", 1, "slots[0, 1].state is True, expected False"),
        ("slots", (1, 0), "state", 2, "slots[1, 0].state is False, expected True"),
        ("slots", (1, 0), "is_ahead", 1, "slots[1, 0].is_ahead is 1, expected 0"),
        ("pool", 0, "queued", 1, "pool[].queued is 1, expected 0"),
        ("instances", 0, "queued_bytes", 9, "instances[0].queued_bytes is 9, expected 0"),
        ("pool", 0, "weight_budget_bytes", 150, "weight_bytes is"),
        ("links", 0, "in_flows", 7, "links[0].in_flows is 7, expected"),
        ("links", 1, "out_flows", 7, "links[1].out_flows is 7, expected"),
        ("instances", 0, "moving_in", 9, "instances[0].moving_in is 9, expected 0.."),
        ("outbox", 0, "kind", 9, "outbox[0].kind is 9, expected 0..6"),
        ("outbox", 0, "instance", 5, "outbox[0].instance is 5, expected 0..1"),
    ],
)
def test_corrupt_table_is_named(
    busy: Any, table: str, row: Any, column: str, value: int, message: str
) -> None:
    getattr(busy.state, table)[column][row] = value
    expect(busy, message)


def test_a_retired_slot_must_have_ended(busy: Any) -> None:
    retires = busy.state.outbox["kind"] == 4
    busy.state.outbox["instance"][retires.argmax()] = slot_in(busy, "waiting")
    expect(busy, "expected 4..7")


def test_a_request_in_two_lists_is_named(busy: Any) -> None:
    busy.state.lists[[0]] = busy.state.lists[[1]]
    expect(busy, "lists[1].head")


def test_a_cycle_in_the_free_chain_is_named(busy: Any) -> None:
    head = busy.state.pool["free_head"][0]
    busy.state.requests["next"][head] = head
    expect(busy, f"pool[0].free_head is {head}, expected a chain")


def test_a_down_instance_holds_nothing(busy: Any) -> None:
    busy.apply(EventKind.INSTANCE_FAILED, instance=1)
    busy.state.slots["model"][1], busy.state.slots["state"][1, 0] = (2, NONE), 1
    busy.state.instances["loading_slot"][1] = 0
    expect(busy, "instances[1].loading_slot is 0, expected -1")


def test_a_blocked_turn_waits_for_a_move_out(hand_pool: Any) -> None:
    pool = hand_pool()
    pool.arrive(0)
    pool.start(0, 0)
    pool.state.instances["stage"] = Stage.BLOCKED
    expect(pool, "instances[0].outgoing_bytes is 0, expected 1..")


def test_a_pull_pool_routes_nothing_and_a_push_pool_everything(hand_pool: Any) -> None:
    pool = hand_pool(dispatch=Dispatch.PUSH)
    r = pool.arrive(0)
    pool.apply(EventKind.ROUTE, request=r, instance=0)
    pool.state.requests["route"][r] = NONE
    expect(pool, f"requests[{r}].route is -1, expected 0..0")
    pool.state.requests["route"][r] = 0
    check_integrity(pool.state)


def test_integrity_sees_requests_out_of_order(hand_pool: Any) -> None:
    pool = hand_pool()
    first, second = pool.arrive(0), pool.arrive(0)
    pool.state.requests["id"][[first, second]] = 5, 4
    with pytest.raises(IntegrityError, match=rf"requests\[{first}\].next is {second}, expected"):
        check_integrity(pool.state)
