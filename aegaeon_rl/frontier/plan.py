"""`plan.csv`: per model pooled or dedicated, GPUs by type, spares, host memory, cost. M models.

A model whose least work fills HOT of an instance by itself leaves little to share: such models are
tried on GPUs of their own with the rest pooled, and the plan with fewer GPUs is kept. Spares are
one more node like the pool's (with it, losing any node leaves the pool that was sized), and for
dedicated GPUs as many as a node of eight holds. A pooled model's GPUs are its share of the pool's,
by least work; the column sums are whole GPUs. Host memory is what the node caches hold: each node
of the pool keeps all pooled weights as far as they fit, and its KV.
"""

import csv
import io
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from aegaeon_rl.evaluation.compare import Plan
from aegaeon_rl.evaluation.sizing import NODE, equal_nodes, gpus_near
from aegaeon_rl.frontier.cells import CellStore
from aegaeon_rl.frontier.cost import Prices
from aegaeon_rl.frontier.gpus import Ways, axis_of, way_of
from aegaeon_rl.frontier.search import Ladder
from runtime.catalog import assign_checkpoints
from runtime.emulator.profile import load_profile
from runtime.protocol import Policy
from traces import Trace

HOT = 0.5  # of an instance's time
GB = 1e9


class Line(NamedTuple):
    """A row of plan.csv."""

    model: str
    checkpoint: str
    placement: str  # pooled | dedicated
    requests: int
    rate_rps: float
    instances_needed: float  # least work over time
    gpu: str
    gpus: float
    spare_gpus: float
    host_weights_gb: float
    usd_hour: float
    usd_million_tokens: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ServingPlan:
    """Which models have GPUs of their own, and the pool for the rest."""

    policy: str
    dedicated: tuple[int, ...]  # models
    pool_gpus: int
    dedicated_gpus: int
    nodes: int  # of the pool
    lines: tuple[Line, ...]
    host_gb_node: float  # weights and KV of one node of the pool
    is_cached: bool  # do all pooled weights fit a node's cache?

    @property
    def gpus(self) -> int:
        return self.pool_gpus + self.dedicated_gpus

    @property
    def spare_gpus(self) -> int:
        return round(sum(line.spare_gpus for line in self.lines))

    @property
    def usd_hour(self) -> float:
        return sum(line.usd_hour for line in self.lines)


def needed(ways: Ways) -> npt.NDArray[np.float64]:
    """[M] instances that each model's least work fills, over all windows."""
    spans = [sum(part[m].span_s for part in ways.demands) for m in range(len(ways.replicas))]
    works = [sum(part[m].compute_s for part in ways.demands) for m in range(len(ways.replicas))]
    return np.array(works) / np.array(spans)


def without(plan: Plan, left_out: tuple[int, ...]) -> Plan:
    """The plan for the other models, each with the checkpoint it had."""
    trace = plan.trace
    kept: Trace = trace.rows(np.flatnonzero(~np.isin(trace.model, left_out)))
    cycle = plan.pool.checkpoints
    own = {name: cycle[m % len(cycle)] for m, name in enumerate(trace.models)}
    pool = replace(plan.pool, checkpoints=tuple(own[name] for name in kept.models))
    return replace(plan, trace=kept, pool=pool)


def serving_plan(
    ways: Ways,
    policy: Policy,
    prices: Prices,
    listen: Callable[[str], None] = lambda _: None,
) -> ServingPlan:
    """For `policy`, whose pool of all models was sized in `ways`."""
    work = needed(ways)
    hot = tuple(int(m) for m in np.flatnonzero(work >= HOT))
    everyone = next(w for w in ways.ways if w.name.split(" ")[0] == policy.name)
    sizes: dict[tuple[int, ...], int | None] = {}
    if everyone.gpus is not None:
        sizes[()] = everyone.gpus
    if hot:
        sizes[hot] = _beside(ways, hot, policy, listen)
    tp = ways.plan.pool.tp

    def total(apart: tuple[int, ...]) -> int:
        return (sizes[apart] or 0) + tp * sum(ways.replicas[m] for m in apart)

    held = [apart for apart, gpus in sizes.items() if gpus is not None]
    all_apart = tuple(range(len(work)))
    best = min(held, key=total, default=all_apart)
    if held and ways.dedicated.gpus is not None and ways.dedicated.gpus < total(best):
        best = all_apart
    pool_gpus = sizes.get(best) or 0
    return _filled(ways, policy.name, best, pool_gpus, work, prices)


def _beside(
    ways: Ways, hot: tuple[int, ...], policy: Policy, listen: Callable[[str], None]
) -> int | None:
    """GPUs of the pool for the others."""
    plan = ways.plan
    if len(hot) == len(plan.trace.models):
        return 0
    rest = without(plan, hot)
    most = plan.pool.tp * sum(r for m, r in enumerate(ways.replicas) if m not in hot)
    axis = axis_of(rest, gpus_near(most, plan.pool.tp))
    return way_of(Ladder(axis, policy, CellStore(), listen), rest).gpus


def _filled(
    ways: Ways,
    policy: str,
    apart: tuple[int, ...],
    pool_gpus: int,
    work: npt.NDArray[np.float64],
    prices: Prices,
) -> ServingPlan:
    plan, pool = ways.plan, ways.plan.pool
    gpu = load_profile(pool.profile).gpu
    models = assign_checkpoints(plan.trace.models, pool.checkpoints)
    nodes, per_node = equal_nodes(pool_gpus, pool.tp) if pool_gpus else (0, 0)
    own = np.array([pool.tp * n if m in apart else 0 for m, n in enumerate(ways.replicas)])
    pooled = np.array([m not in apart for m in range(len(models))])
    share = np.where(pooled, work, 0.0) / max(float(work[pooled].sum()), 1e-12)
    gpus = own + share * pool_gpus
    own_spares = min(NODE, int(own.sum())) * own / max(1, int(own.sum()))
    spares = own_spares + share * per_node * pool.tp
    weights = np.array([model.weight_bytes for model in models]) / GB
    requests = np.bincount(plan.trace.model, minlength=len(models))
    tokens = np.bincount(plan.trace.model, plan.trace.output_tokens, len(models))
    span_s = max(plan.trace.span_s, 1e-9)
    lines = []
    for m, model in enumerate(models):
        usd = float(gpus[m] + spares[m]) * prices.of(gpu)
        lines.append(
            Line(
                model=model.name,
                checkpoint=model.checkpoint,
                placement="pooled" if pooled[m] else "dedicated",
                requests=int(requests[m]),
                rate_rps=float(requests[m]) / span_s,
                instances_needed=float(work[m]),
                gpu=gpu,
                gpus=float(gpus[m]),
                spare_gpus=float(spares[m]),
                host_weights_gb=float(weights[m]) * (nodes if pooled[m] else 1),
                usd_hour=usd,
                usd_million_tokens=usd / 3600 / max(tokens[m] / span_s, 1e-12) * 1e6,
            )
        )
    cached = float(weights[pooled].sum())
    return ServingPlan(
        policy=policy,
        dedicated=apart,
        pool_gpus=pool_gpus,
        dedicated_gpus=int(own.sum()),
        nodes=nodes,
        lines=tuple(lines),
        host_gb_node=min(cached, pool.host_weight_bytes / GB) + pool.host_kv_bytes / GB,
        is_cached=cached <= pool.host_weight_bytes / GB,
    )


def as_csv(lines: tuple[Line, ...]) -> str:
    """The rows as text; numbers to four digits."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(Line._fields)
    for line in lines:
        writer.writerow([f"{v:.4g}" if isinstance(v, float) else v for v in line])
    return out.getvalue()


def plan_sentence(plan: ServingPlan) -> str:
    apart = f"{plan.dedicated_gpus} for {len(plan.dedicated)} hot models" if plan.dedicated else ""
    both = " + ".join(part for part in (f"{plan.pool_gpus} pooled", apart) if part)
    cache = "" if plan.is_cached else ", which do not all fit: the rest comes from disk"
    return (
        f"plan.csv ({plan.policy}): {plan.gpus} GPUs ({both}), {plan.spare_gpus} spare for a lost"
        f" node, {plan.host_gb_node:,.0f} GB of host memory a node for weights{cache} and KV,"
        f" {plan.usd_hour:,.2f} USD an hour with spares."
    )
