"""No policy sees what has not happened: two traces that are equal up to a moment, with the output
lengths of what is unfinished then changed as well, give the same observations, decisions and
events up to that moment."""

from contextlib import suppress
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import pytest
from hypothesis import given, seed, settings
from hypothesis import strategies as st

from aegaeon_rl.policies.registry import POLICIES, make_policy
from reference.scenarios import Scenario, scenarios
from runtime.core import NONE, NS, DecisionKind, Phases, PoolSpec, RequestPhase
from runtime.emulator.loop import Signal, advance, answer
from runtime.emulator.run import PolicyStuckError, build_sim, drive, workload_of
from runtime.emulator.script import script_of
from runtime.pool.candidates import ROWS, can_idle, can_route, fill_rows
from runtime.pool.features import C, F, I, instance_features, pool_features, row_features
from runtime.pool.placement import preload
from runtime.pool.state import State
from runtime.protocol import Oracle, Places, Policy
from traces import Trace

EXAMPLES, LONG_EXAMPLES = 30, 600
CAUSAL = [name for name in POLICIES if not isinstance(make_policy(name), Oracle)]


class Fork(NamedTuple):
    """A scenario, and what may differ after `moment_s`."""

    scenario: Scenario
    moment_s: float
    seed: int


@st.composite
def forks(draw: st.DrawFn) -> Fork:
    """The moment lies before the last arrival; every policy can run the pool."""
    found = draw(scenarios().filter(lambda s: s.trace.span_s > 0 and s.pool.instances > 1))
    if Phases.BOTH in found.pool.roles:
        found = found._replace(pool=replace(found.pool, roles=()))
    moment_s = draw(st.floats(0.0, 0.95)) * found.trace.span_s
    return Fork(found, moment_s, draw(st.integers(0, 1 << 30)))


class Watched:
    """A policy whose every observation and answer is kept."""

    def __init__(self, policy: Policy) -> None:
        self.policy, self.name = policy, policy.name
        self.seen: list[tuple[Any, ...]] = []

    def memory(self, state: State) -> Any:
        return self.policy.memory(state)

    def drive(self, sim: Any, memory: Any) -> int:
        signal = advance(sim)
        while signal == Signal.DECISION:
            control = sim.control[0]
            kind, index = int(control["decision_kind"]), int(control["decision_index"])
            seen = observed(sim.state, kind, index)
            self.policy.decide(sim.state, kind, index, sim.event[0], memory)
            self.seen.append((*seen, sim.event[0].item()))
            answer(sim)
            signal = advance(sim)
        return int(signal)


class WatchedOracle(Watched):
    def foresee(self, memory: Any, output_tokens: Any) -> None:
        self.policy.foresee(memory, output_tokens)  # type: ignore[attr-defined]


class Peeking:
    """First come, first served, for as long as the longest answer there is."""

    name = "peeking"

    def __init__(self) -> None:
        self.policy, self.output_tokens = make_policy("fcfs"), np.zeros(0)

    def configure(self, pool: PoolSpec) -> PoolSpec:
        return self.policy.configure(pool)

    def memory(self, state: State) -> Any:
        return self.policy.memory(state)

    def foresee(self, memory: Any, output_tokens: Any) -> None:
        self.output_tokens = output_tokens

    def decide(self, state: State, kind: int, index: int, event: Any, memory: Any) -> None:
        self.policy.decide(state, kind, index, event, memory)
        if kind == DecisionKind.TURN:
            event["quota_ns"] = 1_000_000 * int(self.output_tokens.max())

    def drive(self, sim: Any, memory: Any) -> int:
        raise NotImplementedError


def observed(state: State, kind: int, index: int) -> tuple[Any, ...]:
    """What a policy is shown: rows with features, the instance's, the pool's, and the masks."""
    pool = np.zeros(C, np.float32)
    now_ns = int(state.pool["now_ns"][0])
    if kind == DecisionKind.ROUTE:
        pool_features(state, 0, pool)
        able = [bool(can_route(state, index, g)) for g in range(len(state.instances))]
        return now_ns, kind, index, able, pool.tobytes()
    rows, features = np.full(ROWS, NONE, np.int64), np.zeros((ROWS, F), np.float32)
    count, overflow = fill_rows(state, kind, index, rows)
    for i in range(count):
        row_features(state, index, rows[i], features[i])
    instance = np.zeros(I, np.float32)
    instance_features(state, kind, index, instance)
    pool_features(state, overflow, pool)
    idles = bool(can_idle(state, index))
    shown = [a.tobytes() for a in (rows, features, instance, pool)]
    return now_ns, kind, index, idles, *shown


def run_to(policy: Policy, fork: Fork, trace: Trace) -> tuple[list[Any], list[Any], Any]:
    """The policy on the fork's scenario with `trace`, up to the fork's moment: what it saw and
    answered, the journal, and the results. What is known of the load in advance stays the same."""
    kind = WatchedOracle if isinstance(policy, Oracle) else Watched
    watched, scenario = kind(policy), fork.scenario
    sim = build_sim(
        trace,
        policy.configure(scenario.pool),
        scenario.slo,
        horizon_s=fork.moment_s,
        journal_rows=1 << 12,
        script=script_of(scenario.script),
    )
    if isinstance(policy, Places):
        preload(sim.state, policy.placement(sim.state, workload_of(scenario.trace)))
    with suppress(PolicyStuckError):
        drive(sim, watched)  # type: ignore[arg-type]
    rows = sim.journal[: sim.control["journal_rows"][0]].tolist()
    return watched.seen, rows, sim.results


def continued(fork: Fork, results: Any) -> Trace:
    """The trace with another future: later arrivals drawn anew, longer answers where a turn or the
    queue still has the request, other lengths for what comes."""
    trace, rng = fork.scenario.trace, np.random.default_rng(fork.seed)
    has_come = np.rint(trace.arrival_s * NS).astype(np.int64) <= round(fork.moment_s * NS)
    ended = results["phase"] >= RequestPhase.DONE
    later = fork.moment_s + 1e-3 + np.sort(rng.exponential(0.3, trace.requests))
    longer = trace.output_tokens + rng.integers(1, 30, trace.requests).astype(np.int32)
    n_models = len(trace.models)
    return replace(
        trace,
        arrival_s=np.where(has_come, trace.arrival_s, later),
        model=np.where(has_come, trace.model, rng.integers(0, n_models, trace.requests)).astype(
            np.int32
        ),
        prompt_tokens=np.where(
            has_come, trace.prompt_tokens, rng.integers(1, 3000, trace.requests)
        ).astype(np.int32),
        output_tokens=np.where(has_come & ended, trace.output_tokens, longer).astype(np.int32),
    )


def differs(policy: Policy, fork: Fork) -> str:
    """Where the two futures show in what came before them; empty: nowhere."""
    seen, journal, results = run_to(policy, fork, fork.scenario.trace)
    seen_too, journal_too, _ = run_to(policy, fork, continued(fork, results))
    for name, ours, theirs in (("seen", seen, seen_too), ("journal", journal, journal_too)):
        if ours != theirs:
            pairs = enumerate(zip(ours, theirs, strict=False))
            i = next((i for i, (a, b) in pairs if a != b), min(len(ours), len(theirs)))
            return f"{policy.name}: {name} {i} of {len(ours)} / {len(theirs)}"
    return ""


@pytest.mark.parametrize("name", CAUSAL)
@settings(max_examples=EXAMPLES, deadline=None)
@given(fork=forks())
def test_policy_decides_the_same_whatever_the_future(name: str, fork: Fork) -> None:
    assert not differs(make_policy(name), fork)


@pytest.mark.long
@pytest.mark.parametrize("name", CAUSAL)
@settings(max_examples=LONG_EXAMPLES, deadline=None)
@given(fork=forks())
def test_policy_decides_the_same_whatever_the_future_in_hundreds_of_scenarios(
    name: str, fork: Fork
) -> None:
    assert not differs(make_policy(name), fork)


def test_a_policy_that_reads_output_lengths_is_found_out() -> None:
    found: list[str] = []

    @seed(0)
    @settings(max_examples=EXAMPLES, deadline=None, database=None)
    @given(fork=forks())
    def look(fork: Fork) -> None:
        found.append(differs(Peeking(), fork))

    look()
    assert any(found)
