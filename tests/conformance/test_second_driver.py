"""The emulator and an independent driver of the same core leave the same journal and results."""

from dataclasses import replace
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import pytest

from aegaeon_rl.policies.registry import POLICIES, make_policy
from runtime.core import (
    FOREVER_NS,
    NONE,
    DecisionKind,
    Dispatch,
    EventKind,
    HostKvFull,
    ModelSlo,
    Phases,
    PoolSpec,
    PrefetchMode,
    RequestPhase,
    SloSpec,
)
from runtime.emulator.loop import Signal, advance, answer
from runtime.emulator.run import PolicyStuckError, build_sim, drive, run
from runtime.emulator.script import outside, script_of
from runtime.emulator.tables import arrivals_of
from runtime.pool.candidates import can_idle, can_route, has_turn_work
from runtime.pool.integrity import check_integrity
from runtime.pool.state import EVENT, State, Table
from runtime.protocol import Policy
from traces import Trace, TraceKind

SEEDS = 100  # scenarios per policy
CHECKED_SEEDS = 8  # of them with an integrity check after every event
LONG_SEEDS = 3000
JOIN_SEED = 338  # a moved-out request came back into the room that the batch's next step needed
SOSP25 = ("sosp25/Qwen2.5-7B", "sosp25/Yi-1.5-9B", "sosp25/Llama-2-13B")
REAL = ("Qwen3-0.6B", "Qwen2.5-7B", "Llama-2-13B", "Qwen3-1.7B")
PAIRED = ("Qwen3-32B", "Mixtral-8x7B")  # on two GPUs; the latter with a decode table
GB = 1_000_000_000


class Scenario(NamedTuple):
    trace: Trace
    pool: PoolSpec
    slo: SloSpec
    horizon_s: float | None
    script: Table


def draw_trace(rng: np.random.Generator) -> Trace:
    """A few models and requests; arrivals often coincide, with each other and with round times."""
    n, models = int(rng.integers(3, 36)), int(rng.integers(1, 7))
    arrival = np.cumsum(rng.exponential(rng.choice([0.01, 0.1, 0.6]), n))
    grid = rng.choice([0.0, 0.05, 0.5])
    if grid > 0:
        arrival = np.floor(arrival / grid) * grid
    few = rng.choice([1, 4, 60])  # some requests end with their first token
    return Trace(
        name="random",
        kind=TraceKind.SYNTHETIC,
        models=tuple(f"m{i}" for i in range(models)),
        model=rng.integers(0, models, n).astype(np.int32),
        arrival_s=arrival,
        prompt_tokens=rng.integers(1, rng.choice([40, 600, 3000]), n).astype(np.int32),
        output_tokens=rng.integers(1, 1 + few, n).astype(np.int32),
        priority=rng.integers(0, 3, n).astype(np.int8),
    )


def draw_pool(rng: np.random.Generator) -> PoolSpec:
    """Every rule of a pool is drawn; KV and host memory hold from a part of a request to many."""
    artifact = bool(rng.random() < 0.4)
    names = SOSP25 if artifact else REAL
    checkpoints = tuple(str(c) for c in rng.choice(names, int(rng.integers(1, 4))))
    slots, reserved = int(rng.integers(1, 4)), bool(rng.random() < 0.5)
    held = (slots if reserved else 1) * 26_100_000_000
    nodes, per_node = [(1, 2), (2, 1), (2, 2)][int(rng.integers(3))]
    roles = draw_roles(rng, nodes * per_node)
    networks = [1e9, 25e9] if roles or per_node == 1 else [0.0, 1e9, 25e9]  # 0: nodes are islands
    return PoolSpec(
        name="random",
        profile="h100_sosp25" if artifact else str(rng.choice(["h100", "h200", "a100"])),
        checkpoints=checkpoints,
        nodes=nodes,
        instances_per_node=per_node,
        roles=roles,
        vram_bytes=held + int(rng.choice([1, 2, 4, 30]) * GB),
        kv_fraction=float(rng.choice([0.5, 0.9])),
        weight_slots=slots,
        slots_reserved=reserved,
        h2d_bytes_s=float(rng.choice([16e9, 50e9])),
        d2h_bytes_s=float(rng.choice([2e9, 50e9])),
        kv_out_free=bool(rng.random() < 0.3),
        kv_reload_every_turn=bool(rng.random() < 0.3),
        kv_move_token_bytes=int(rng.choice([0, 500_000])),
        block_tokens=int(rng.choice([1, 16])),
        lookahead_tokens=int(rng.choice([0, 8, 64])),
        prefill_budget_tokens=int(rng.choice([0, 512, 4096])),
        host_weight_bytes=int(rng.choice([30, 60, 1500])) * GB,
        host_kv_bytes=int(rng.choice([1_000_000, GB, 4 * GB, 256 * GB])),
        network_bytes_s=float(rng.choice(networks)),
        command_s=float(rng.choice([0.0, 0.003])),
        step_quantum_s=float(rng.choice([0.0, 0.001])),
        sosp25_rules=bool(rng.random() < 0.5),
        max_wait_s=float(rng.choice([0.0, 1.0])),
        ttft_timeout_s=float(rng.choice([0.0, 0.0, 0.5, 3.0])),
        max_queue=int(rng.choice([0, 0, 4])),
    )


def with_engine_limits(pool: PoolSpec, rng: np.random.Generator) -> PoolSpec:
    """What an engine cannot do, what it loses time with, and how its times scatter."""
    return replace(
        pool,
        token_preempt=bool(rng.random() < 0.7),
        kv_survives_switch=bool(rng.random() < 0.5),
        priorities=bool(rng.random() < 0.5),
        prefill_chunk_tokens=int(rng.choice([0, 0, 16, 300])),
        turn_overhead_s=float(rng.choice([0.0, 0.004])),
        step_overhead_s=float(rng.choice([0.0, 0.0007])),
        noise=float(rng.choice([0.0, 0.1, 1.0])),
        seed=int(rng.integers(2**62)),
    )


def draw_script(trace: Trace, pool: PoolSpec, rng: np.random.Generator) -> tuple[PoolSpec, Table]:
    """Failures, returns and cancellations, often at once, some of what is not there; all return."""
    moments = np.round(rng.uniform(0, trace.span_s + 1, 8), int(rng.integers(0, 4)))
    requests, instances = rng.integers(0, trace.requests, 8), rng.integers(0, pool.instances, 8)
    rows = [(float(t), EventKind.CANCEL, int(i)) for t, i in zip(moments, requests, strict=True)]
    for t, g in zip(rng.permutation(moments)[:4], instances.tolist(), strict=False):
        rows.append((float(t), EventKind.INSTANCE_FAILED, g))
        rows.append((float(t + rng.choice([0.0, 0.05, 1.0])), EventKind.INSTANCE_JOINED, g))
    rates = {"mtbf_s": float(rng.choice([0.0, 1.0])), "mttr_s": 0.2}
    patience = float(rng.choice([0.0, 0.0, 2.0]))
    pool = replace(pool, cancel_after_s=patience, seed=int(rng.integers(2**62)), **rates)
    end = [(trace.span_s + 9, EventKind.INSTANCE_JOINED, g) for g in range(pool.instances)]
    return pool, script_of(rows + end)


def script_for(scenario: Scenario) -> Table:
    return outside(scenario.pool, arrivals_of(scenario.trace), scenario.script)


def draw_roles(rng: np.random.Generator, instances: int) -> tuple[Phases, ...]:
    """Empty (the policy splits them), or given; one of each kind at least."""
    if rng.random() < 0.6:
        return ()
    rest = [Phases(int(p)) for p in rng.choice([1, 2], instances - 2)]
    return (Phases.PREFILL, Phases.DECODE, *rest)


def with_groups(pool: PoolSpec, rng: np.random.Generator) -> PoolSpec:
    """Instances of two GPUs, with sizes and a decode table as fitted for them."""
    held = (pool.weight_slots if pool.slots_reserved else 1) * 94 * GB
    return replace(
        pool,
        tp=2,
        profile=str(rng.choice(["h100", "h200", "h20"])),
        checkpoints=tuple(str(c) for c in rng.choice(PAIRED, int(rng.integers(1, 4)))),
        vram_bytes=held // 2 + int(rng.choice([1, 2, 15]) * GB),
        host_weight_bytes=int(rng.choice([100, 1500])) * GB,
        h2d_bytes_s=float(rng.choice([50e9, 200e9])),
    )


def with_transport(pool: PoolSpec, rng: np.random.Generator) -> PoolSpec:
    """What links and memory may do beyond their defaults."""
    largest = 47 * GB if pool.tp == 2 else 26_100_000_000
    budget = int(rng.choice([0, largest, 3 * largest // 2]))
    return replace(
        pool,
        instances_per_port=int(rng.choice([1, 2, 2, 3])),
        load_chunk_bytes=int(rng.choice([0, 100_000_000, 4 * GB])),
        weight_budget_bytes=budget,
        kv_in_overlaps=bool(rng.random() < 0.6),
        host_kv_full=HostKvFull(rng.choice(["wait", "wait", "recompute"])),
        vram_bytes=budget + int(rng.choice([1, 2, 30]) * GB) if budget else pool.vram_bytes,
    )


def draw(seed: int) -> Scenario:
    rng = np.random.default_rng(seed)
    slo = SloSpec(ttft_s=float(rng.choice([0.5, 10.0])), tbt_s=float(rng.choice([0.02, 0.1])))
    horizon = float(rng.uniform(0.1, 4.0)) if rng.random() < 0.2 else None
    trace, pool = draw_trace(rng), draw_pool(rng)
    pool = replace(pool, kv_stays=bool(rng.random() < 0.3))
    own = ModelSlo(ttft_s=float(rng.choice([0.2, 2.0])), tbt_s=float(rng.choice([0.01, 0.3])))
    slo = replace(slo, models={"m1": own})
    if seed % 2:
        pool = with_engine_limits(pool, np.random.default_rng([seed, 1]))
    if seed % 5 == 1 and "sosp25" not in pool.profile:
        pool = with_groups(pool, np.random.default_rng([seed, 2]))
    if seed % 3:
        pool = with_transport(pool, np.random.default_rng([seed, 4]))
    slack_s = float(np.random.default_rng([seed, 5]).choice([0.0, 1.0, 15.0]))
    pool, script = replace(pool, interrupt_slack_s=slack_s), script_of(())
    if seed % 4 > 1:
        pool, script = draw_script(trace, pool, np.random.default_rng([seed, 3]))
    return Scenario(trace, pool, slo, horizon, script)


class Erratic:
    """A policy that answers at random, at times with nonsense; its memory is a generator."""

    name = "erratic"

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def configure(self, pool: PoolSpec) -> PoolSpec:
        rng = np.random.default_rng(self.seed)
        dispatch = Dispatch(rng.choice(["pull", "push", "push"]))
        mode = PrefetchMode(rng.choice(["none", "causal", "causal", "retroactive"]))
        if dispatch is Dispatch.PULL:
            return replace(pool, roles=(), dispatch=dispatch, prefetch=mode)
        rest = [Phases(int(p)) for p in rng.integers(1, 4, pool.instances - 2)]
        roles = (Phases.PREFILL, Phases.DECODE, *rest) if rng.random() < 0.5 else ()
        return replace(pool, roles=roles, dispatch=dispatch, prefetch=mode)

    def memory(self, state: State) -> np.random.Generator:
        return np.random.default_rng(self.seed)

    def decide(self, state: State, kind: int, index: int, event: Any, memory: Any) -> None:
        if memory.random() < 0.05:  # nonsense
            column = memory.choice(["kind", "instance", "request", "model", "quota_ns"])
            event[column] = memory.integers(-3, 20)
            return
        if kind == DecisionKind.ROUTE:
            able = [g for g in range(len(state.instances)) if can_route(state, index, g)]
            event["instance"], event["tag"] = memory.choice(able), memory.integers(-1, 2)
            return
        if kind == DecisionKind.INTERRUPT:
            event["n"] = memory.integers(2)
            return
        models = np.flatnonzero(state.models["waiting_since_ns"] != FOREVER_NS)
        if kind == DecisionKind.PREFETCH:
            event["model"] = memory.choice([NONE, *models])
            return
        if memory.random() < 0.1 and can_idle(state, index):
            return
        able = [m for m in models if has_turn_work(state, index, m, Phases.BOTH, NONE)]
        event["kind"], event["model"] = EventKind.TURN, memory.choice(able)
        event["quota_ns"] = memory.choice([1, 10_000_000, 100_000_000, FOREVER_NS])
        event["phases"] = memory.choice([1, 2, 3, 3, 3])
        event["joins"] = memory.integers(0, 2)

    def drive(self, sim: Any, memory: Any) -> int:
        signal = advance(sim)
        while signal == Signal.DECISION:
            control = sim.control[0]
            kind, index = int(control["decision_kind"]), int(control["decision_index"])
            self.decide(sim.state, kind, index, sim.event[0], memory)
            answer(sim)
            signal = advance(sim)
        return int(signal)


def first_difference(scripted: list[tuple[Any, ...]], emulated: list[tuple[Any, ...]]) -> str:
    """The first row that differs, by field; empty when the journals are the same."""
    for row, (a, b) in enumerate(zip(scripted, emulated, strict=False)):
        if a != b:
            names = EVENT.names or ()
            fields = [f"{n} {x} / {y}" for n, x, y in zip(names, a, b, strict=True) if x != y]
            return f"row {row}, scripted / emulated: {', '.join(fields)}\n{a}\n{b}"
    if len(scripted) != len(emulated):
        sizes = (len(scripted), len(emulated))
        following = max(scripted, emulated, key=len)[min(sizes)]
        return f"{sizes[0]} / {sizes[1]} rows, next: {following}"
    return ""


def compare(scripted: ModuleType, policy: Policy, seed: int, *, is_checked: bool = False) -> None:
    """One scenario through both drivers; every row of both journals and all results are equal."""
    trace, pool, slo, horizon_s, script = scenario = draw(seed)
    whole = script_for(scenario)
    second = scripted.ScriptedPool(trace, pool, policy, slo, horizon_s, whole)
    second.run(check_integrity if is_checked else None)
    emulated = run(trace, pool, policy, slo, horizon_s=horizon_s, journal=True, script=script)
    where = f"policy {policy.name}, seed {seed}"
    difference = first_difference(second.journal, emulated.journal.tolist())
    assert not difference, f"{where}: {difference}"
    for column in second.results.dtype.names:
        expected, found = second.results[column], emulated.results[column]
        assert found.tolist() == expected.tolist(), f"{where}: results.{column}"
    assert (emulated.decisions, emulated.refused) == (second.decisions, second.refused), where
    assert emulated.events == len(second.journal), where


def compare_erratic(scripted: ModuleType, seed: int, *, is_checked: bool = False) -> Table:
    """As `compare`, for a policy that may leave requests waiting for ever; in both drivers then.

    Returns the journal.
    """
    trace, pool, slo, horizon_s, script = scenario = draw(seed)
    policy, is_stuck = Erratic(seed), [False, False]
    whole = script_for(scenario)
    second = scripted.ScriptedPool(trace, pool, policy, slo, horizon_s, whole)
    sim = build_sim(
        trace, second.spec, slo, horizon_s=horizon_s, journal_rows=1 << 12, script=script
    )
    try:
        second.run(check_integrity if is_checked else None)
    except scripted.StuckError:
        is_stuck[0] = True
    try:
        drive(sim, policy)
    except PolicyStuckError:
        is_stuck[1] = True
    rows = int(sim.control["journal_rows"][0])
    difference = first_difference(second.journal, sim.journal[:rows].tolist())
    assert not difference, f"seed {seed}: {difference}"
    assert is_stuck[0] == is_stuck[1], f"seed {seed}"
    assert int(sim.control["refused"][0]) == second.refused, f"seed {seed}"
    return sim.journal[:rows]


@pytest.mark.parametrize("name", POLICIES)
def test_second_driver_leaves_the_journal_and_results_of_the_emulator(
    scripted: ModuleType, name: str
) -> None:
    policy = make_policy(name)
    for seed in (*range(SEEDS), JOIN_SEED):
        compare(scripted, policy, seed, is_checked=seed < CHECKED_SEEDS)


def test_second_driver_agrees_on_a_policy_that_answers_at_random(scripted: ModuleType) -> None:
    idle = fallbacks = 0
    for seed in range(SEEDS):
        journal = compare_erratic(scripted, seed, is_checked=seed < CHECKED_SEEDS)
        idle += int((journal["kind"] == EventKind.IDLE).sum())
        fallbacks += int(journal["is_fallback"].sum())
    assert idle > fallbacks > 0


@pytest.mark.long
@pytest.mark.parametrize("name", [*POLICIES, "erratic"])
def test_second_driver_agrees_on_thousands_of_scenarios(scripted: ModuleType, name: str) -> None:
    for seed in range(SEEDS, LONG_SEEDS):
        if name == "erratic":
            compare_erratic(scripted, seed)
        else:
            compare(scripted, make_policy(name), seed)


def test_scenarios_reach_every_event_and_every_end() -> None:
    kinds: set[int] = set()
    ends: set[int] = set()
    recomputed = unfinished = 0
    for name in POLICIES:
        for seed in range(SEEDS):
            trace, pool, slo, horizon_s, script = draw(seed)
            found = run(
                trace,
                pool,
                make_policy(name),
                slo,
                horizon_s=horizon_s,
                journal=True,
                script=script,
            )
            kinds |= set(found.journal["kind"].tolist())
            ends |= set(found.results["phase"].tolist())
            recomputed += found.recomputed
            unfinished += int((found.results["phase"] < RequestPhase.DONE).sum())
    assert kinds | {EventKind.IDLE} == set(EventKind)  # only erratic ones idle
    assert ends >= set(RequestPhase) - {RequestPhase(i) for i in range(4)}
    assert recomputed > 0
    assert unfinished > 0


def test_first_difference_names_the_row_and_its_fields() -> None:
    row = np.zeros(1, EVENT)[0].item()
    late = (5, *row[1:])
    assert first_difference([row, row], [row, row]) == ""
    assert first_difference([row, row], [row, late]).startswith(
        "row 1, scripted / emulated: time_ns 0 / 5\n"
    )
    assert first_difference([row], [row, late]) == f"1 / 2 rows, next: {late}"
