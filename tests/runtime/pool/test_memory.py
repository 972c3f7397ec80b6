"""Memory in the engine's unit: whole blocks, room for the next token, moves charged twice.

One instance has 1000 bytes: 25 blocks of 4 tokens x 10 bytes.
"""

from typing import Any

import pytest

from runtime.core import Dispatch, EventKind, KvPlace, Phases, RequestPhase, Stage
from runtime.errors import UserError


@pytest.mark.parametrize(
    ("prompt", "room", "after_one"), [(1, 40, 40), (3, 40, 40), (4, 80, 80), (7, 80, 80)]
)
def test_a_waiting_request_holds_room_for_the_token_its_prefill_makes(
    hand_pool: Any, prompt: int, room: int, after_one: int
) -> None:
    pool = hand_pool()
    pool.arrive(0, prompt)
    pool.start(0, 0)
    assert pool.inst()["kv_used_bytes"] == room
    pool.prefill(0)
    assert pool.inst()["kv_used_bytes"] == after_one


@pytest.mark.parametrize(("steps", "held"), [(1, 80), (2, 80), (3, 80), (4, 120), (7, 120)])
def test_decode_steps_take_blocks_as_contexts_cross_them(
    hand_pool: Any, steps: int, held: int
) -> None:
    pool = hand_pool()
    pool.arrive(0, 4)
    pool.start(0, 0)
    pool.prefill(0)
    pool.steps(0, steps)
    assert pool.inst()["kv_used_bytes"] == held
    assert pool.inst()["batch_context_tokens"] == 5 + steps


def test_a_move_out_stays_charged_on_both_sides_until_it_ends(hand_pool: Any) -> None:
    pool = hand_pool()
    r = pool.arrive(0, 4)
    pool.serve(0, 0)
    pool.arrive(1, 4)
    pool.turn(0, 1)
    inst, node = pool.inst(), pool.state.nodes[0]
    assert pool.req(r)["kv"] == KvPlace.MOVING_OUT
    assert (inst["kv_used_bytes"], inst["outgoing_bytes"]) == (160, 80)
    assert node["host_kv_used_bytes"] == 80
    pool.apply(EventKind.KV_OUT_DONE, instance=0, n=1)
    assert (inst["kv_used_bytes"], inst["outgoing_bytes"]) == (80, 0)
    assert node["host_kv_used_bytes"] == 80


def test_a_move_in_stays_charged_on_both_sides_until_it_ends(hand_pool: Any) -> None:
    pool = hand_pool()
    r = pool.arrive(0, 4)
    pool.serve(0, 0)
    pool.arrive(1, 4)
    pool.serve(0, 1)
    pool.apply(EventKind.KV_OUT_DONE, instance=0, n=1)
    pool.start(0, 0)
    inst, node = pool.inst(), pool.state.nodes[0]
    assert (pool.stage(), pool.req(r)["kv"]) == (Stage.KV_IN, KvPlace.MOVING_IN)
    assert inst["kv_used_bytes"] == 160  # with the resident of model 1 on its way out
    assert node["host_kv_used_bytes"] == 160
    pool.apply(EventKind.KV_IN_DONE, instance=0, n=1)
    assert (node["host_kv_used_bytes"], pool.req(r)["kv"]) == (80, KvPlace.DEVICE)


def test_without_host_memory_kv_is_dropped_and_recomputed(hand_pool: Any) -> None:
    pool = hand_pool(host_kv_bytes=79)
    r = pool.arrive(0, 4)
    pool.serve(0, 0)
    pool.arrive(1, 4)
    pool.turn(0, 1)
    assert (pool.req(r)["phase"], pool.req(r)["kv"]) == (RequestPhase.WAITING, KvPlace.NOWHERE)
    assert pool.state.pool["recomputed"] == 1
    assert pool.inst()["kv_used_bytes"] == 80  # of model 1 alone
    assert pool.waiting(0) == [r]


def test_recomputing_prefills_prompt_and_emitted_tokens(hand_pool: Any) -> None:
    pool = hand_pool(host_kv_bytes=0)
    r = pool.arrive(0, 4)
    pool.start(0, 0)
    pool.prefill(0)
    pool.steps(0, 3)  # 8 tokens of context
    pool.apply(EventKind.INSTANCE_FAILED, instance=0)
    pool.apply(EventKind.INSTANCE_JOINED, instance=0)
    pool.start(0, 0)
    assert pool.inst()["kv_used_bytes"] == 120  # 8 tokens and the next one: 3 blocks
    pool.prefill(0)
    assert pool.req(r)["emitted_tokens"] == 5


@pytest.mark.parametrize(
    ("lookahead", "prompt", "phase"),
    [
        (0, 99, RequestPhase.WAITING),
        (0, 100, RequestPhase.FAILED),
        (20, 79, RequestPhase.WAITING),
        (20, 80, RequestPhase.FAILED),
    ],
)
def test_a_request_that_never_fits_fails_at_once(
    hand_pool: Any, lookahead: int, prompt: int, phase: RequestPhase
) -> None:
    pool = hand_pool(lookahead_tokens=lookahead)
    assert pool.req(pool.arrive(0, prompt))["phase"] == phase


@pytest.mark.parametrize(("lookahead", "taken"), [(0, 5), (4, 4), (30, 2)])
def test_a_turn_takes_what_fits_with_its_look_ahead(
    hand_pool: Any, lookahead: int, taken: int
) -> None:
    """Prompts of 16 tokens: 5 blocks with the next token, 5 with 4 tokens to spare, 12 with 30."""
    pool = hand_pool(lookahead_tokens=lookahead, vram_bytes=1200 if lookahead != 4 else 1199)
    for _ in range(6):
        pool.arrive(0, 16)
    pool.turn(0, 0)
    assert pool.size(0, 0) == taken


def test_loaded_only_slots_leave_each_model_its_own_capacity(hand_pool: Any) -> None:
    pool = hand_pool(weights=(1000, 100), slots_reserved=False)
    small = [pool.req(pool.arrive(0, n))["phase"] for n in (19, 20)]
    large = [pool.req(pool.arrive(1, n))["phase"] for n in (107, 108)]
    assert small == [RequestPhase.WAITING, RequestPhase.FAILED]  # 200 bytes: 5 blocks
    assert large == [RequestPhase.WAITING, RequestPhase.FAILED]  # 1100 bytes: 27 blocks


def test_slots_that_leave_no_room_for_kv_are_the_users_mistake(hand_pool: Any) -> None:
    with pytest.raises(UserError, match=r"2 weight slots of 0\.0 GB leave no room for KV"):
        hand_pool(weights=(600, 10))


def test_a_pool_without_room_for_one_block_of_a_model_is_the_users_mistake(hand_pool: Any) -> None:
    with pytest.raises(UserError, match=r"pool\.kv_fraction=0\.01: .* at least one block of "):
        hand_pool(kv_fraction=0.01)


def test_a_turn_whose_kv_does_not_fit_waits_for_the_moves_out(hand_pool: Any) -> None:
    pool = hand_pool()
    pool.arrive(0, 59)  # 15 blocks
    pool.serve(0, 0)
    pool.arrive(1, 59)
    pool.start(0, 1)
    assert pool.stage() == Stage.BLOCKED
    assert (pool.inst()["kv_used_bytes"], pool.inst()["kv_promised_bytes"]) == (600, 600)
    pool.apply(EventKind.KV_OUT_DONE, instance=0, n=1)
    assert pool.stage() == Stage.PREFILL
    assert (pool.inst()["kv_used_bytes"], pool.inst()["kv_promised_bytes"]) == (600, 0)


def test_residents_that_take_no_part_yield_their_room(hand_pool: Any) -> None:
    """A prefill-only turn beside a resident of the same model must not wait for ever."""
    pool = hand_pool()
    resident = pool.arrive(0, 59)
    pool.serve(0, 0)
    pool.arrive(0, 59)
    pool.start(0, 0, phases=Phases.PREFILL)
    assert (pool.stage(), pool.owned(0, 3)) == (Stage.BLOCKED, [resident])
    pool.apply(EventKind.KV_OUT_DONE, instance=0, n=1)
    assert pool.stage() == Stage.PREFILL


def test_residents_that_take_no_part_stay_while_there_is_room(hand_pool: Any) -> None:
    pool = hand_pool()
    resident = pool.arrive(0, 29)
    pool.serve(0, 0)
    pool.arrive(0, 29)
    pool.start(0, 0, phases=Phases.PREFILL)
    assert (pool.stage(), pool.ready(0)) == (Stage.PREFILL, [resident])


def test_a_batch_that_outgrows_memory_ends_its_turn_and_splits(hand_pool: Any) -> None:
    """Two contexts of 47 fill 24 blocks; the 25th serves one of them only."""
    pool = hand_pool()
    first, second = pool.arrive(0, 47), pool.arrive(0, 47)
    pool.start(0, 0)
    pool.prefill(0, 2)
    assert pool.stage() == Stage.ENDING  # 48 tokens each: the next step needs two blocks
    pool.apply(EventKind.TURN_ENDED, instance=0)
    pool.start(0, 0)
    assert pool.owned(0, 1) == [first]
    assert pool.owned(0, 3) == [second]
    assert pool.stage() == Stage.DECODE


def test_a_request_that_joined_goes_back_when_the_batch_grew_into_its_room(hand_pool: Any) -> None:
    """At the start of the run 8 blocks were free: the run used 4, the joiner's 7 do not fit."""
    pool = hand_pool()
    running = pool.arrive(0, 67)  # 17 blocks
    pool.start(0, 0)
    pool.prefill(0)
    joined = pool.arrive(0, 27)
    assert pool.owned(0, 0) == [joined]
    pool.steps(0, 16)
    assert (pool.owned(0, 1), pool.waiting(0)) == ([running], [joined])
    assert pool.inst()["kv_used_bytes"] == 21 * 40
    assert pool.stage() == Stage.DECODE


def test_a_joined_move_in_goes_back_to_the_host(hand_pool: Any) -> None:
    """It was routed from a prefill instance while the batch grew."""
    roles = (Phases.PREFILL, Phases.BOTH)
    pool = hand_pool(dispatch=Dispatch.PUSH, nodes=2, roles=roles)
    for g, prompt in ((1, 67), (0, 26)):
        pool.apply(EventKind.ROUTE, request=pool.arrive(0, prompt), instance=g)
    pool.start(1, 0)
    pool.prefill(1)
    pool.serve(0, 0)
    pool.apply(EventKind.KV_OUT_DONE, instance=0, n=1)
    (joined,) = pool.routing()
    pool.apply(EventKind.ROUTE, request=joined, instance=1)
    assert pool.owned(1, 2) == [joined]
    pool.steps(1, 16)
    assert (pool.ready(0), pool.req(joined)["kv"]) == ([joined], KvPlace.HOST)
    assert pool.req(joined)["route"] == 1
