"""The most steady models a pool holds, by policy, workload and target, with ratios and bounds."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from aegaeon_rl.evaluation.bootstrap import Interval
from aegaeon_rl.frontier.axis import ModelsAxis
from aegaeon_rl.frontier.bounds import Bound, most_models
from aegaeon_rl.frontier.cells import CellStore
from aegaeon_rl.frontier.search import (
    SCOUTS,
    Facts,
    Found,
    Ladder,
    by_size,
    crossing,
    hardest,
    ratio,
)
from aegaeon_rl.frontier.spec import FrontierSpec
from aegaeon_rl.frontier.steady import Steady
from runtime.core import PoolSpec, SloSpec
from runtime.protocol import Oracle, Policy

BASELINES = ("aegaeon", "aegaeon_tuned")
SIDES = (("request_lost", 1), ("worst_model", -1), ("ttft_p99_s", 1))  # 1: less is better
MOST_OF_BOUND = 1.2  # of the bound, sizes tried at most
CURVE = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7)  # of that, for the curves
HOPELESS = 0.6  # the curve ends: an overloaded pool is slow to run, and tells no more


class Crossing(NamedTuple):
    """One policy on one pool, workload and target. `beside`: the most models that also hold the
    baseline's side metrics at its own crossing (None: not asked, or it is the baseline)."""

    pool: PoolSpec
    workload: Steady
    target: float
    policy: str
    is_oracle: bool
    best: Facts | None
    at: Interval
    tried: tuple[Facts, ...]
    bound: Bound | None
    curve: tuple[Facts, ...] = ()  # a few units at sizes that all policies meet
    sides_held: bool | None = None
    beside: Facts | None = None

    @property
    def models(self) -> int:
        return self.best.size if self.best else 0

    @property
    def share_of_bound(self) -> float:
        return self.models / self.bound.value if self.bound else float("nan")


@dataclass(frozen=True, kw_only=True)
class Question:
    spec: FrontierSpec
    pools: tuple[PoolSpec, ...]
    slo: SloSpec
    seed: int
    store: CellStore
    listen: Callable[[str], None] = lambda _: None

    def axis(self, pool: PoolSpec, workload: Steady) -> ModelsAxis:
        seeds = tuple(range(self.seed, self.seed + self.spec.seeds))
        bound = most_models(pool, workload, self.slo, min(self.spec.all_targets))
        most = min(self.spec.most, max(2 * self.spec.least, int(MOST_OF_BOUND * bound.value)))
        return ModelsAxis(
            pool=pool,
            slo=self.slo,
            workload=workload,
            seeds=seeds,
            most=most,
            guess=max(1, int(0.5 * bound.value)),
            step=self.spec.least,
        )


def crossings_of(question: Question, policies: Sequence[Policy]) -> Iterator[list[Crossing]]:
    """A list per pool, workload and target, policies in the order given."""
    for pool in question.pools:
        for workload in question.spec.workloads:
            axis = question.axis(pool, workload)
            ladders = {p.name: Ladder(axis, p, question.store, question.listen) for p in policies}
            seen: dict[str, list[Found]] = {p.name: [] for p in policies}
            for target in sorted(question.spec.all_targets):
                yield _at_target(question, axis, ladders, seen, target)


def _at_target(
    question: Question,
    axis: ModelsAxis,
    ladders: dict[str, Ladder],
    seen: dict[str, list[Found]],
    target: float,
) -> list[Crossing]:
    spec, found = question.spec, {}
    bound = most_models(axis.pool, axis.workload, question.slo, target) if spec.bounds else None
    for name, ladder in ladders.items():
        before = seen[name][-1].best if seen[name] else None
        guess = before.size if before else None
        found[name] = hardest(ladder, lambda f: f.share >= target, guess)
        seen[name].append(found[name])
    base = baseline_of(found)
    out = []
    for name, ladder in ladders.items():
        tried = by_size(*seen[name])
        at = crossing(
            tried, target, draws=spec.draws, confidence=spec.confidence, seed=question.seed
        )
        held = beside = None
        reference = found[base].best if base else None
        if name not in BASELINES and reference is not None and found[name].best is not None:
            held, beside = _beside(ladder, found[name], reference, target)
        out.append(
            Crossing(
                axis.pool,
                axis.workload,
                target,
                name,
                isinstance(ladder.policy, Oracle),
                found[name].best,
                at,
                tried,
                bound,
                curve_of(ladder, axis, spec),
                held,
                beside,
            )
        )
    return out


def curve_of(ladder: Ladder, axis: ModelsAxis, spec: FrontierSpec) -> tuple[Facts, ...]:
    """A few units at the same shares of the largest size for every policy, until hopeless."""
    if not spec.curve or not ladder.axis.is_able(ladder.policy, axis.sizes[0]):
        return ()
    scouts = replace(ladder, units=axis.units[:SCOUTS])
    found: list[Facts] = []
    for place in sorted({int(share * (len(axis.sizes) - 1)) for share in CURVE}):
        found.append(scouts.at(axis.sizes[place]))
        if found[-1].share < HOPELESS:
            break
    return tuple(found)


def baseline_of(found: dict[str, Found]) -> str | None:
    """The better of aegaeon and aegaeon_tuned, of those that take part; first of equals."""
    names = [name for name in BASELINES if name in found]
    return max(names, key=lambda n: found[n].best.size if found[n].best else 0, default=None)  # type: ignore[union-attr]


def is_no_worse(ours: Facts, theirs: Facts) -> bool:
    """In lost requests, the worst models and the last first tokens."""
    return all(sign * ours.mean(name) <= sign * theirs.mean(name) for name, sign in SIDES)


def _beside(
    ladder: Ladder, found: Found, reference: Facts, target: float
) -> tuple[bool, Facts | None]:
    assert found.best is not None
    if is_no_worse(found.best, reference):
        return True, found.best

    def holds(f: Facts) -> bool:
        return f.share >= target and is_no_worse(f, reference)

    return False, hardest(ladder, holds, found.best.size).best


class Ratio(NamedTuple):
    """A policy over the baseline on one pool: of crossings, and of what holds the side metrics."""

    pool: str
    workload: Steady
    target: float
    policy: str
    baseline: str
    plain: Interval
    sides_held: bool
    beside: float


def ratios(question: Question, group: Iterable[Crossing]) -> list[Ratio]:
    """Of each policy that is neither a baseline nor an oracle, in one group of crossings."""
    spec, rows = question.spec, {c.policy: c for c in group}
    names = [n for n in BASELINES if n in rows and rows[n].best]
    if not names:
        return []
    base = rows[max(names, key=lambda n: rows[n].models)]
    out = []
    for row in rows.values():
        if row.policy in BASELINES or row.is_oracle:
            continue
        plain = ratio(
            row.tried, base.tried, row.target,
            draws=spec.draws, confidence=spec.confidence, seed=question.seed,
        )  # fmt: skip
        beside = row.beside.size / base.models if row.beside else 0.0
        out.append(
            Ratio(row.pool.name, row.workload, row.target, row.policy, base.policy, plain,
                  bool(row.sides_held), beside)
        )  # fmt: skip
    return out


def quoted(found: Sequence[Ratio]) -> list[Ratio]:
    """The headline's rule: of each policy, workload and target the pool with the smaller ratio."""
    keys = dict.fromkeys((r.policy, r.workload.label, r.target) for r in found)
    return [
        min(
            (r for r in found if (r.policy, r.workload.label, r.target) == key),
            key=lambda r: r.plain.value,
        )
        for key in keys
    ]


def row_of(crossing: Crossing) -> dict[str, Any]:
    """A row of `results`."""
    metrics = crossing.best.metrics if crossing.best else {}
    bound = crossing.bound
    return {
        "policy": crossing.policy,
        "is_oracle": crossing.is_oracle,
        "pool": crossing.pool.name,
        "process": crossing.workload.process.value,
        "rate": crossing.workload.rate,
        "target": crossing.target,
        "models": crossing.models,
        "gpus": crossing.pool.gpus,
        "ci_low": crossing.at.low,
        "ci_high": crossing.at.high,
        "bound_models": bound.value if bound else None,
        "bound_by": bound.by if bound else None,
        "share_of_bound": crossing.share_of_bound if bound else None,
        "sides_held": crossing.sides_held,
        "models_beside": crossing.beside.size if crossing.beside else None,
        **{name: metrics.get(name) for name in METRICS},
    }


METRICS = (
    "token_attainment", "offered_requests_s", "backlog_slope", "request_lost", "worst_model",
    "ttft_p50_s", "ttft_p99_s", "stall_p50_s", "stall_p99_s", "qos", "request_ok",
    "goodput_tokens_s", "gpu_busy", "switch_share", "fairness_jain", "unfinished",
)  # fmt: skip


def curve_rows(crossing: Crossing) -> list[dict[str, Any]]:
    """Every size tried: what attainment against load is drawn from."""
    return [
        {
            "policy": crossing.policy,
            "pool": crossing.pool.name,
            "process": crossing.workload.process.value,
            "rate": crossing.workload.rate,
            "models": facts.size,
            **{name: facts.metrics[name] for name in METRICS},
            "seed_shares": [c.on_time / max(1, c.due) for c in facts.cells],
        }
        for facts in (*crossing.curve, *crossing.tried)
    ]
