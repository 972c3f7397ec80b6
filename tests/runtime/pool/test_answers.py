"""What `is_possible` lets through the core takes, and it lets through what policies answer."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aegaeon_rl.policies.registry import POLICIES, make_policy
from reference.scenarios import Scenario, scenarios
from runtime.core import FOREVER_NS, NONE, EventKind, Phases
from runtime.emulator.loop import Signal, advance, answer
from runtime.emulator.run import build_sim, new_memory, workload_of
from runtime.emulator.script import script_of
from runtime.emulator.tables import Sim, grow_slots
from runtime.pool.answers import is_possible
from runtime.pool.placement import preload
from runtime.pool.state import State
from runtime.pool.transitions import Outcome, apply
from runtime.protocol import Places

MOST = 3000  # decisions of one run that are looked at


def runnable(scenario: Scenario) -> bool:
    return scenario.pool.instances > 1 and Phases.BOTH not in scenario.pool.roles


def prepared(scenario: Scenario, policy: Any) -> Sim:
    sim = build_sim(
        scenario.trace,
        policy.configure(scenario.pool),
        scenario.slo,
        horizon_s=scenario.horizon_s,
        journal_rows=0,
        script=script_of(scenario.script),
    )
    if isinstance(policy, Places):
        preload(sim.state, policy.placement(sim.state, workload_of(scenario.trace)))
    return sim


def takes(state: State, event: Any) -> bool:
    """Would the core?"""
    return apply(state.copy(), event) != Outcome.REFUSED


@pytest.mark.parametrize("name", POLICIES)
@settings(max_examples=10, deadline=None)
@given(scenario=scenarios().filter(runnable))
def test_answer_of_a_policy_is_possible_where_the_core_takes_it(
    name: str, scenario: Scenario
) -> None:
    policy = make_policy(name)
    sim = prepared(scenario, policy)
    memory = new_memory(sim, policy)
    for _ in range(MOST):
        signal = advance(sim)
        if signal == Signal.SLOTS_FULL:
            grow_slots(sim)
        elif signal != Signal.DECISION:
            break
        else:
            control, event = sim.control[0], sim.event[0]
            kind, index = int(control["decision_kind"]), int(control["decision_index"])
            policy.decide(sim.state, kind, index, event, memory)
            is_idle = event["kind"] == EventKind.IDLE
            assert is_idle or is_possible(sim.state, kind, index, event) == takes(sim.state, event)
            answer(sim)


ROW = st.integers(-3, 5)
ANSWERS = st.fixed_dictionaries(
    {
        "kind": st.sampled_from([*EventKind]),
        "model": st.one_of(ROW, st.just(1 << 40)),
        "instance": st.one_of(st.just(0), ROW, st.just(1 << 40)),
        "phases": st.integers(-1, 5),
        "quota_ns": st.sampled_from([-1, 0, 1, 1000, FOREVER_NS, FOREVER_NS + 1]),
        "joins": st.integers(-1, 2),
        "n": st.integers(-1, 2),
        "tag": st.sampled_from([NONE, 0, 7]),
    }
)


@settings(max_examples=40, deadline=None)
@given(scenario=scenarios().filter(runnable), given_=st.lists(ANSWERS, min_size=20, max_size=20))
def test_possible_answer_is_taken_by_the_core(
    scenario: Scenario, given_: list[dict[str, int]]
) -> None:
    policy = make_policy("index")
    sim = prepared(scenario, policy)
    memory = new_memory(sim, policy)
    for fields in given_:
        if advance(sim) != Signal.DECISION:
            return
        control = sim.control[0]
        kind, index = int(control["decision_kind"]), int(control["decision_index"])
        tried = np.array(sim.event)
        for field, value in fields.items():
            tried[field] = value
        if is_possible(sim.state, kind, index, tried[0]):
            assert takes(sim.state, tried[0])
        policy.decide(sim.state, kind, index, sim.event[0], memory)
        answer(sim)
