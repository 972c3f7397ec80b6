"""The conductor, with a fake clock and scripted engines, leaves the emulator's journal."""

from types import ModuleType
from typing import Any

import numpy as np
import pytest

from aegaeon_rl.policies.registry import POLICIES, make_policy
from runtime.core import NONE, EventKind, RequestPhase, Stage
from runtime.emulator.run import PolicyStuckError, build_sim, drive, run
from runtime.pool.integrity import check_integrity
from runtime.protocol import Oracle
from runtime.service.conductor import Conductor

SEEDS = 60  # scenarios per policy
CHECKED_SEEDS = 4


def conducted(scripted: ModuleType, *args: Any) -> Any:
    """A ScriptedPool for its clock and engines, driven by the conductor."""
    pool = scripted.ScriptedPool(*args)
    memory = pool.policy.memory(pool.state)
    if isinstance(pool.policy, Oracle):
        pool.policy.foresee(memory, np.ascontiguousarray(pool.output_tokens, np.int32))

    def decide(state: Any, kind: int, index: int, event: Any) -> bool:
        pool.policy.decide(state, kind, index, event, memory)
        return True

    pool.conductor = Conductor(
        pool.state, pool.engines, decide, lambda e: pool.journal.append(e.item()), pool._keep
    )
    return pool


def conduct(scripted: ModuleType, pool: Any, check: Any) -> None:
    """ScriptedPool.run, with all that touches the core left to the conductor."""
    conductor = pool.conductor
    while True:
        entry = pool._first()
        if entry is None or entry[0] > pool.now_ns:
            if conductor.decide():
                check(pool.state)
                continue
            if entry is None and pool.in_flight > 0:
                raise scripted.StuckError(f"{pool.in_flight} requests wait")
            if entry is None or entry[0] > pool.horizon_ns:
                break
        for events in due(scripted, pool, entry):
            conductor.happen(events)
        check(pool.state)
        if len(pool.journal) > scripted.MOST_EVENTS:
            raise scripted.StuckError("no end")
    for r in np.flatnonzero(pool.state.requests["phase"] != RequestPhase.FREE):
        pool._keep(r)


def due(scripted: ModuleType, pool: Any, entry: Any) -> list[Any]:
    """What the entry of the clock makes happen."""
    time_ns, kind, index, _, name = entry
    pool.clock.drop(name)
    if kind == EventKind.ARRIVAL:
        pool.slot[index] = int(pool.state.pool["free_head"][0])
        priority = pool.trace.priority
        fields = {"model": pool.trace.model[index], "n": pool.trace.prompt_tokens[index]}
        fields["tag"] = 0 if priority is None else priority[index]
        return [scripted.new_event(kind, time_ns, id=index, **fields)]
    if kind == EventKind.EXPIRE:
        return [scripted.new_event(kind, time_ns, id=index, request=pool.slot[index])]
    if kind > EventKind.EXPIRE:
        return outside(scripted, pool, kind, time_ns, pool.script[index])
    engine = pool.engines[index]
    engine.ring(kind, time_ns)
    return list(engine.poll())


def outside(scripted: ModuleType, pool: Any, kind: int, time_ns: int, row: Any) -> list[Any]:
    if kind == EventKind.CANCEL:
        r = pool.slot[int(row["id"])]
        req = pool.state.requests[r]
        is_live = r != NONE and req["id"] == row["id"] and 0 < req["phase"] < RequestPhase.DONE
        if not is_live or req["is_cancelled"]:
            return []
        return [scripted.new_event(kind, time_ns, id=row["id"], request=r)]
    g = int(row["instance"])
    is_down = pool.state.instances["stage"][g] == Stage.DOWN
    if is_down != (kind == EventKind.INSTANCE_JOINED):
        return []
    pool.engines[g].fail(time_ns)
    return [scripted.new_event(kind, time_ns, instance=g)]


def nothing(state: Any) -> None:
    pass


def compare(
    scripted: ModuleType, scenarios: ModuleType, policy: Any, seed: int, *, is_checked: bool
) -> None:
    trace, pool, slo, horizon_s, script = scenario = scenarios.draw(seed)
    whole = scenarios.script_for(scenario)
    live = conducted(scripted, trace, pool, policy, slo, horizon_s, whole)
    conduct(scripted, live, check_integrity if is_checked else nothing)
    emulated = run(trace, pool, policy, slo, horizon_s=horizon_s, journal=True, script=script)
    where = f"policy {policy.name}, seed {seed}"
    difference = scenarios.first_difference(live.journal, emulated.journal.tolist())
    assert not difference, f"{where}: {difference}"
    for column in live.results.dtype.names:
        expected, found = live.results[column], emulated.results[column]
        assert found.tolist() == expected.tolist(), f"{where}: results.{column}"
    assert live.conductor.decisions == emulated.decisions, where


@pytest.mark.parametrize("name", POLICIES)
def test_conductor_leaves_the_journal_and_results_of_the_emulator(
    scripted: ModuleType, scenarios: ModuleType, name: str
) -> None:
    policy = make_policy(name)
    for seed in range(SEEDS):
        compare(scripted, scenarios, policy, seed, is_checked=seed < CHECKED_SEEDS)


def test_conductor_agrees_on_a_policy_that_answers_at_random(
    scripted: ModuleType, scenarios: ModuleType
) -> None:
    fallbacks = 0
    for seed in range(SEEDS):
        trace, pool, slo, horizon_s, script = scenario = scenarios.draw(seed)
        policy, is_stuck = scenarios.Erratic(seed), [False, False]
        whole = scenarios.script_for(scenario)
        live = conducted(scripted, trace, pool, policy, slo, horizon_s, whole)
        sim = build_sim(
            trace, live.spec, slo, horizon_s=horizon_s, journal_rows=1 << 12, script=script
        )
        try:
            conduct(scripted, live, check_integrity if seed < CHECKED_SEEDS else nothing)
        except scripted.StuckError:
            is_stuck[0] = True
        try:
            drive(sim, policy)
        except PolicyStuckError:
            is_stuck[1] = True
        rows = int(sim.control["journal_rows"][0])
        difference = scenarios.first_difference(live.journal, sim.journal[:rows].tolist())
        assert not difference, f"seed {seed}: {difference}"
        assert is_stuck[0] == is_stuck[1], f"seed {seed}"
        fallbacks += int(sim.journal["is_fallback"][:rows].sum())
    assert fallbacks > 0


@pytest.mark.long
@pytest.mark.parametrize("name", POLICIES)
def test_conductor_agrees_on_a_thousand_scenarios(
    scripted: ModuleType, scenarios: ModuleType, name: str
) -> None:
    for seed in range(SEEDS, 1000):
        compare(scripted, scenarios, make_policy(name), seed, is_checked=False)
