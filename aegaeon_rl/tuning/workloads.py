"""The cells every candidate meets: a pool and a stretch of arrivals with its warm-up."""

from collections.abc import Sequence
from dataclasses import dataclass

from aegaeon_rl.evaluation.compare import last_deadline_s, window_trace
from aegaeon_rl.evaluation.metrics import metrics, sample_of
from aegaeon_rl.evaluation.spec import EvaluationSpec, plan_windows
from aegaeon_rl.frontier.steady import Steady, steady_trace
from aegaeon_rl.tuning.spec import Load, TuneSpec
from runtime.core import PoolSpec, SloSpec
from runtime.emulator.run import run
from runtime.protocol import Policy
from traces import Trace


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """`name` tells pool, load and seed or window; arrivals before `warm_s` do not count."""

    name: str
    pool: PoolSpec
    slo: SloSpec
    trace: Trace
    warm_s: float
    span_s: float

    def play(self, policy: Policy) -> dict[str, float]:
        """The metrics of one run."""
        horizon_s = last_deadline_s(self.trace, self.slo)
        result = run(self.trace, self.pool, policy, self.slo, horizon_s=horizon_s)
        return metrics(sample_of(result, self.warm_s, self.span_s))


def steady(spec: TuneSpec, load: Load) -> Steady:
    return Steady(rate=load.rate_rps, duration_s=spec.steady_s, warm_s=spec.warm_s)


def steady_cells(
    spec: TuneSpec, pools: Sequence[PoolSpec], slo: SloSpec, first_seed: int
) -> list[Cell]:
    return [
        Cell(
            name=f"{pool.name} {load.models}x{load.rate_rps:g} seed {seed}",
            pool=pool,
            slo=slo,
            trace=steady_trace(steady(spec, load), load.models, seed),
            warm_s=spec.warm_s,
            span_s=steady(spec, load).span_s,
        )
        for pool in pools
        for load in spec.loads(pool.name)
        for seed in range(first_seed, first_seed + spec.seeds)
    ]


def trace_cells(
    trace: Trace, evaluation: EvaluationSpec, pools: Sequence[PoolSpec], slo: SloSpec
) -> list[Cell]:
    """Raises UserError for a window without requests."""
    cells = []
    for pool in pools:
        for load in evaluation.loads:
            for window in plan_windows(trace.span_s, evaluation):
                part, span_s = window_trace(trace, window, load)
                cells.append(
                    Cell(
                        name=f"{pool.name} load {load:g} at {window.start_s:.0f} s",
                        pool=pool,
                        slo=slo,
                        trace=part,
                        warm_s=window.warm_s,
                        span_s=span_s,
                    )
                )
    return cells
