"""INTERRUPT: when an arrival poses one, of which instance, and what keep and stop do."""

from typing import Any

import pytest

from runtime.core import (
    NONE,
    NS,
    Command,
    DecisionKind,
    Dispatch,
    EventKind,
    Phases,
    SloSpec,
    Stage,
)
from runtime.pool.transitions import Outcome

SECOND = {"instances_per_node": 2, "interrupt_slack_s": 1.0}  # a load takes 1 s, as does the TTFT
QUOTA_NS = 60 * NS
NOTHING = (DecisionKind.NONE, NONE)


def decoding(hand_pool: Any, turns: int = 2, **changes: Any) -> Any:
    """Instance 0 decodes model 0; instance 1, later, model 1; model 2 has no work yet."""
    pool = hand_pool(weights=(100, 100, 100), **(SECOND | changes))
    for g in range(turns):
        r = pool.arrive(g, at_s=pool.now_s + 1.0)
        if changes.get("dispatch") is Dispatch.PUSH:
            pool.apply(EventKind.ROUTE, request=r, instance=g)
        pool.start(g, g, quota_ns=QUOTA_NS)
        pool.prefill(g)
    pool.drain()
    no_prefetch(pool)
    return pool


def no_prefetch(pool: Any) -> None:
    for g in range(len(pool.state.instances)):
        pool.apply(EventKind.PREFETCH, instance=g)


def come(pool: Any, model: int = 2) -> int:
    """A request of a model arrives half a second later; nobody prefetches it."""
    r: int = pool.arrive(model, at_s=pool.now_s + 0.5)
    no_prefetch(pool)
    pool.drain()
    return r


def stop(pool: Any, g: int, n: int = 1) -> Outcome:
    outcome: Outcome = pool.apply(EventKind.INTERRUPT, instance=g, model=2, n=n)
    return outcome


def test_urgent_arrival_asks_about_the_longest_turn_and_its_model(hand_pool: Any) -> None:
    pool = decoding(hand_pool)
    come(pool)
    assert pool.decision() == (DecisionKind.INTERRUPT, 0)
    posed = pool.posed(DecisionKind.INTERRUPT, 0)[0]
    assert (posed["kind"], posed["model"], posed["n"]) == (EventKind.INTERRUPT, 2, 0)


def test_instance_that_has_prefetched_the_model_comes_before_a_longer_turn(hand_pool: Any) -> None:
    pool = decoding(hand_pool)
    come(pool)
    stop(pool, 0, n=0)
    assert pool.apply(EventKind.PREFETCH, instance=1, model=2) == Outcome.OK
    pool.apply(EventKind.WEIGHTS_READY, instance=1)
    come(pool)
    assert pool.decision() == (DecisionKind.INTERRUPT, 1)


def test_longest_turn_is_the_one_ordered_first_not_the_lowest(hand_pool: Any) -> None:
    pool = decoding(hand_pool, turns=0)
    for g in (1, 0):
        pool.arrive(g, at_s=pool.now_s + 1.0)
        pool.start(g, g, quota_ns=QUOTA_NS)
        pool.prefill(g)
    come(pool)
    assert pool.decision() == (DecisionKind.INTERRUPT, 1)


@pytest.mark.parametrize(
    ("turns", "model", "changes"),
    [
        (2, 2, {"interrupt_slack_s": 0.0}),  # the default
        (1, 2, {}),  # instance 1 is free
        (2, 1, {}),  # its model runs: it joins, or waits for that turn
        (2, 2, {"token_preempt": False}),
    ],
    ids=["off", "an instance is free", "its model runs", "no preemption"],
)
def test_interrupt_is_not_asked(
    hand_pool: Any, turns: int, model: int, changes: dict[str, Any]
) -> None:
    pool = decoding(hand_pool, turns, **changes)
    come(pool, model)
    if turns == 1:
        assert pool.decision() == (DecisionKind.TURN, 1)
        pool.apply(EventKind.IDLE, instance=1)  # by choice: it could have taken the arrival
    assert pool.decision()[0] in (DecisionKind.NONE, DecisionKind.PREFETCH)


@pytest.mark.parametrize(
    ("quota_s", "is_asked"), [(1.0, False), (1.49, False), (1.51, True)]
)  # 0.5 s of it have passed; the load takes 1 s, so that a TTFT of 3 s leaves 2 s or the rest
def test_slack_counts_what_is_left_of_the_quota_and_the_switch(
    hand_pool: Any, quota_s: float, is_asked: bool
) -> None:
    slo = SloSpec(ttft_s=3.0)
    pool = decoding(hand_pool, 0, instances_per_node=1, slo=slo)
    pool.arrive(0)
    pool.start(0, 0, quota_ns=round(quota_s * NS))
    pool.prefill(0)
    pool.apply(EventKind.PREFETCH, instance=0)
    pool.arrive(2, at_s=pool.now_s + 0.5)
    pool.apply(EventKind.PREFETCH, instance=0)
    asked = pool.decision()
    assert asked == ((DecisionKind.INTERRUPT, 0) if is_asked else NOTHING)


def test_turn_that_prefills_is_not_stopped(hand_pool: Any) -> None:
    pool = decoding(hand_pool, 1, instances_per_node=1)
    pool.arrive(0)  # joins at the next boundary
    pool.steps(0, 1)
    assert pool.stage(0) == Stage.PREFILL
    come(pool)
    assert pool.decision()[0] != DecisionKind.INTERRUPT
    assert stop(pool, 0) == Outcome.REFUSED


def test_arrival_that_may_not_join_the_turn_of_its_model_asks_nothing(hand_pool: Any) -> None:
    pool = decoding(hand_pool, 1)
    pool.arrive(1)
    pool.start(1, 1, quota_ns=QUOTA_NS, joins=0)
    pool.prefill(1)
    come(pool, 1)
    assert pool.decision()[0] in (DecisionKind.NONE, DecisionKind.PREFETCH)


def test_arrival_asks_once_and_only_in_its_instant(hand_pool: Any) -> None:
    pool = decoding(hand_pool)
    come(pool)
    assert stop(pool, 0, n=0) == Outcome.OK
    assert pool.decision()[0] != DecisionKind.INTERRUPT
    assert stop(pool, 0) == Outcome.REFUSED
    come(pool)
    pool.steps(1, 1, seconds=0.9)
    assert pool.decision()[0] != DecisionKind.INTERRUPT
    assert stop(pool, 0) == Outcome.REFUSED


def test_stopped_turn_ends_at_the_next_step_and_nothing_is_recomputed(hand_pool: Any) -> None:
    pool = decoding(hand_pool)
    member = pool.owned(0, 1)[0]
    come(pool)
    assert stop(pool, 0) == Outcome.OK
    assert pool.drain() == [(Command.JOIN, 0)]
    later = pool.arrive(0)
    assert pool.waiting(0) == [later]  # it may not join
    pool.steps(0, 1)
    assert pool.stage(0) == Stage.ENDING
    pool.apply(EventKind.TURN_ENDED, instance=0)
    assert pool.ready(0) == [member]
    assert pool.req(member)["emitted_tokens"] == 2
    assert int(pool.state.pool["recomputed"][0]) == 0
    assert pool.decision() == (DecisionKind.TURN, 0)


def test_stopped_instance_counts_as_free_for_the_next_arrival(hand_pool: Any) -> None:
    pool = decoding(hand_pool, interrupt_slack_s=0.1)
    come(pool)
    stop(pool, 0)
    come(pool)
    assert pool.decision()[0] != DecisionKind.INTERRUPT


def test_routed_arrival_asks_about_its_own_instance(hand_pool: Any) -> None:
    pool = decoding(hand_pool, dispatch=Dispatch.PUSH)
    r = pool.arrive(2, at_s=pool.now_s + 0.5)
    assert pool.decision() == (DecisionKind.ROUTE, r)
    pool.apply(EventKind.ROUTE, request=r, instance=1)
    assert pool.decision() == (DecisionKind.INTERRUPT, 1)


def test_instance_that_cannot_prefill_is_not_asked(hand_pool: Any) -> None:
    pool = decoding(hand_pool, roles=(Phases.BOTH, Phases.BOTH))
    pool.state.instances["role"][0] = Phases.DECODE
    pool.state.instances["turn_phases"][0] = Phases.DECODE
    come(pool)
    assert pool.decision() == (DecisionKind.INTERRUPT, 1)
