"""Scenarios: which trace window, load and pool an episode plays, drawn from a seed."""

from dataclasses import dataclass, field, replace
from math import inf

import numpy as np

from envs.stepping import serve_oldest
from runtime.core import NS, Dispatch, PoolSpec, PrefetchMode, SloSpec
from runtime.emulator.loop import Signal
from runtime.emulator.profile import load_profile
from runtime.emulator.run import build_state, new_memory
from runtime.emulator.script import outside
from runtime.emulator.tables import Sim, arrivals_of, grow_slots, new_sim
from runtime.errors import UserError
from runtime.pool.candidates import ROWS
from runtime.protocol import Policy
from traces import Trace
from traces.bundled import load_bundled


@dataclass(frozen=True, slots=True, kw_only=True)
class ScenarioSpec:
    """Episodes of one trace on one role-free pool.

    A window starts uniformly in [start_s, end_s - warm_s - longest_s]; `warm` (default: oldest
    request first) runs the pool for `warm_s`; the episode then lasts between shortest_s and
    longest_s. `load_scale` is a range; the rate is scaled by a log-uniform draw from it.
    """

    trace: Trace
    pool: PoolSpec
    warm: Policy | None = None
    slo: SloSpec = field(default_factory=SloSpec)
    start_s: float = 0.0
    end_s: float | None = None
    warm_s: float = 20.0
    shortest_s: float = 30.0
    longest_s: float = 90.0
    load_scale: tuple[float, float] = (1.0, 1.0)

    def __post_init__(self) -> None:
        low, high = self.load_scale
        for name in ("start_s", "warm_s"):
            if not 0 <= getattr(self, name) < inf:
                raise UserError(f"{name}={getattr(self, name)}: expected 0 or more seconds")
        if not 0 < low <= high < inf:
            raise UserError(f"load_scale={self.load_scale}: expected 0 < low <= high")
        if not 0 < self.shortest_s <= self.longest_s < inf:
            raise UserError(
                f"shortest_s={self.shortest_s}, longest_s={self.longest_s}:"
                " expected 0 < shortest_s <= longest_s"
            )
        need = self.warm_s + self.longest_s
        if not self.stop_s - self.start_s >= need * high:
            raise UserError(
                f"trace {self.trace.name}: window of {self.stop_s - self.start_s:.0f} s is shorter"
                f" than warm_s + longest_s at load {high:g} ({need * high:.0f} s)"
            )
        if self.deadline_rate == 0:
            raise UserError(
                f"trace {self.trace.name}: no request from {self.start_s:g} to {self.stop_s:g} s"
            )

    @property
    def stop_s(self) -> float:
        return self.trace.span_s if self.end_s is None else self.end_s

    @property
    def deadline_rate(self) -> float:
        """Token deadlines per second at load 1: the constant that scales rewards."""
        inside = (self.trace.arrival_s >= self.start_s) & (self.trace.arrival_s < self.stop_s)
        return float(self.trace.output_tokens[inside].sum()) / (self.stop_s - self.start_s)


def sample(spec: ScenarioSpec, rng: np.random.Generator) -> Sim:
    """A warm pool at the start of an episode; `control.horizon_ns` is the episode's end."""
    low, high = spec.load_scale
    scale = float(np.exp(rng.uniform(np.log(low), np.log(high))))
    length_s = spec.warm_s + rng.uniform(spec.shortest_s, spec.longest_s)
    begin_s = rng.uniform(spec.start_s, spec.stop_s - length_s * scale)
    window = spec.trace.window(begin_s, length_s * scale, keep_models=True).scale_rate(scale)
    pool = role_free(spec.pool)
    state = build_state(pool, window.models, spec.slo, load_profile(pool.profile), capacity=512)
    if pool.draws:
        pool = replace(pool, seed=int(rng.integers(2**62)))
    arrivals = arrivals_of(window)
    sim = new_sim(
        state,
        arrivals,
        ttft_timeout_s=pool.ttft_timeout_s,
        noise=pool.noise,
        seed=pool.seed,
        script=outside(pool, arrivals),
    )
    warm_up(sim, spec.warm, spec.warm_s)
    sim.control["horizon_ns"] = round(length_s * NS)
    return sim


def role_free(pool: PoolSpec) -> PoolSpec:
    """The pool as an agent runs it: every instance does both, requests wait in one pool."""
    return replace(pool, roles=(), dispatch=Dispatch.PULL, prefetch=PrefetchMode.CAUSAL)


def warm_up(sim: Sim, policy: Policy | None, seconds: float) -> None:
    """Run `policy` up to `seconds`, so that an episode does not start from an empty pool."""
    sim.control["horizon_ns"] = round(seconds * NS)
    memory = None if policy is None else new_memory(sim, policy)
    rows = np.zeros(ROWS, np.int64)
    while True:
        signal = serve_oldest(sim, rows) if policy is None else policy.drive(sim, memory)
        if signal != Signal.SLOTS_FULL:
            return
        grow_slots(sim)


def demo_scenario() -> ScenarioSpec:
    """The bundled market on eight H100s with the paper's three model sizes."""
    sizes = ("Qwen2.5-7B",) * 6 + ("Yi-1.5-9B",) * 2 + ("Llama-2-13B",) * 2
    pool = PoolSpec(name="h100x8", profile="h100", checkpoints=sizes)
    return ScenarioSpec(trace=load_bundled(), pool=pool)
