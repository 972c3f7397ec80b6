"""Metrics of a set of runs, as design and summary.json name them. R requests, M models."""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from runtime.core import NS, RequestPhase
from runtime.emulator.run import Run
from runtime.pool.state import Table
from runtime.slo import gap_quantile_s

Floats = npt.NDArray[np.float64]
OK_SHARE, LOST_SHARE = 0.99, 0.5
WORST_QUANTILE = 0.05
FAILED = (RequestPhase.FAILED, RequestPhase.SHED, RequestPhase.CANCELLED)


class Sample(NamedTuple):
    """What one or more runs of a policy left: counted requests [R], and totals over all of them."""

    results: Table
    gaps: npt.NDArray[np.int64]
    span_s: float  # arrivals that count fall in this many seconds
    run_s: float  # the whole run, warm-up and drain included
    gpu_s: float  # GPUs times run_s
    busy_s: float  # of gpu_s
    switch_s: float  # of gpu_s
    switches: int
    prefetched_switches: int
    backlog_slope: float
    refused: int
    recomputed: int


def sample_of(run: Run, warm_s: float, span_s: float) -> Sample:
    """The requests of `run` that arrive at `warm_s` or later, in a window of `span_s`."""
    counted = run.results[run.results["arrival_ns"] >= round(warm_s * NS)]
    tp = run.pool.tp
    totals = {name: tp * float(run.instances[name].sum()) for name in ("busy_ns", "switch_ns")}
    return Sample(
        results=counted,
        gaps=run.gaps,
        span_s=span_s - warm_s,
        run_s=run.end_s,
        gpu_s=run.end_s * tp * len(run.instances),
        busy_s=totals["busy_ns"] / NS,
        switch_s=totals["switch_ns"] / NS,
        switches=int(run.instances["switches"].sum()),
        prefetched_switches=int(run.instances["prefetched_switches"].sum()),
        backlog_slope=backlog_slope(run.results, warm_s, span_s),
        refused=run.refused,
        recomputed=run.recomputed,
    )


def merged(samples: list[Sample]) -> Sample:
    """Sums over runs; the backlog slope is the mean."""
    first = samples[0]
    sums = {
        name: type(getattr(first, name))(sum(getattr(s, name) for s in samples))
        for name in Sample._fields
        if name not in ("results", "gaps", "backlog_slope")
    }
    return Sample(
        results=np.concatenate([s.results for s in samples]),
        gaps=np.sum([s.gaps for s in samples], axis=0),
        backlog_slope=float(np.mean([s.backlog_slope for s in samples])),
        **sums,
    )


def backlog_slope(results: Table, warm_s: float, span_s: float) -> float:
    """Growth of the number of live requests, per second, while requests arrive."""
    at_ns = (np.linspace(warm_s, span_s, 50) * NS).astype(np.int64)
    arrived = np.searchsorted(results["arrival_ns"], at_ns, side="right")
    gone = np.searchsorted(np.sort(ended_ns(results)), at_ns, side="right")
    return float(np.polyfit(at_ns / NS, arrived - gone, 1)[0]) if span_s > warm_s else 0.0


def ended_ns(results: Table) -> npt.NDArray[np.int64]:
    """When each request left; never, where it is unfinished."""
    unfinished = np.isin(results["phase"], (*FAILED, RequestPhase.DONE), invert=True)
    return np.where(unfinished, np.iinfo(np.int64).max, results["last_token_ns"])


def ttft_s(results: Table) -> Floats:
    """Time to first token; infinite for a request that never got one."""
    waited = (results["first_token_ns"] - results["arrival_ns"]) / NS
    return np.where(results["first_token_ns"] < 0, np.inf, waited)


def stall_s(results: Table) -> Floats:
    """Longest gap between two tokens of each request that got one."""
    return results["stall_ns"][results["first_token_ns"] >= 0] / NS


def model_attainment(results: Table) -> Floats:
    """Token attainment of each model that has a counted request."""
    due = np.bincount(results["model"], results["due_tokens"])
    on_time = np.bincount(results["model"], results["on_time_tokens"])
    return on_time[due > 0] / due[due > 0]


def jain(values: Floats) -> float:
    """Jain's fairness index: 1 when all are equal, 1/n when one has all."""
    squares = float((values**2).sum()) * len(values)
    return float(values.sum()) ** 2 / squares if squares > 0 else 0.0


def quantile(values: Floats, q: float) -> float:
    """The value that a share q does not exceed (no interpolation: infinities may occur)."""
    return float(np.quantile(values, q, method="inverted_cdf")) if len(values) else float("nan")


def share(part: float, whole: float) -> float:
    """0 of nothing: a run whose requests all fail at once takes no time."""
    return part / whole if whole > 0 else 0.0


def metrics(sample: Sample) -> dict[str, float]:
    """Shares are 0..1, times seconds."""
    results = sample.results
    due, on_time = results["due_tokens"], results["on_time_tokens"]
    first, stall, by_model = ttft_s(results), stall_s(results), model_attainment(results)
    phases = results["phase"]
    failed = np.isin(phases, FAILED)
    return {
        "token_attainment": float(on_time.sum() / due.sum()),
        "qos": float(results["qos"].mean()),
        "request_ok": float((on_time >= OK_SHARE * due).mean()),
        "request_lost": float((on_time < LOST_SHARE * due).mean()),
        "worst_model": float(np.quantile(by_model, WORST_QUANTILE)),
        "goodput_tokens_s": float(on_time.sum() / sample.span_s),
        "ttft_p50_s": quantile(first, 0.5),
        "ttft_p95_s": quantile(first, 0.95),
        "ttft_p99_s": quantile(first, 0.99),
        "tbt_p50_s": gap_quantile_s(sample.gaps, 0.5),
        "tbt_p99_s": gap_quantile_s(sample.gaps, 0.99),
        "stall_p50_s": quantile(stall, 0.5),
        "stall_p99_s": quantile(stall, 0.99),
        "switches": float(sample.switches),
        "prefetched_switches": float(sample.prefetched_switches),
        "switch_share": share(sample.switch_s, sample.gpu_s),
        "gpu_busy": share(sample.busy_s, sample.gpu_s),
        "offered_requests_s": len(results) / sample.span_s,
        "backlog_slope": sample.backlog_slope,
        "unfinished": float((~failed & (phases != RequestPhase.DONE)).sum()),
        "failed": float(failed.sum()),
        "fairness_jain": jain(by_model),
        "requests": float(len(results)),
        "refused": float(sample.refused),
        "recomputed": float(sample.recomputed),
    }
