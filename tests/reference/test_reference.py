"""The emulator and the plain-Python reference agree: questions, journal, and every token's time."""

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings

from reference.emulator import Emulator
from reference.nouns import (
    Answer,
    Candidate,
    Cost,
    Outside,
    Question,
    Request,
    Row,
    Slo,
    StuckError,
)
from reference.physics import hashed
from reference.scenarios import Scenario, scenarios
from runtime.catalog import assign_checkpoints
from runtime.core import (
    FOREVER_NS,
    NONE,
    NS,
    Command,
    DecisionKind,
    EventKind,
    PoolSpec,
)
from runtime.emulator.loop import Signal, advance, answer
from runtime.emulator.profile import load_profile
from runtime.emulator.run import PolicyStuckError, build_sim, build_state, drive
from runtime.emulator.script import outside, script_of
from runtime.emulator.tables import Sim, arrivals_of
from runtime.pool.candidates import can_idle, can_route, fill_rows
from runtime.pool.state import State, Table
from runtime.pool.transitions import Outcome, apply, release
from traces import Trace

EXAMPLES, LONG_EXAMPLES = 300, 6000


class Rules:
    """Answers by rule: a pure function of the question and its number."""

    def __init__(self, name: str, seed: int) -> None:
        self.name, self.seed = name, seed

    def __call__(self, question: Question, number: int) -> Answer:
        if question.kind == DecisionKind.ROUTE:
            return Answer(EventKind.ROUTE, instance=self._route(question, number))
        if question.kind == DecisionKind.INTERRUPT:
            stops = self.name == "oldest" or self._draw(number, 2, 5)
            return Answer(EventKind.INTERRUPT, question.candidates[0].model, stops=int(stops))
        if self.name == "erratic":
            return self._erratic(question, number)
        model = min((c.oldest_ns, c.model) for c in question.candidates)[1]
        if question.kind == DecisionKind.PREFETCH:
            return Answer(EventKind.PREFETCH, model)
        if self.name == "oldest":
            return Answer(EventKind.TURN, model, quota_ns=200_000_000)
        model = question.candidates[number % len(question.candidates)].model
        return Answer(EventKind.TURN, model, quota_ns=50_000_000)

    def _route(self, question: Question, number: int) -> int:
        if self.name == "erratic" and self._draw(number, 9) == 0:
            return NONE
        return int(question.routes[number % len(question.routes)])

    def _draw(self, number: int, n: int, stream: int = 0) -> int:
        return int(hashed(self.seed, number, stream) % n)

    def _erratic(self, question: Question, number: int) -> Answer:
        """At random, at times what is not possible."""
        models = [c.model for c in question.candidates]
        chance, model = self._draw(number, 20), models[self._draw(number, len(models), 1)]
        if question.kind == DecisionKind.PREFETCH:
            return Answer(EventKind.PREFETCH, NONE if chance < 4 else model)
        if chance < 2 and question.can_idle:
            return Answer(EventKind.IDLE)
        quotas, phases = (1, 10_000_000, 100_000_000, FOREVER_NS), (1, 2, 3, 3, 3, 3)
        return Answer(
            EventKind.TURN,
            0 if chance == 2 else model,
            quota_ns=quotas[self._draw(number, 4, 2)],
            phases=phases[self._draw(number, 6, 3)],
            joins=self._draw(number, 4, 4) > 0,
        )


class Follow:
    """A policy that asks a rule, and keeps what it was asked."""

    name = "follow"

    def __init__(self, rule: Rules) -> None:
        self.rule = rule
        self.questions: list[Question] = []

    def configure(self, pool: PoolSpec) -> PoolSpec:
        return pool

    def memory(self, state: State) -> None:
        return None

    def decide(self, state: State, kind: int, index: int, event: Any, memory: None) -> None:
        question = self._question(state, kind, index, int(event["model"]))
        found = self.rule(question, len(self.questions))
        self.questions.append(question)
        event["kind"] = found.kind
        if kind == DecisionKind.ROUTE:
            event["instance"], event["tag"] = found.instance, found.tag
        elif kind == DecisionKind.PREFETCH:
            event["model"] = found.model
        elif kind == DecisionKind.INTERRUPT:
            event["n"] = found.stops
        elif found.kind == EventKind.TURN:
            for name in ("model", "quota_ns", "phases", "joins", "tag"):
                event[name] = getattr(found, name)

    def _question(self, state: State, kind: int, index: int, urgent: int) -> Any:
        requests, instances, models = state.requests, range(len(state.instances)), []
        if kind == DecisionKind.INTERRUPT:
            models = [urgent]
        elif kind != DecisionKind.ROUTE:
            rows = np.zeros(len(state.models), np.int64)
            count, _ = fill_rows(state, kind, index, rows)
            models = sorted(rows[:count].tolist())
        is_open = (requests["list"] >= 0) & (requests["list"] < 2 * len(state.models))
        is_route = kind == DecisionKind.ROUTE
        return Question(
            time_ns=int(state.pool["now_ns"][0]),
            kind=kind,
            index=int(requests["id"][index]) if is_route else index,
            candidates=tuple(
                Candidate(m, int(requests["arrival_ns"][is_open & (requests["model"] == m)].min()))
                for m in models
            ),
            routes=tuple(g for g in instances if is_route and can_route(state, index, g)),
            can_idle=kind == DecisionKind.TURN and bool(can_idle(state, index)),
            kv_bytes=tuple(state.instances["kv_used_bytes"].tolist()),
            host_kv_bytes=tuple(state.nodes["host_kv_used_bytes"].tolist()),
            residents=tuple(map(tuple, state.slots["model"].tolist())),
        )

    def drive(self, sim: Any, memory: None) -> int:
        signal = advance(sim)
        while signal == Signal.DECISION:
            control = sim.control[0]
            kind, index = int(control["decision_kind"]), int(control["decision_index"])
            self.decide(sim.state, kind, index, sim.event[0], memory)
            answer(sim)
            signal = advance(sim)
        return int(signal)


def emulate(scenario: Scenario, policy: Follow) -> tuple[Sim, bool]:
    """The fast emulator; did it get stuck?"""
    sim = build_sim(
        scenario.trace,
        scenario.pool,
        scenario.slo,
        horizon_s=scenario.horizon_s,
        journal_rows=1 << 12,
        script=script_of(scenario.script),
    )
    try:
        drive(sim, policy)
    except PolicyStuckError:
        return sim, True
    return sim, False


def refer(scenario: Scenario, rule: Rules) -> tuple[Any, bool]:
    """The reference; did it get stuck?"""
    trace, pool, slo = scenario.trace, scenario.pool, scenario.slo
    models = assign_checkpoints(trace.models, pool.checkpoints)
    slos = [slo.of(name) for name in trace.models]
    costs = load_profile(pool.profile).table(models, pool.tp)[0]
    script = outside(pool, arrivals_of(trace), script_of(scenario.script))
    emulator = Emulator(
        pool,
        models,
        tuple(cost_of(cost) for cost in costs),
        tuple(Slo(round(s.ttft_s * NS), round(s.tbt_s * NS)) for s in slos),
        requests_of(trace, pool),
        rule,
        outside=tuple(
            Outside(int(e["time_ns"]), int(e["kind"]), int(max(e["id"], e["instance"])))
            for e in script
        ),
        horizon_ns=FOREVER_NS if scenario.horizon_s is None else round(scenario.horizon_s * NS),
    )
    try:
        emulator.run()
    except StuckError:
        return emulator, True
    return emulator, False


def cost_of(cost: Any) -> Any:
    n = int(cost["knots"])
    names = ("prefill_s", "prefill_token_s", "prefill_token2_s")
    names += ("decode_s", "decode_context_s", "decode_batch_s")
    table = zip(cost["knot_batch"][:n].tolist(), cost["knot_s"][:n].tolist(), strict=True)
    return Cost(*(float(cost[name]) for name in names), tuple(table))


def requests_of(trace: Trace, pool: PoolSpec) -> list[Any]:
    ranks = [0] * trace.requests if trace.priority is None else trace.priority.tolist()
    return [
        Request(
            id=i,
            model=int(trace.model[i]),
            arrival_ns=round(float(trace.arrival_s[i]) * NS),
            prompt=int(trace.prompt_tokens[i]),
            output=int(trace.output_tokens[i]),
            priority=ranks[i] if pool.priorities else 0,
        )
        for i in range(trace.requests)
    ]


def rows_of(journal: Table) -> list[Any]:
    """The emulator's journal as the reference writes it."""
    rows = []
    for event in journal:
        kind = int(event["kind"])
        is_turn = kind == EventKind.TURN
        rows.append(
            Row(
                time_ns=int(event["time_ns"]),
                kind=kind,
                instance=int(event["instance"]) if kind != EventKind.FINISHED else NONE,
                id=int(event["id"]),
                model=int(event["model"]),
                n=int(event["n"]),
                x=float(event["x"]),
                y=float(event["y"]),
                quota_ns=int(event["quota_ns"]) if is_turn else 0,
                is_fallback=int(event["is_fallback"]),
            )
        )
    return rows


def token_times(scenario: Scenario, journal: Table) -> list[list[int]]:
    """Time of each token of each request, ns: the journal applied to a fresh pool, row by row."""
    trace, pool = scenario.trace, scenario.pool
    state = build_state(
        pool, trace.models, scenario.slo, load_profile(pool.profile), capacity=trace.requests
    )
    times: list[list[int]] = [[] for _ in range(trace.requests)]
    for row, event in enumerate(journal):
        before = state.requests["emitted_tokens"].copy()
        assert apply(state, event) == Outcome.OK
        gained = state.requests["emitted_tokens"] - before
        n, x, y = int(event["n"]), float(event["x"]), float(event["y"])
        n = 1 if event["kind"] == EventKind.PREFILLED else n
        for r in np.flatnonzero(gained > 0):
            ends = [round((x * j + y * (0.5 * j * (j - 1))) * 1e9) for j in range(1, n + 1)]
            start_ns = int(event["time_ns"]) - ends[-1]
            times[int(state.requests["id"][r])] += [start_ns + end for end in ends]
        following = journal[row + 1] if row + 1 < len(journal) else None
        if following is None or following["kind"] != EventKind.FINISHED:
            for command in state.outbox[: state.pool["commands"][0]]:
                if command["kind"] == Command.RETIRE:
                    release(state, int(command["instance"]))
            state.pool["commands"] = 0
    return times


def first_difference(name: str, expected: list[Any], found: list[Any]) -> str:
    for i, (a, b) in enumerate(zip(expected, found, strict=False)):
        if a != b:
            return f"{name} {i}, reference / emulator:\n{a}\n{b}"
    if len(expected) != len(found):
        return f"{name}: {len(expected)} / {len(found)}"
    return ""


def compare(scenario: Scenario) -> Any:
    """Both run the scenario; all they did and every token's time is the same."""
    rule = Rules(scenario.rule, scenario.seed)
    policy = Follow(rule)
    sim, is_stuck = emulate(scenario, policy)
    slow, was_stuck = refer(scenario, rule)
    journal = sim.journal[: sim.control["journal_rows"][0]]
    assert not first_difference("journal", slow.journal, rows_of(journal))
    assert not first_difference("question", slow.questions, policy.questions)
    assert is_stuck == was_stuck
    assert int(sim.control["refused"][0]) == slow.refused
    assert int(sim.state.pool["recomputed"][0]) == slow.recomputed
    for name in ("switches", "prefetched_switches", "busy_ns"):
        found = sim.state.instances[name].tolist()
        assert found == [getattr(inst, name) for inst in slow.instances], name
    times = [r.tokens[: r.reported] for r in slow.requests]
    assert not first_difference("token times", times, token_times(scenario, journal))
    if not is_stuck:
        compare_results(scenario, slow, sim.results)
    return slow


def compare_results(scenario: Scenario, slow: Any, results: Table) -> None:
    for r, result in zip(slow.requests, results, strict=True):
        times, slo = r.tokens[: r.reported], scenario.slo.of(scenario.trace.models[r.model])
        due = [
            r.arrival_ns + round(slo.ttft_s * NS) + i * round(slo.tbt_s * NS)
            for i in range(len(times))
        ]
        gaps = [b - a for a, b in pairwise(times)]
        last = times[-1] if times else r.arrival_ns if r.id < slow.come else 0
        expected = {
            "phase": r.phase,
            "first_token_ns": times[0] if times else NONE,
            "last_token_ns": last,
            "stall_ns": max(gaps, default=0),
            "emitted_tokens": len(times),
            "on_time_tokens": sum(t <= d for t, d in zip(times, due, strict=True)),
        }
        found = {name: int(result[name]) for name in expected}
        assert found == expected, f"request {r.id}"


@settings(max_examples=EXAMPLES, deadline=None)
@given(scenario=scenarios())
def test_emulator_agrees_with_the_reference_token_by_token(scenario: Scenario) -> None:
    compare(scenario)


@pytest.mark.long
@settings(max_examples=LONG_EXAMPLES, deadline=None)
@given(scenario=scenarios())
def test_emulator_agrees_with_the_reference_on_thousands_of_scenarios(scenario: Scenario) -> None:
    compare(scenario)
