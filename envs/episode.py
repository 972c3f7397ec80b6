"""Episodes: what is drawn from a scenario, and the warm pool it starts from."""

from dataclasses import replace
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from envs.scenario import ScenarioSpec
from envs.stepping import serve_oldest
from runtime.core import NS, Dispatch, PoolSpec, PrefetchMode, SloSpec
from runtime.emulator.loop import Signal
from runtime.emulator.profile import load_profile
from runtime.emulator.run import build_state
from runtime.emulator.script import outside
from runtime.emulator.tables import Arrivals, Sim, grow_journal, grow_slots, new_sim
from runtime.pool.candidates import ROWS
from runtime.pool.state import State

STEP_TIMES = (
    *("prefill_s", "prefill_token_s", "prefill_token2_s"),
    *("decode_s", "decode_context_s", "decode_batch_s", "knot_s"),
)
CAPACITY = 512  # request slots at first
TEMPLATES = 64  # pools kept to copy from


class Episode(NamedTuple):
    """What was drawn: enough to play it again. `begin_s` is in the trace's own time, `length_s`
    in the pool's, warm-up included; `level` counts traces, then pools, then bins of the load."""

    level: int
    trace: int
    pool: PoolSpec
    slo: SloSpec
    load: float
    speed: float
    begin_s: float
    length_s: float


def draw(spec: ScenarioSpec, rng: np.random.Generator) -> Episode:
    """An episode of `spec`; a function of the generator's state alone."""
    level = int(np.searchsorted(_cumulative(spec), rng.random(), side="right"))
    trace, pool_number, load_bin = np.unravel_index(
        level, (len(spec.traces), len(spec.pools), spec.load_bins)
    )
    load = log_uniform(*bin_edges(spec, int(load_bin)), rng)
    pool, slo = spec.pools[pool_number], spec.slos[rng.integers(len(spec.slos))]
    load *= spec.size(pool)
    length_s = spec.warm_s + rng.uniform(spec.shortest_s, spec.longest_s)
    begin_s = rng.uniform(0.0, spec.trace(int(trace)).span_s - length_s * load)
    speed = log_uniform(*spec.speed, rng)
    return Episode(
        level, int(trace), _drawn_pool(spec, pool, rng), slo, load, speed, begin_s, length_s
    )


def _cumulative(spec: ScenarioSpec) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """Chances of the levels, summed up [levels - 1]."""
    weights = np.array(
        spec.level_weights or np.repeat(spec.trace_weights, spec.levels // len(spec.traces))
    )
    return np.cumsum(weights / weights.sum())[:-1]


def bin_edges(spec: ScenarioSpec, number: int) -> tuple[float, float]:
    """The least and the greatest load of a bin."""
    edges = np.geomspace(*spec.load_scale, spec.load_bins + 1)
    return float(edges[number]), float(edges[number + 1])


def log_uniform(low: float, high: float, rng: np.random.Generator) -> float:
    return float(np.exp(rng.uniform(np.log(low), np.log(high))))


def _drawn_pool(spec: ScenarioSpec, pool: PoolSpec, rng: np.random.Generator) -> PoolSpec:
    """The pool as an agent runs it, with the failures, the noise and the seed of one episode."""
    pool = role_free(pool, Dispatch.PUSH if spec.routes else Dispatch.PULL)
    if spec.mtbf_s:
        pool = replace(pool, mtbf_s=spec.mtbf_s[rng.integers(len(spec.mtbf_s))])
    if spec.noise is not None:
        pool = replace(pool, noise=float(rng.uniform(*spec.noise)))
    return replace(pool, seed=int(rng.integers(2**62))) if pool.draws else pool


@lru_cache(maxsize=TEMPLATES)
def role_free(pool: PoolSpec, dispatch: Dispatch = Dispatch.PULL) -> PoolSpec:
    """Every instance does both; pull: requests wait in one pool."""
    return replace(pool, roles=(), dispatch=dispatch, prefetch=PrefetchMode.CAUSAL)


def sample(spec: ScenarioSpec, rng: np.random.Generator, *, journal_rows: int = 0) -> Sim:
    """A warm pool at the start of an episode; `control.horizon_ns` is the episode's end."""
    return begin(spec, draw(spec, rng), journal_rows=journal_rows)


def begin(spec: ScenarioSpec, episode: Episode, *, journal_rows: int = 0) -> Sim:
    """The same; with `journal_rows` over 0 the pool keeps its journal from the first event on."""
    arrivals, pool = arrivals_in(spec, episode), episode.pool
    sim = new_sim(
        empty_state(spec, episode),
        arrivals,
        ttft_timeout_s=pool.ttft_timeout_s,
        journal_rows=journal_rows,
        noise=pool.noise,
        seed=pool.seed,
        script=outside(pool, arrivals),
    )
    warm_up(sim, spec.warm_s)
    sim.control["horizon_ns"] = round(episode.length_s * NS)
    return sim


def empty_state(spec: ScenarioSpec, episode: Episode) -> State:
    """The pool before its first event; what a replay of the journal starts from."""
    pool, names = episode.pool, spec.trace(episode.trace).models
    if pool.draws:  # what it draws does not show in an empty pool
        pool = replace(pool, seed=0, noise=0.0, mtbf_s=0.0)
    state = _built(pool, names, episode.slo).copy()
    for name in STEP_TIMES if episode.speed != 1 else ():
        state.costs[name] /= episode.speed
    return state


@lru_cache(maxsize=TEMPLATES)
def _built(pool: PoolSpec, names: tuple[str, ...], slo: SloSpec) -> State:
    """Copied, never played: building a state takes longer than playing half an episode."""
    return build_state(pool, names, slo, load_profile(pool.profile), capacity=CAPACITY)


def arrivals_in(spec: ScenarioSpec, episode: Episode) -> Arrivals:
    """The requests of the episode's window, `load` times as fast; models keep their numbers."""
    trace, begin_s = spec.trace(episode.trace), episode.begin_s
    stop_s = begin_s + episode.length_s * episode.load
    low, high = np.searchsorted(trace.arrival_s, [begin_s, stop_s])
    arrival_s = (trace.arrival_s[low:high] - begin_s) / episode.load
    priority = trace.priority
    return Arrivals(
        time_ns=np.rint(arrival_s * NS).astype(np.int64),
        model=trace.model[low:high].copy(),
        prompt_tokens=trace.prompt_tokens[low:high].copy(),
        output_tokens=trace.output_tokens[low:high].copy(),
        priority=np.zeros(high - low, np.int8) if priority is None else priority[low:high].copy(),
    )


def warm_up(sim: Sim, seconds: float) -> None:
    """Serve the oldest request first up to `seconds`, so that no episode starts from an empty
    pool."""
    sim.control["horizon_ns"] = round(seconds * NS)
    rows = np.zeros(ROWS, np.int64)
    while True:
        signal = serve_oldest(sim, rows)
        if signal == Signal.SLOTS_FULL:
            grow_slots(sim)
        elif signal == Signal.JOURNAL_FULL:
            grow_journal(sim)
        else:
            return
