"""What holds of every run, whatever the pool: the clock, the wait bound, and determinism."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from aegaeon_rl.policies.registry import POLICIES, make_policy
from reference.scenarios import Scenario, scenarios
from runtime.core import NONE, NS, DecisionKind, Dispatch, EventKind, Phases, PoolSpec
from runtime.emulator.loop import Signal, advance, answer
from runtime.emulator.run import (
    PolicyStuckError,
    build_sim,
    drive,
    keep_unfinished,
    new_memory,
    workload_of,
)
from runtime.emulator.script import script_of
from runtime.emulator.tables import Sim, grow_journal, grow_slots
from runtime.pool.candidates import has_turn_work
from runtime.pool.placement import preload
from runtime.pool.state import State
from runtime.protocol import Places, Policy

EXAMPLES = 20
Left = tuple[bytes, bytes, bool]  # journal, results, did it get stuck


def runnable(scenario: Scenario) -> bool:
    """Can every policy run the pool?"""
    return scenario.pool.instances > 1 and Phases.BOTH not in scenario.pool.roles


def prepared(scenario: Scenario, policy: Policy) -> Sim:
    sim = build_sim(
        scenario.trace,
        policy.configure(scenario.pool),
        scenario.slo,
        horizon_s=scenario.horizon_s,
        journal_rows=16,
        script=script_of(scenario.script),
    )
    if isinstance(policy, Places):
        preload(sim.state, policy.placement(sim.state, workload_of(scenario.trace)))
    return sim


def left_by(sim: Sim, is_stuck: bool) -> Left:
    journal = sim.journal[: sim.control["journal_rows"][0]]
    return journal.tobytes(), sim.results.tobytes(), is_stuck


def alone(scenario: Scenario, policy: Policy) -> Left:
    sim = prepared(scenario, policy)
    try:
        drive(sim, policy)
    except PolicyStuckError:
        return left_by(sim, True)
    return left_by(sim, False)


def in_turn(pools: list[tuple[Scenario, Policy]]) -> list[Left]:
    """One decision of each pool after the other, until all have ended."""
    sims = [prepared(scenario, policy) for scenario, policy in pools]
    memories = [new_memory(sim, policy) for sim, (_, policy) in zip(sims, pools, strict=True)]
    left: list[Left | None] = [None] * len(pools)
    while None in left:
        for p, (sim, memory) in enumerate(zip(sims, memories, strict=True)):
            if left[p] is None:
                left[p] = one_decision(sim, pools[p][1], memory)
    return [found for found in left if found is not None]


def one_decision(sim: Sim, policy: Policy, memory: Any) -> Left | None:
    signal = advance(sim)
    if signal == Signal.DECISION:
        control = sim.control[0]
        kind, index = int(control["decision_kind"]), int(control["decision_index"])
        policy.decide(sim.state, kind, index, sim.event[0], memory)
        answer(sim)
    elif signal == Signal.SLOTS_FULL:
        grow_slots(sim)
    elif signal == Signal.JOURNAL_FULL:
        grow_journal(sim)
    else:
        if signal == Signal.END:
            keep_unfinished(sim)
        return left_by(sim, signal == Signal.STUCK)
    return None


@pytest.mark.parametrize("name", POLICIES)
@settings(max_examples=EXAMPLES, deadline=None)
@given(scenario=scenarios().filter(runnable))
def test_clock_of_a_journal_never_goes_back(name: str, scenario: Scenario) -> None:
    sim = prepared(scenario, make_policy(name))
    try:
        drive(sim, make_policy(name))
    except PolicyStuckError:
        assume(False)
    journal = sim.journal[: sim.control["journal_rows"][0]]
    times = journal["time_ns"].tolist()
    assert all(before <= after for before, after in pairwise(times))
    horizon_s = scenario.horizon_s
    assert horizon_s is None or max(times, default=0) <= round(horizon_s * NS)
    results = sim.results
    has_token = results["first_token_ns"] != NONE
    assert (results["first_token_ns"] > results["arrival_ns"])[has_token].all()
    assert (results["last_token_ns"] >= results["first_token_ns"])[has_token].all()


@settings(max_examples=EXAMPLES, deadline=None)
@given(
    pools=st.lists(
        st.tuples(scenarios().filter(runnable), st.sampled_from([*POLICIES])),
        min_size=2,
        max_size=4,
    )
)
def test_run_is_the_same_alone_in_a_batch_and_in_two_threads(
    pools: list[tuple[Scenario, str]],
) -> None:
    made = [(scenario, make_policy(name)) for scenario, name in pools]
    expected = [alone(*pool) for pool in made]
    assert in_turn(made) == expected
    with ThreadPoolExecutor(2) as threads:
        assert list(threads.map(lambda pool: alone(*pool), made)) == expected


class Asked(NamedTuple):
    """A TURN decision: since when each model waits that the instance could serve."""

    time_ns: int
    since_ns: dict[int, int]


class Stubborn:
    """Serves the lowest model that has work, whoever starves; so what it answers is refused."""

    name = "stubborn"

    def __init__(self, quota_ns: int) -> None:
        self.quota_ns, self.asked = quota_ns, list[Asked]()

    def configure(self, pool: PoolSpec) -> PoolSpec:
        return replace(pool, roles=(), dispatch=Dispatch.PULL)

    def memory(self, state: State) -> None:
        return None

    def decide(self, state: State, kind: int, index: int, event: Any, memory: None) -> None:
        if kind != DecisionKind.TURN:
            return
        models = range(len(state.models))
        able = [m for m in models if has_turn_work(state, index, m, Phases.BOTH, NONE)]
        since = state.models["waiting_since_ns"]
        now_ns = int(state.pool["now_ns"][0])
        self.asked.append(Asked(now_ns, {m: int(since[m]) for m in able}))
        event["kind"], event["model"], event["quota_ns"] = EventKind.TURN, able[0], self.quota_ns

    def drive(self, sim: Any, memory: None) -> int:
        signal = advance(sim)
        while signal == Signal.DECISION:
            control = sim.control[0]
            kind, index = int(control["decision_kind"]), int(control["decision_index"])
            self.decide(sim.state, kind, index, sim.event[0], memory)
            answer(sim)
            signal = advance(sim)
        return int(signal)


@settings(max_examples=4 * EXAMPLES, deadline=None)
@given(
    scenario=scenarios(),
    bound_s=st.sampled_from([0.05, 0.3, 1.0, 3.0]),
    quota_ms=st.integers(1, 500),
)
def test_no_model_that_could_be_served_waits_beyond_the_bound(
    scenario: Scenario, bound_s: float, quota_ms: int
) -> None:
    """Once the bound has passed, every turn goes to a model that starves: on the only instance of
    a pool of two models, nobody waits longer than the bound and one turn. Not so if a turn may be
    longer than the bound: who was served starves again, and a policy chooses among the starving."""
    policy = Stubborn(quota_ms * 1_000_000)
    pool = replace(scenario.pool, max_wait_s=bound_s)
    sim = prepared(scenario._replace(pool=pool), policy)
    drive(sim, policy)
    journal = sim.journal[: sim.control["journal_rows"][0]]
    turns = [row for row in journal if row["kind"] == EventKind.TURN]
    bound_ns, longest_ns = round(bound_s * NS), longest_turn_ns(journal)
    is_alone = len(scenario.trace.models) <= 2 and pool.instances == 1 and is_steady(journal)
    for row, asked in zip(turns, policy.asked, strict=True):
        waits = {m: asked.time_ns - since for m, since in asked.since_ns.items()}
        if max(waits.values()) > bound_ns:
            assert waits[int(row["model"])] > bound_ns
        if is_alone and longest_ns <= bound_ns:
            assert max(waits.values()) <= bound_ns + longest_ns


def longest_turn_ns(journal: Any) -> int:
    begun: dict[int, int] = {}
    longest = 0
    for row in journal:
        if row["kind"] == EventKind.TURN:
            begun[int(row["instance"])] = int(row["time_ns"])
        elif row["kind"] == EventKind.TURN_ENDED:
            longest = max(longest, int(row["time_ns"]) - begun.pop(int(row["instance"])))
    return longest


def is_steady(journal: Any) -> bool:
    """No instance failed."""
    return not np.any(journal["kind"] == EventKind.INSTANCE_FAILED)
