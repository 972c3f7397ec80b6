"""Random scenarios with all physics on, as hypothesis strategies."""

from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
from hypothesis import strategies as st

from runtime.core import (
    Dispatch,
    EventKind,
    HostKvFull,
    ModelSlo,
    Phases,
    PoolSpec,
    PrefetchMode,
    SloSpec,
)
from traces import Trace, TraceKind

GB = 1_000_000_000
SMALL = ("Qwen3-0.6B", "Qwen2.5-7B", "Llama-2-13B", "Qwen3-1.7B")
ARTIFACT = ("sosp25/Qwen2.5-7B", "sosp25/Yi-1.5-9B", "sosp25/Llama-2-13B")
PAIRED = ("Qwen3-32B", "Mixtral-8x7B")  # instances of two GPUs; the latter with a decode table
RULES = ("oldest", "rotate", "erratic", "round_robin")


class Scenario(NamedTuple):
    trace: Trace
    pool: PoolSpec
    slo: SloSpec
    horizon_s: float | None
    script: tuple[tuple[float, EventKind, int], ...]
    rule: str
    seed: int


@st.composite
def traces(draw: st.DrawFn) -> Trace:
    """A few models and requests; arrivals often coincide, with each other and with round times."""
    n, models = draw(one_of(40, 24, 12, 3)), draw(one_of(2, 1, 3, 5))
    longest, most = draw(one_of(1000, 3000, 300, 40)), draw(one_of(60, 60, 8, 1))
    mean_gap_s, grid_s = draw(one_of(0.02, 0.1, 0.4)), draw(one_of(0.0, 0.0, 0.05))
    rng = np.random.default_rng(draw(st.integers(0, 1 << 32)))
    arrival_s = np.cumsum(rng.exponential(mean_gap_s, n))
    return Trace(
        name="random",
        kind=TraceKind.SYNTHETIC,
        models=tuple(f"m{i}" for i in range(models)),
        model=rng.integers(0, models, n).astype(np.int32),
        arrival_s=np.floor(arrival_s / grid_s) * grid_s if grid_s > 0 else arrival_s,
        prompt_tokens=rng.integers(1, longest, n).astype(np.int32),
        output_tokens=rng.integers(1, 1 + most, n).astype(np.int32),
        priority=rng.integers(0, 3, n).astype(np.int8),
    )


def one_of(*values: Any) -> st.SearchStrategy[Any]:
    return st.sampled_from(values)


@st.composite
def pools(draw: st.DrawFn) -> PoolSpec:
    """Every rule of a pool is drawn; device and host hold from a part of a request to many."""
    kind = draw(one_of("small", "artifact", "paired"))
    names = {"small": SMALL, "artifact": ARTIFACT, "paired": PAIRED}[kind]
    profile = {"small": one_of("h100", "h200", "a100"), "artifact": one_of("h100_sosp25")}
    slots, is_reserved = draw(one_of(2, 1, 3)), draw(st.booleans())
    tp, largest = (2, 47 * GB) if kind == "paired" else (1, 26_100_000_000)
    budget = draw(one_of(0, 0, 10, 13, 20)) * largest // 10
    held = budget or (slots if is_reserved else 1) * largest
    nodes, per_node = draw(one_of((1, 1), (1, 2), (2, 1), (2, 2)))
    return PoolSpec(
        name="random",
        profile=draw(profile.get(kind, one_of("h100", "h200", "h20"))),
        checkpoints=tuple(draw(st.lists(one_of(*names), min_size=1, max_size=3))),
        nodes=nodes,
        instances_per_node=per_node,
        tp=tp,
        roles=draw(roles(nodes * per_node)),
        vram_bytes=held + int(draw(one_of(30, 3, 1, 0.5)) * GB),
        kv_fraction=draw(one_of(0.9, 0.5)),
        weight_slots=slots,
        weight_budget_bytes=budget,
        slots_reserved=is_reserved,
        h2d_bytes_s=draw(one_of(50e9, 16e9, 200e9)),
        d2h_bytes_s=draw(one_of(50e9, 2e9)),
        instances_per_port=draw(one_of(2, 1)),
        load_chunk_bytes=draw(one_of(0, 256_000_000, 4 * GB)),
        kv_in_overlaps=draw(st.booleans()),
        kv_out_free=draw(st.booleans()),
        kv_reload_every_turn=draw(st.booleans()),
        kv_stays=draw(st.booleans()),
        kv_move_token_bytes=draw(one_of(0, 500_000)),
        block_tokens=draw(one_of(16, 1)),
        lookahead_tokens=draw(one_of(64, 8, 0)),
        prefill_budget_tokens=draw(one_of(0, 512, 4096)),
        prefill_chunk_tokens=draw(one_of(0, 0, 512, 64)),
        host_weight_bytes=draw(one_of(1500, 100, 60, 30)) * GB,
        host_kv_bytes=draw(one_of(256 * GB, 4 * GB, GB, 1_000_000)),
        host_kv_full=draw(one_of(*HostKvFull)),
        disk_bytes_s=draw(one_of(6e9, 30e9)),
        network_bytes_s=draw(one_of(25e9, 1e9, 0.0)),
        token_preempt=draw(one_of(True, True, False)),
        kv_survives_switch=draw(st.booleans()),
        command_s=draw(one_of(0.0, 0.003)),
        turn_overhead_s=draw(one_of(0.0, 0.004)),
        step_overhead_s=draw(one_of(0.0, 0.0007)),
        step_quantum_s=draw(one_of(0.0, 0.001)),
        max_wait_s=draw(one_of(0.0, 1.0)),
        interrupt_slack_s=draw(one_of(0.0, 1.0, 20.0)),
        priorities=draw(st.booleans()),
        ttft_timeout_s=draw(one_of(0.0, 0.0, 0.5, 3.0)),
        max_queue=draw(one_of(0, 0, 0, 4)),
        mtbf_s=draw(one_of(0.0, 0.0, 0.0, 1.0)),
        mttr_s=0.2,
        cancel_after_s=draw(one_of(0.0, 0.0, 0.0, 2.0)),
        noise=draw(one_of(0.0, 0.1, 1.0)),
        seed=draw(st.integers(0, 2**62)),
    )


@st.composite
def pressed(draw: st.DrawFn, pool: PoolSpec) -> PoolSpec:
    """Little memory, slow links and nothing that ends requests early: KV is moved all the time."""
    return replace(
        pool,
        roles=(),
        h2d_bytes_s=2e9,
        d2h_bytes_s=draw(one_of(2e9, 5e8)),
        disk_bytes_s=2e10,
        kv_out_free=False,
        kv_move_token_bytes=0,
        host_kv_bytes=draw(one_of(256 * GB, GB, GB // 4)),
        token_preempt=True,
        kv_survives_switch=True,
        ttft_timeout_s=0.0,
        max_queue=0,
        mtbf_s=0.0,
        cancel_after_s=draw(one_of(0.0, 5.0)),
    )


def urgent(pool: PoolSpec) -> PoolSpec:
    """One instance that can be stopped, and prompts that are soon done: arrivals ask often."""
    return replace(
        pool,
        nodes=1,
        instances_per_node=1,
        roles=(),
        token_preempt=True,
        interrupt_slack_s=20.0,
        prefill_chunk_tokens=0,
        prefill_budget_tokens=4096,
    )


def roles(instances: int) -> st.SearchStrategy[tuple[Phases, ...]]:
    if instances == 1:
        return st.just(())
    rest = st.lists(st.sampled_from(Phases), min_size=instances - 2, max_size=instances - 2)
    return one_of((), ()) | rest.map(lambda r: (Phases.PREFILL, Phases.DECODE, *r))


@st.composite
def scenarios(draw: st.DrawFn) -> Scenario:
    trace, pool, rule = draw(traces()), draw(pools()), draw(one_of(*RULES))
    pool = draw(pressed(pool)) if draw(st.booleans()) else pool
    pool = urgent(pool) if draw(one_of(False, False, True)) else pool
    dispatch = Dispatch.PUSH if rule == "round_robin" else draw(one_of(*Dispatch))
    mode = draw(one_of(PrefetchMode.CAUSAL, PrefetchMode.CAUSAL, *PrefetchMode))
    times = one_of(0.0, 0.5) | st.floats(0.0, trace.span_s + 1.0)
    cancels = st.tuples(times, st.just(EventKind.CANCEL), st.integers(0, trace.requests - 1))
    machines = st.integers(0, pool.instances - 1)
    ways = one_of(EventKind.INSTANCE_FAILED, EventKind.INSTANCE_JOINED)
    fails = st.tuples(times, ways, machines)
    script = draw(st.lists(cancels | fails, max_size=draw(one_of(0, 4))))
    end = [(trace.span_s + 9, EventKind.INSTANCE_JOINED, g) for g in range(pool.instances)]
    own = ModelSlo(ttft_s=draw(one_of(0.2, 2.0)), tbt_s=draw(one_of(0.01, 0.3)))
    slo = SloSpec(ttft_s=draw(one_of(10.0, 0.5)), tbt_s=draw(one_of(0.1, 0.02)))
    return Scenario(
        trace=trace,
        pool=replace(pool, dispatch=dispatch, prefetch=mode),
        slo=replace(slo, models={"m0": own}) if draw(st.booleans()) else slo,
        horizon_s=draw(one_of(None, None, None, 1.0, 3.0)),
        script=(*script, *end),
        rule=rule,
        seed=draw(st.integers(0, 1 << 30)),
    )
