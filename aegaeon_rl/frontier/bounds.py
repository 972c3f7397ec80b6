"""What no scheduler can pass: a capacity bound from step times, the host link and residency.

Counted per model on a real sequence of requests, each relaxed so that the bound stays above what
any schedule reaches:

- compute: every prompt once, plus the least number of decode steps. A request of O tokens needs
  O - 1 steps between its arrival and the time its last token is due; one step serves all requests
  that are open. The least number of points that give every interval its steps is found exactly by
  placing missing ones as late as possible, in order of deadline. A step costs what the profile says
  at the mean batch and context that this gives.
- link: a first token in time needs a visit within the TTFT of each arrival; the least number of
  visits is found in the same way. A visit costs a load of the weights, unless the model stayed
  resident since the last one: the shortest gaps are bridged, as far as all weight slots of the pool
  together have room. Loads overlap with compute (they need not: that only lowers what is reached).

A pool of G instances holds at most as many models as their compute and their links hold; a target
of share tau lets 1 - tau of an average model's work go, so both are divided by tau. Left out: KV
transfers and KV memory, steps at the wrong time, loads that overlap with nothing, imbalance between
instances.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from aegaeon_rl.frontier.steady import Steady, steady_trace
from runtime.catalog import assign_checkpoints
from runtime.core import ModelSpec, PoolSpec, SloSpec
from runtime.emulator.profile import load_profile
from runtime.pool.costs import prefill_s, step_s
from runtime.pool.state import Record
from traces import Trace

Floats = npt.NDArray[np.float64]
REFERENCE_SEED = 997
REFERENCE_DEALS = 2  # of the pool's checkpoints: models of the reference workload


class Demand(NamedTuple):
    """One model's least work over `span_s`: compute, and the times it must be visited."""

    compute_s: float
    visits_s: Floats
    load_s: float
    span_s: float


@dataclass(frozen=True, slots=True)
class Bound:
    """Instances or models at which compute and the links are full."""

    compute: float
    link: float
    is_most: bool  # models at most; else instances at least

    @property
    def value(self) -> float:
        return min(self.compute, self.link) if self.is_most else max(self.compute, self.link)

    @property
    def by(self) -> str:
        return "compute" if self.value == self.compute else "link"


def least_points(
    opens_s: Floats, closes_s: Floats, needs: npt.NDArray[np.int64]
) -> tuple[Floats, npt.NDArray[np.int64]]:
    """Times and multiplicities of the fewest points such that each interval holds its need."""
    times: list[float] = []
    counts: list[int] = []
    for i in np.argsort(closes_s, kind="stable"):
        missing, k = int(needs[i]), len(times) - 1
        while k >= 0 and times[k] >= opens_s[i] and missing > 0:
            missing -= counts[k]
            k -= 1
        if missing > 0:
            times.append(float(closes_s[i]))
            counts.append(missing)
    return np.array(times), np.array(counts, np.int64)


def demands(
    trace: Trace, pool: PoolSpec, slo: SloSpec, warm_s: float, span_s: float
) -> list[Demand]:
    """Each model's; requests that arrive before `warm_s` are left out."""
    models = assign_checkpoints(trace.models, pool.checkpoints)
    costs = load_profile(pool.profile).table(models, pool.tp)[0]
    counted = trace.arrival_s >= warm_s
    return [
        demand(
            trace,
            counted & (trace.model == m),
            model,
            costs[m],
            pool,
            slo.of(model.name),
            span_s - warm_s,
        )
        for m, model in enumerate(models)
    ]


def demand(
    trace: Trace,
    rows: npt.NDArray[np.bool_],
    model: ModelSpec,
    cost: Record,
    pool: PoolSpec,
    slo: SloSpec,
    span_s: float,
) -> Demand:
    arrival, output = trace.arrival_s[rows], trace.output_tokens[rows].astype(np.int64)
    prompt = trace.prompt_tokens[rows]
    due_s = arrival + slo.ttft_s
    _, steps = least_points(arrival, due_s + slo.tbt_s * output, output - 1)
    visits_s, _ = least_points(arrival, due_s, np.ones(len(arrival), np.int64))
    compute_s = sum(whole(prefill_s(cost, int(tokens)), pool) for tokens in prompt)
    tokens = int((output - 1).sum())
    if steps.sum() > 0:
        batch = tokens / steps.sum()
        context = float(((output - 1) * (prompt + output / 2)).sum()) / max(1, tokens)
        compute_s += int(steps.sum()) * whole(step_s(cost, batch * context, batch), pool)
    load_s = model.weight_bytes / pool.tp / pool.h2d_bytes_s
    return Demand(compute_s, visits_s, load_s, span_s)


def whole(seconds: float, pool: PoolSpec) -> float:
    """As the pool's quantum truncates it."""
    quantum = pool.step_quantum_s
    return float(seconds // quantum * quantum) if quantum > 0 else float(seconds)


def link_share(found: list[Demand], slots: float) -> float:
    """Link seconds a second that these models need where `slots` of them stay resident."""
    if slots >= len(found):
        return 0.0
    span_s = found[0].span_s
    gaps = [np.diff(d.visits_s, prepend=0.0) for d in found if len(d.visits_s)]
    loads = [np.full(len(d.visits_s), d.load_s) for d in found if len(d.visits_s)]
    if not gaps:
        return 0.0
    gap, load = np.concatenate(gaps), np.concatenate(loads)
    order = np.argsort(gap)
    bridged = np.searchsorted(np.cumsum(gap[order]), slots * span_s, side="right")
    return float(load[order[bridged:]].sum() / span_s)


def most_models(pool: PoolSpec, workload: Steady, slo: SloSpec, target: float) -> Bound:
    """The bound in steady models."""
    count = REFERENCE_DEALS * len(pool.checkpoints)
    trace = steady_trace(workload, count, REFERENCE_SEED)
    found = demands(trace, pool, slo, workload.warm_s, workload.span_s)
    each_s = sum(d.compute_s / d.span_s for d in found) / count
    compute = pool.instances / each_s / target
    return Bound(compute, _link_models(found, pool, target), True)


def links(pool: PoolSpec) -> float:
    return pool.instances / pool.instances_per_port


def _link_models(found: list[Demand], pool: PoolSpec, target: float) -> float:
    """Bisection over the number of models that share the slots and the links."""
    slots, count = pool.instances * pool.weight_slots, len(found)
    low, high = float(slots), 1e5
    for _ in range(50):
        middle = 0.5 * (low + high)
        needed = link_share(found, slots * count / middle) * middle / count
        low, high = (middle, high) if needed * target <= links(pool) else (low, middle)
    return low


def least_instances(found: list[Demand], pool: PoolSpec, target: float) -> Bound:
    """The fewest instances for a trace, as a mean over its time: peaks only raise it."""
    compute = target * sum(d.compute_s / d.span_s for d in found)
    low, high = 0.0, float(len(found))
    for _ in range(40):
        middle = 0.5 * (low + high)
        needed = target * link_share(found, middle * pool.weight_slots)
        low, high = (low, middle) if needed <= middle / pool.instances_per_port else (middle, high)
    return Bound(compute, high, False)
