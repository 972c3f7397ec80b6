"""The fewest GPUs that hold a trace, served in several ways, and what they cost.

Dedicated GPUs are sized for the same target on the same windows (evaluation.sizing); every other
way is a policy on pools of that many GPUs and fewer. Where an instance is a group of GPUs, a size
is in whole groups.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from aegaeon_rl.evaluation.bootstrap import Interval
from aegaeon_rl.evaluation.compare import Plan, check_deadlines, label_of, window_trace
from aegaeon_rl.evaluation.sizing import dedicated_replicas, gpus_near
from aegaeon_rl.frontier.axis import GpusAxis
from aegaeon_rl.frontier.bounds import Demand, demands, least_instances
from aegaeon_rl.frontier.cells import CellStore
from aegaeon_rl.frontier.cost import Prices
from aegaeon_rl.frontier.models import METRICS
from aegaeon_rl.frontier.search import Facts, Ladder, crossing, hardest
from runtime.emulator.profile import load_profile
from runtime.protocol import Oracle, Policy
from traces import Trace

UNKNOWN = Interval(float("nan"), float("nan"), float("nan"))


class Way(NamedTuple):
    """One way to serve the trace. `gpus` None: the target is out of reach with `most` GPUs."""

    name: str
    gpus: int | None
    at: Interval
    share: float
    facts: Facts | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Ways:
    """For one target: dedicated serving first, then the policies in the order given."""

    plan: Plan
    replicas: tuple[int, ...]  # dedicated instances of each model
    ways: tuple[Way, ...]
    demands: tuple[tuple[Demand, ...], ...]  # by window, by model
    bound_gpus: float

    @property
    def dedicated(self) -> Way:
        return self.ways[0]

    @property
    def best(self) -> Way:
        """The fewest GPUs that hold the target, oracles aside; of equals the higher share."""
        held = [w for w in self.ways if w.gpus is not None and not w.name.endswith("(oracle)")]
        return min(held or self.ways[:1], key=lambda w: (w.gpus or 0, -w.share))


def ways_of(
    plan: Plan,
    policies: Sequence[Policy],
    store: CellStore,
    listen: Callable[[str], None] = lambda _: None,
) -> Ways:
    check_deadlines(plan.trace, plan.slo)
    listen("dedicated")
    replicas, share = dedicated_replicas(plan)
    gpus = plan.pool.tp * sum(replicas)
    is_held = share >= plan.spec.target
    dedicated = Way("dedicated", gpus if is_held else None, UNKNOWN, share, None)
    axis = axis_of(plan, gpus_near(gpus, plan.pool.tp))
    ways = [way_of(Ladder(axis, p, store, listen), plan) for p in policies]
    found = tuple(demands_of(plan))
    return Ways(
        plan=plan,
        replicas=tuple(replicas),
        ways=(dedicated, *ways),
        demands=found,
        bound_gpus=bound_gpus(plan, found),
    )


def axis_of(plan: Plan, most: int) -> GpusAxis:
    return GpusAxis(trace=plan.trace, pool=plan.pool, slo=plan.slo, windows=plan.windows, most=most)


def way_of(ladder: Ladder, plan: Plan) -> Way:
    target, spec = plan.spec.target, plan.spec
    found = hardest(ladder, lambda f: f.share >= target)
    name = label_of(ladder.policy.name, isinstance(ladder.policy, Oracle))
    if found.best is None:
        best = max((f.share for f in found.tried), default=0.0)
        return Way(name, None, UNKNOWN, best, None)
    at = crossing(found.tried, target, draws=spec.draws, confidence=spec.confidence, seed=plan.seed)
    return Way(name, found.best.size, at, found.best.share, found.best)


def demands_of(plan: Plan) -> Iterator[tuple[Demand, ...]]:
    """The least work of each model, window by window."""
    for window in plan.windows:
        part, span_s = window_trace(plan.trace, window, 1.0)
        yield tuple(demands(part, plan.pool, plan.slo, window.warm_s, span_s))


def bound_gpus(plan: Plan, found: Sequence[Sequence[Demand]]) -> float:
    """The mean over windows of the least instances, in GPUs."""
    least = [least_instances(list(part), plan.pool, plan.spec.target).value for part in found]
    return plan.pool.tp * sum(least) / len(least)


def goodput_tokens_s(ways: Ways, way: Way) -> float:
    """Tokens on time a second; for dedicated serving its share of the trace's tokens."""
    if way.facts is not None:
        return way.facts.mean("goodput_tokens_s")
    return way.share * tokens_s(ways.plan.trace)


def tokens_s(trace: Trace) -> float:
    return float(trace.output_tokens.sum()) / max(trace.span_s, 1e-9)


def rows_of(ways: Ways, prices: Prices) -> list[dict[str, Any]]:
    """Rows of `results`, one a way."""
    plan = ways.plan
    gpu = load_profile(plan.pool.profile).gpu
    price = prices.of(gpu)
    most = ways.dedicated.gpus
    rows = []
    for way in ways.ways:
        held = way.gpus is not None
        metrics = way.facts.metrics if way.facts else {"token_attainment": way.share}
        usd = way.gpus * price if way.gpus is not None else None
        tokens = goodput_tokens_s(ways, way)
        rows.append(
            {
                "policy": way.name,
                "pool": plan.pool.name,
                "target": plan.spec.target,
                "models": len(plan.trace.models),
                "gpus": way.gpus,
                "rate": plan.trace.rate_rps,
                "ci_low": way.at.low,
                "ci_high": way.at.high,
                "saved": 1 - way.gpus / most if way.gpus is not None and most else None,
                "usd_hour": usd,
                "usd_million_tokens": prices.usd_million_tokens(gpu, way.gpus, tokens)
                if way.gpus is not None
                else None,
                "bound_gpus": ways.bound_gpus,
                "share_of_bound": ways.bound_gpus / way.gpus if way.gpus else None,
                "reached": held,
                **{name: metrics.get(name) for name in METRICS},
            }
        )
    return rows


def at_target(plan: Plan, target: float) -> Plan:
    return replace(plan, spec=replace(plan.spec, target=target))
