"""`compare`: policies on the same windows, seeds and loads of one trace; P policies."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import product
from os import cpu_count
from typing import NamedTuple

import numpy as np

from aegaeon_rl.evaluation.bootstrap import (
    Interval,
    Units,
    attainment_interval,
    difference_interval,
)
from aegaeon_rl.evaluation.metrics import Sample, merged, metrics, sample_of
from aegaeon_rl.evaluation.spec import EvaluationSpec, Window, plan_windows
from runtime.core import FOREVER_NS, NS, PoolSpec, SloSpec
from runtime.emulator.profile import load_profile
from runtime.emulator.run import build_state, run
from runtime.errors import UserError, nearest
from runtime.protocol import Oracle, Policy
from traces import Trace

DEFAULT_BASELINE = "aegaeon"
LEAST_WINDOWS = 5  # below, blocks of time inside the windows are the units of the bootstrap
BLOCKS = 20
BLOCK_RANGE_S = (2.0, 60.0)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What every policy of a comparison meets."""

    trace: Trace
    pool: PoolSpec
    slo: SloSpec
    spec: EvaluationSpec
    seed: int = 0

    @cached_property
    def windows(self) -> tuple[Window, ...]:
        return plan_windows(self.trace.span_s, self.spec)

    @property
    def loads(self) -> tuple[float, ...]:
        return tuple(sorted({*self.spec.loads, 1.0}))

    @property
    def covered(self) -> float:
        """Share of the trace's span that the windows cover."""
        total = sum(window.duration_s for window in self.windows)
        return min(1.0, total / max(self.trace.span_s, 1e-9))

    @property
    def block_s(self) -> float | None:
        """Seconds of a bootstrap block, or None when whole windows serve."""
        if len(self.windows) >= LEAST_WINDOWS:
            return None
        counted_s = sum(window.duration_s - window.warm_s for window in self.windows)
        low, high = BLOCK_RANGE_S
        return min(max(counted_s / BLOCKS, low), high)


class Cell(NamedTuple):
    """One policy at one load, over all windows and seeds."""

    policy: str
    load: float
    sample: Sample
    units: Units
    metrics: dict[str, float]
    attainment: Interval
    is_oracle: bool = False

    @property
    def label(self) -> str:
        """How people see the policy named."""
        return label_of(self.policy, self.is_oracle)


def label_of(policy: str, is_oracle: bool) -> str:
    return f"{policy} (oracle)" if is_oracle else policy


class Row(NamedTuple):
    """A policy at the trace's own load against the baseline (None for the baseline itself)."""

    cell: Cell
    difference: Interval | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """`rows` [P] at load 1 in the order given; `cells` [loads * P]."""

    plan: Plan
    baseline: str
    rows: tuple[Row, ...]
    cells: tuple[Cell, ...]

    def row(self, policy: str) -> Row:
        return next(row for row in self.rows if row.cell.policy == policy)

    @property
    def challenger(self) -> Row:
        """The highest attainment but the baseline's (the baseline where it is alone); first of
        equals."""
        others = [row for row in self.rows if row.difference is not None] or list(self.rows)
        return max(others, key=lambda row: row.cell.metrics["token_attainment"])

    @property
    def best(self) -> Row:
        """The highest attainment of all; of equals the challenger."""
        rows = (self.challenger, self.row(self.baseline))
        return max(rows, key=lambda row: row.cell.metrics["token_attainment"])


def compare(
    plan: Plan, policies: Sequence[Policy], *, progress: Callable[[Cell], None] = lambda _: None
) -> Comparison:
    """Raises UserError as `check` does."""
    baseline = check(plan, policies)

    def evaluate(task: tuple[float, Policy]) -> Cell:
        cell = evaluate_cell(plan, task[1], task[0])
        progress(cell)
        return cell

    with ThreadPoolExecutor(max_workers=cpu_count()) as threads:
        cells = tuple(threads.map(evaluate, product(plan.loads, policies)))
    rows = compared(plan, [cell for cell in cells if cell.load == 1.0], baseline)
    return Comparison(plan=plan, baseline=baseline, rows=rows, cells=cells)


def check(plan: Plan, policies: Sequence[Policy]) -> str:
    """The baseline's name. Raises UserError for what cannot be compared, before anything runs."""
    names = [policy.name for policy in policies]
    if not names:
        raise UserError("policies=[]: expected at least one policy")
    for name in names:
        if names.count(name) > 1:
            raise UserError(f"policies: {name!r} is listed twice: expected different policies")
    check_deadlines(plan.trace, plan.slo)
    for load, window in product(plan.loads, plan.windows):
        window_trace(plan.trace, window, load)
    profile = load_profile(plan.pool.profile)
    for policy in policies:
        build_state(policy.configure(plan.pool), plan.trace.models, plan.slo, profile)
    return chosen_baseline(plan.spec.baseline, names)


def chosen_baseline(stated: str | None, names: Sequence[str]) -> str:
    """Raises UserError when the stated one does not take part."""
    if stated is None:
        return DEFAULT_BASELINE if DEFAULT_BASELINE in names else names[0]
    if stated not in names:
        raise UserError(f"evaluate.baseline={stated}: not among policies; {nearest(stated, names)}")
    return stated


def compared(plan: Plan, cells: Sequence[Cell], baseline: str) -> tuple[Row, ...]:
    """Rows of cells that share windows, seeds and load."""
    spec, other = plan.spec, next(cell for cell in cells if cell.policy == baseline)

    def difference(cell: Cell) -> Interval | None:
        if cell is other:
            return None
        return difference_interval(cell.units, other.units, spec.draws, spec.confidence, plan.seed)

    return tuple(Row(cell, difference(cell)) for cell in cells)


def evaluate_cell(plan: Plan, policy: Policy, load: float) -> Cell:
    """One policy at one load: a run per window and seed, merged."""
    samples, on_time, due = [], [], []
    for deal in range(plan.spec.seeds):
        pool = deal_sizes(plan.pool, plan.seed + deal) if deal else plan.pool
        blocks = []
        for window in plan.windows:
            sample = run_window(plan, pool, policy, window, load)
            samples.append(sample)
            blocks.append(token_blocks(sample, window, plan.block_s))
        on_time.append(np.concatenate([b[0] for b in blocks]))
        due.append(np.concatenate([b[1] for b in blocks]))
    units = Units(np.array(on_time), np.array(due))
    sample = merged(samples)
    interval = attainment_interval(units, plan.spec.draws, plan.spec.confidence, plan.seed)
    is_oracle = isinstance(policy, Oracle)
    return Cell(policy.name, load, sample, units, metrics(sample), interval, is_oracle)


def run_window(plan: Plan, pool: PoolSpec, policy: Policy, window: Window, load: float) -> Sample:
    part, span_s = window_trace(plan.trace, window, load)
    result = run(part, pool, policy, plan.slo, horizon_s=last_deadline_s(part, plan.slo))
    return sample_of(result, window.warm_s, span_s)


def last_deadline_s(trace: Trace, slo: SloSpec) -> float:
    """When the last token of a trace is due: what is unfinished then is late for good."""
    slos = [slo.of(name) for name in trace.models]
    ttft_s = np.array([own.ttft_s for own in slos])[trace.model]
    tbt_s = np.array([own.tbt_s for own in slos])[trace.model]
    return float((trace.arrival_s + ttft_s + tbt_s * trace.output_tokens).max())


def check_deadlines(trace: Trace, slo: SloSpec) -> None:
    """Raises UserError when a token is due later than the pool's clock goes."""
    last_s, most_s = last_deadline_s(trace, slo), FOREVER_NS / NS
    if not last_s < most_s:
        raise UserError(
            f"slo.ttft_s={slo.ttft_s:g}, slo.tbt_s={slo.tbt_s:g} (or slo.models): the last token of"
            f" {trace.name} is due after {last_s:.3g} s: expected less than {most_s:.3g}"
        )


def window_trace(trace: Trace, window: Window, load: float) -> tuple[Trace, float]:
    """The window at `load` times the trace's rate, and its seconds.

    It takes more of the trace in the same time, as far as the trace reaches. Raises UserError
    when none of its requests counts.
    """
    reach_s = min(window.duration_s * load, trace.span_s - window.start_s + 1e-6)
    part = trace.window(window.start_s, reach_s, keep_models=True).scale_rate(load)
    if part.requests == 0 or part.arrival_s[-1] < window.warm_s:
        first_s, last_s = trace.arrival_s[0], trace.arrival_s[-1]
        raise UserError(
            f"trace {trace.name}: no request counts in the window at {window.start_s:.0f} s at load"
            f" {load:g}; requests arrive from {first_s:.0f} to {last_s:.0f} s: raise"
            " evaluate.window_s, set trace.start_s, or evaluate.windows=0 for the whole trace"
        )
    return part, reach_s / load


def deal_sizes(pool: PoolSpec, seed: int) -> PoolSpec:
    """Seed 0 deals checkpoints as the pool says; others shuffle the deal, shares kept.

    Under the artifact's rules the deal is fixed: it is part of what is reproduced.
    """
    if seed == 0 or pool.sosp25_rules:
        return pool
    order = np.random.default_rng(seed).permutation(len(pool.checkpoints))
    return replace(pool, checkpoints=tuple(pool.checkpoints[i] for i in order))


def token_blocks(
    sample: Sample, window: Window, block_s: float | None
) -> tuple[np.ndarray, np.ndarray]:
    """Tokens on time and due by block of arrival; blocks without arrivals are left out."""
    results = sample.results
    n = 1 if block_s is None else max(1, round(sample.span_s / block_s))
    since_s = results["arrival_ns"] / NS - window.warm_s
    block = np.clip((since_s / sample.span_s * n).astype(np.int64), 0, n - 1)
    due = np.bincount(block, results["due_tokens"], minlength=n)
    on_time = np.bincount(block, results["on_time_tokens"], minlength=n)
    return on_time[due > 0], due[due > 0]
