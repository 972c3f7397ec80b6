"""What is searched along: models, load or GPUs, from easy to hard, and one run on it.

A size is hard where fewer tokens are on time: more models, more load, fewer GPUs.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

from aegaeon_rl.evaluation.compare import deal_sizes, last_deadline_s, window_trace
from aegaeon_rl.evaluation.metrics import metrics, sample_of
from aegaeon_rl.evaluation.sizing import can_run, gpus_near, pool_of_size
from aegaeon_rl.evaluation.spec import Window
from aegaeon_rl.frontier.cells import Cell
from aegaeon_rl.frontier.steady import Steady, steady_trace
from runtime.core import PoolSpec, SloSpec
from runtime.emulator.run import run
from runtime.protocol import Policy
from traces import Trace


class Axis(Protocol):
    """`sizes` ascend in difficulty; `units` are what the bootstrap draws from."""

    @property
    def name(self) -> str: ...
    @property
    def sizes(self) -> tuple[int, ...]: ...
    @property
    def units(self) -> tuple[int, ...]: ...
    @property
    def guess(self) -> int:
        """The size to begin with."""

    def cell(self, policy: Policy, size: int, unit: int) -> Cell: ...
    def is_able(self, policy: Policy, size: int) -> bool:
        """May this policy run there at all?"""


def cell_of(
    trace: Trace, pool: PoolSpec, policy: Policy, slo: SloSpec, warm_s: float, span_s: float
) -> Cell:
    """One run, drained until the last token is due."""
    done = run(trace, pool, policy, slo, horizon_s=last_deadline_s(trace, slo))
    sample = sample_of(done, warm_s, span_s)
    due = int(sample.results["due_tokens"].sum())
    return Cell(int(sample.results["on_time_tokens"].sum()), due, metrics(sample))


def window_cell(
    trace: Trace, window: Window, load: float, pool: PoolSpec, policy: Policy, slo: SloSpec
) -> Cell:
    """One window of a trace, at a multiple of its rate."""
    part, span_s = window_trace(trace, window, load)
    return cell_of(part, pool, policy, slo, window.warm_s, span_s)


@dataclass(frozen=True, kw_only=True)
class ModelsAxis:
    """Steady models on one pool; units are arrival seeds."""

    pool: PoolSpec
    slo: SloSpec
    workload: Steady
    seeds: tuple[int, ...]
    most: int
    guess: int
    step: int = 1

    @property
    def name(self) -> str:
        return f"{self.pool.name} {self.workload.label}"

    @cached_property
    def sizes(self) -> tuple[int, ...]:
        return tuple(range(self.step, self.most + 1, self.step))

    @property
    def units(self) -> tuple[int, ...]:
        return self.seeds

    def cell(self, policy: Policy, size: int, unit: int) -> Cell:
        trace = steady_trace(self.workload, size, unit)
        load = self.workload
        return cell_of(trace, self.pool, policy, self.slo, load.warm_s, load.span_s)

    def is_able(self, policy: Policy, size: int) -> bool:
        return can_run(policy, self.pool)


@dataclass(frozen=True, kw_only=True)
class GpusAxis:
    """Pool sizes for one trace, from `most` GPUs down to one instance; units are its windows."""

    trace: Trace
    pool: PoolSpec
    slo: SloSpec
    windows: tuple[Window, ...]
    most: int

    @property
    def name(self) -> str:
        return f"{self.pool.name} {self.trace.name}"

    @cached_property
    def sizes(self) -> tuple[int, ...]:
        tp = self.pool.tp
        return tuple(n for n in range(self.most, 0, -1) if gpus_near(n, tp) == n)

    @property
    def units(self) -> tuple[int, ...]:
        return tuple(range(len(self.windows)))

    @property
    def guess(self) -> int:
        return self.sizes[len(self.sizes) // 2]

    def cell(self, policy: Policy, size: int, unit: int) -> Cell:
        pool = pool_of_size(self.pool, size)
        return window_cell(self.trace, self.windows[unit], 1.0, pool, policy, self.slo)

    def is_able(self, policy: Policy, size: int) -> bool:
        return can_run(policy, pool_of_size(self.pool, size))


@dataclass(frozen=True, kw_only=True)
class LoadAxis:
    """A trace at multiples of its own rate, in per cent, on one pool; units are its windows."""

    trace: Trace
    pool: PoolSpec
    slo: SloSpec
    windows: tuple[Window, ...]
    most: int
    guess: int = 100

    @property
    def name(self) -> str:
        return f"{self.pool.name} {self.trace.name} load"

    @cached_property
    def sizes(self) -> tuple[int, ...]:
        return tuple(range(5, self.most + 1, 5))

    @property
    def units(self) -> tuple[int, ...]:
        return tuple(range(len(self.windows)))

    def cell(self, policy: Policy, size: int, unit: int) -> Cell:
        pool = deal_sizes(self.pool, 0)
        return window_cell(self.trace, self.windows[unit], size / 100, pool, policy, self.slo)

    def is_able(self, policy: Policy, size: int) -> bool:
        return can_run(policy, self.pool)
