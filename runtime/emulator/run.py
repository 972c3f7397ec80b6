"""One trace through one emulated pool under one policy: the plain way to use the emulator."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from runtime.catalog import assign_checkpoints
from runtime.core import NS, ModelSpec, PoolSpec, SloSpec
from runtime.emulator.loop import Signal, keep_unfinished
from runtime.emulator.profile import Profile, load_profile
from runtime.emulator.script import outside
from runtime.emulator.tables import Sim, arrivals_of, grow_journal, grow_slots, new_sim
from runtime.pool.initial import new_state
from runtime.pool.placement import preload
from runtime.pool.state import State, Table
from runtime.protocol import Oracle, Places, Policy, Workload
from traces import Trace


class PolicyStuckError(RuntimeError):
    """Requests wait, instances are free, and the policy never serves them."""


@dataclass(frozen=True, slots=True)
class Run:
    """What a run left behind. `results` [R] are RESULT rows in arrival order, `journal` [J] EVENTs,
    `gaps` the histogram of token gaps (runtime.slo), `instances` the final INSTANCE table. A replay
    of the journal starts from `placement`, (instance, model) pairs that were preloaded."""

    pool: PoolSpec
    models: tuple[ModelSpec, ...]
    results: Table
    journal: Table
    gaps: npt.NDArray[np.int64]
    instances: Table
    end_s: float
    decisions: int
    events: int
    refused: int
    recomputed: int
    network_bytes: int
    placement: tuple[tuple[int, int], ...] = ()


def build_state(
    pool: PoolSpec, names: tuple[str, ...], slo: SloSpec, profile: Profile, *, capacity: int = 1024
) -> State:
    """An empty pool that serves `names` with checkpoints in order of first appearance."""
    models = assign_checkpoints(names, pool.checkpoints)
    costs = profile.table(models, pool.tp)
    return new_state(pool, models, tuple(map(slo.of, names)), costs, capacity=capacity)


def build_sim(
    trace: Trace,
    pool: PoolSpec,
    slo: SloSpec,
    *,
    horizon_s: float | None,
    journal_rows: int,
    script: Table | None = None,
) -> Sim:
    arrivals = arrivals_of(trace)
    state = build_state(pool, trace.models, slo, load_profile(pool.profile))
    return new_sim(
        state,
        arrivals,
        ttft_timeout_s=pool.ttft_timeout_s,
        horizon_s=horizon_s,
        journal_rows=journal_rows,
        noise=pool.noise,
        seed=pool.seed,
        script=outside(pool, arrivals, script),
    )


def workload_of(trace: Trace) -> Workload:
    """Mean rate over the trace's span and mean lengths; 0 for a model without requests."""
    n_models = len(trace.models)
    counts = np.bincount(trace.model, minlength=n_models)
    prompt = np.bincount(trace.model, trace.prompt_tokens, n_models)
    output = np.bincount(trace.model, trace.output_tokens, n_models)
    each = np.maximum(counts, 1)
    return Workload(counts / max(trace.span_s, 1.0), prompt / each, output / each)


def new_memory(sim: Sim, policy: Policy) -> Any:
    """The policy's memory of a fresh pool; an oracle's holds the trace's output lengths."""
    memory = policy.memory(sim.state)
    if isinstance(policy, Oracle):
        policy.foresee(memory, sim.arrivals.output_tokens)
    return memory


def drive(sim: Sim, policy: Policy) -> None:
    """Run to the end, growing tables as they fill. Raises PolicyStuckError."""
    memory = new_memory(sim, policy)
    while True:
        signal = policy.drive(sim, memory)
        if signal == Signal.END:
            keep_unfinished(sim)
            return
        if signal == Signal.SLOTS_FULL:
            grow_slots(sim)
        elif signal == Signal.JOURNAL_FULL:
            grow_journal(sim)
        else:
            waiting = int(sim.state.pool["in_flight"][0])
            raise PolicyStuckError(
                f"policy {policy.name}: {waiting} requests wait and nothing happens"
            )


def run(
    trace: Trace,
    pool: PoolSpec,
    policy: Policy,
    slo: SloSpec,
    *,
    horizon_s: float | None = None,
    journal: bool = False,
    script: Table | None = None,
) -> Run:
    """Emulate `trace` on `pool` until every request has ended, or until `horizon_s`.

    `script` adds events from outside (runtime.emulator.script) to those the pool's rates draw.
    """
    configured = policy.configure(pool)
    rows = 1 << 16 if journal else 0
    sim = build_sim(trace, configured, slo, horizon_s=horizon_s, journal_rows=rows, script=script)
    placement: tuple[tuple[int, int], ...] = ()
    if isinstance(policy, Places):
        placement = policy.placement(sim.state, workload_of(trace))
        preload(sim.state, placement)
    drive(sim, policy)
    control, final = sim.control[0], sim.state.pool[0]
    return Run(
        pool=configured,
        models=assign_checkpoints(trace.models, pool.checkpoints),
        results=sim.results,
        journal=sim.journal[: control["journal_rows"]],
        gaps=sim.state.gaps,
        instances=sim.state.instances,
        end_s=float(final["now_ns"]) / NS,
        decisions=int(control["decisions"]),
        events=int(control["events"]),
        refused=int(control["refused"]),
        recomputed=int(final["recomputed"]),
        network_bytes=int(final["network_bytes"]),
        placement=placement,
    )
