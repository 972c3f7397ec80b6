"""An episode's return is the deadlines it missed: counted token by token from the journal, and as
evaluation counts them for the same decisions."""

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest

from aegaeon_rl.policies.heuristics import index
from envs.episode import empty_state
from envs.pools import Pools
from envs.scenario import ScenarioSpec
from envs.stepping import serve_oldest
from runtime.core import NONE, NS, Command, DecisionKind, EventKind, SloSpec
from runtime.emulator.loop import Signal
from runtime.emulator.run import run
from runtime.emulator.tables import Sim, grow_journal, grow_slots
from runtime.pool.state import Record, State, grow_requests
from runtime.pool.transitions import Outcome, apply, release
from runtime.slo import curve_ns
from traces import Trace
from traces.market import MarketSpec, generate

ROWS = 8
VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "late": {"load_scale": (4.0, 6.0)},
    "empty at first": {"warm_s": 0.0},
    "impatient": {"pool": {"ttft_timeout_s": 0.8}, "load_scale": (4.0, 6.0)},
    "failing": {"pool": {"mtbf_s": 5.0}},
    "noisy": {"noise": (0.2, 0.4)},
    "in chunks": {"pool": {"prefill_chunk_tokens": 128}, "load_scale": (2.0, 4.0)},
    "interrupted": {"pool": {"interrupt_slack_s": 5.0}},
    "routed": {"routes": True},
    "routed and interrupted": {"pool": {"interrupt_slack_s": 5.0}, "routes": True},
}
ANSWERED = {"interrupted": EventKind.INTERRUPT, "routed": EventKind.ROUTE}


@dataclass
class Count:
    """A journal read with the plain tables: when each token of each request came."""

    state: State
    tokens: dict[int, list[int]] = field(default_factory=dict)
    ended_ns: dict[int, int] = field(default_factory=dict)

    def feed(self, event: Record) -> None:
        requests = self.state.requests
        if len(requests) and self.state.pool["free_head"][0] == NONE:
            grow_requests(self.state)
            requests = self.state.requests
        before, ids = requests["emitted_tokens"].copy(), requests["id"].copy()
        assert apply(self.state, event) == Outcome.OK
        if event["kind"] in (EventKind.STEPS, EventKind.PREFILLED):
            for r in np.flatnonzero(requests["emitted_tokens"] != before):
                self.note(int(ids[r]), int(requests["emitted_tokens"][r] - before[r]), event)
        for command in self.state.outbox[: self.state.pool["commands"][0]]:
            if command["kind"] == Command.RETIRE:
                r = int(command["instance"])
                self.ended_ns[int(requests["id"][r])] = int(event["time_ns"])
                release(self.state, r)
        self.state.pool["commands"] = 0

    def note(self, request: int, count: int, event: Record) -> None:
        times, end_ns = self.tokens.setdefault(request, []), int(event["time_ns"])
        if event["kind"] == EventKind.PREFILLED:
            times.append(end_ns)
            return
        x, y, n = float(event["x"]), float(event["y"]), int(event["n"])
        start_ns = end_ns - curve_ns(x, y, n)
        times.extend(start_ns + curve_ns(x, y, j) for j in range(1, count + 1))

    def missed(self, sim: Sim, slo: SloSpec, at_ns: int) -> int:
        """By definition: deadlines before `at_ns` whose token was not there, and of requests that
        ended without all their tokens, all the rest of them."""
        total, arrivals = 0, sim.arrivals
        for number, arrival_ns in enumerate(arrivals.time_ns.tolist()):
            times = [t for t in self.tokens.get(number, []) if t <= at_ns]
            is_over = self.ended_ns.get(number, at_ns + 1) <= at_ns
            for i in range(int(arrivals.output_tokens[number])):
                due_ns = arrival_ns + round(slo.ttft_s * NS) + i * round(slo.tbt_s * NS)
                if i < len(times):
                    total += times[i] > due_ns
                else:
                    total += arrival_ns <= at_ns and (is_over or due_ns < at_ns)
        return total


class Played:
    """An episode with its journal: what it paid out, and between which times."""

    def __init__(self, scenario: ScenarioSpec) -> None:
        self.scenario = scenario

    def play(self, seed: int) -> Pools:
        pools = Pools(self.scenario, 1, rows=ROWS, is_recorded=True)
        rng = np.random.default_rng(seed)
        pools.seed(0, seed)
        pools.reset(0)
        self.start_ns, self.paid = int(pools.buffers.clocks["now_ns"][0]), 0.0
        while not pools.is_over[0]:
            action = rng.choice(np.flatnonzero(pools.mask[0]))
            self.paid += float(pools.step(np.array([action]))[0])
        self.end_ns = int(pools.buffers.clocks["now_ns"][0])
        return pools

    def count(self, pools: Pools) -> Count:
        """The journal, after the pool went on for a while: a run that the end cut shows itself."""
        sim, episode = pools.sims[0], pools.episodes[0]
        assert sim is not None
        assert episode is not None
        sim.control["horizon_ns"] += 20 * NS
        rows = np.zeros(ROWS, np.int64)
        while (signal := serve_oldest(sim, rows)) != Signal.END:
            (grow_slots if signal == Signal.SLOTS_FULL else grow_journal)(sim)
        count = Count(empty_state(self.scenario, episode))
        for event in sim.journal[: sim.control["journal_rows"][0]]:
            count.feed(event)
        return count


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", VARIANTS)
def test_return_is_the_deadlines_missed_token_by_token(
    scenario: ScenarioSpec, name: str, seed: int
) -> None:
    changes = dict(VARIANTS[name])
    pool = replace(scenario.pools[0], **changes.pop("pool", {}))
    slo = SloSpec(ttft_s=0.6, tbt_s=0.03)
    spec = replace(scenario, pools=(pool,), slos=(slo,), **changes)
    played = Played(spec)
    pools = played.play(seed)
    sim = pools.sims[0]
    assert sim is not None
    assert played.end_ns == sim.control["horizon_ns"][0]
    count = played.count(pools)
    kinds = set(sim.journal["kind"][: sim.control["journal_rows"][0]].tolist())
    assert all(kind in kinds for word, kind in ANSWERED.items() if word in name)
    expected = count.missed(sim, slo, played.end_ns) - count.missed(sim, slo, played.start_ns)
    assert -played.paid * spec.deadline_rate == pytest.approx(expected, abs=1e-6)
    assert expected > 0 or name not in ("late", "impatient")


def busy_then_quiet() -> Trace:
    """Forty seconds of requests, and one long after: an episode that ends with all served."""
    trace = generate(MarketSpec(name="busy", models=8, duration_s=40.0, rate_rps=8.0, seed=1))
    late = replace(trace, arrival_s=np.append(trace.arrival_s[:-1], 200.0))
    return late.window(0, 201.0, keep_models=True)


def follow(policy: Any, pools: Pools) -> int:
    """The action that is what the index decides."""
    sim = pools.sims[0]
    assert sim is not None
    control, event = sim.control[0], sim.event.copy()[0]
    policy.decide(
        sim.state,
        int(control["decision_kind"]),
        int(control["decision_index"]),
        event,
        policy.memory(sim.state),
    )
    is_turn = control["decision_kind"] == DecisionKind.TURN
    if event["model"] == NONE or (is_turn and event["kind"] != EventKind.TURN):
        return pools.idle_action
    return pools.buffers.models[0].tolist().index(event["model"]) * len(pools.quotas_s)


def test_return_is_what_evaluation_counts_for_the_same_decisions(scenario: ScenarioSpec) -> None:
    trace, slo, pool = busy_then_quiet(), SloSpec(ttft_s=0.6, tbt_s=0.03), scenario.pools[0]
    spec = ScenarioSpec(
        traces=(trace,),
        pools=(pool,),
        slos=(slo,),
        warm_s=0.0,
        shortest_s=trace.span_s,
        longest_s=trace.span_s,
    )
    policy = replace(index(), quota_s=0.1, longest_s=0.0)
    pools, paid = Pools(spec, 1, rows=64, quotas_s=(policy.quota_s,)), 0.0
    pools.reset(0)
    while not pools.is_over[0]:
        paid += float(pools.step(np.array([follow(policy, pools)]))[0])
    whole = trace.window(0, 199.0, keep_models=True)
    results = run(whole, pool, policy, slo).results
    missed = int((results["due_tokens"] - results["on_time_tokens"]).sum())
    assert missed > 100
    assert -paid * spec.deadline_rate == pytest.approx(missed, abs=1e-6)
