"""What a trace is like: the facts that decide whether pooling pays."""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from traces.trace import Trace

WINDOW_S = 17.0  # the paper's mean service time: who is active within it needs a GPU
BIN_S = 60.0
LEAST_GAPS = 10


class TraceFacts(NamedTuple):
    requests: int
    models: int
    span_s: float
    rate_rps: float
    zipf: float  # exponent of popularity
    cv: float  # median over models of the coefficient of variation of gaps
    peak_over_mean: float  # busiest 60 s over the mean
    active_models: float  # mean number of models with an arrival within 17 s
    active_models_p95: float
    poisson_active_models: float  # M(1 - e^(-lambda T)) summed over the models' rates
    top10_share: float  # share of requests of the most popular tenth of models
    prompt_p50: float
    prompt_p99: float
    output_p50: float
    output_p99: float


def describe(trace: Trace) -> TraceFacts:
    """Facts of a trace of at least one request."""
    counts = np.bincount(trace.model, minlength=len(trace.models))
    active = active_models(trace)
    prompt = np.quantile(trace.prompt_tokens, [0.5, 0.99])
    output = np.quantile(trace.output_tokens, [0.5, 0.99])
    popular = np.sort(counts)[::-1][: max(1, round(len(counts) / 10))]
    span = max(trace.span_s, 1e-9)
    return TraceFacts(
        requests=trace.requests,
        models=len(trace.models),
        span_s=trace.span_s,
        rate_rps=trace.rate_rps,
        zipf=zipf_exponent(counts),
        cv=median_cv(trace),
        peak_over_mean=peak_over_mean(trace.arrival_s),
        active_models=float(active.mean()),
        active_models_p95=float(np.quantile(active, 0.95)),
        poisson_active_models=float((1 - np.exp(-counts / span * WINDOW_S)).sum()),
        top10_share=float(popular.sum() / counts.sum()),
        prompt_p50=float(prompt[0]),
        prompt_p99=float(prompt[1]),
        output_p50=float(output[0]),
        output_p99=float(output[1]),
    )


def zipf_exponent(counts: npt.NDArray[np.int64]) -> float:
    """Least squares of log count on log rank, over models with at least two requests."""
    ranked = np.sort(counts[counts >= 2])[::-1]
    if len(ranked) < 2:
        return 0.0
    slope = np.polyfit(np.log(np.arange(1, len(ranked) + 1)), np.log(ranked), 1)[0]
    return float(-slope)


def median_cv(trace: Trace) -> float:
    """Median coefficient of variation of gaps, over models with at least 10 gaps; else NaN."""
    order = np.lexsort((trace.arrival_s, trace.model))
    gaps = np.diff(trace.arrival_s[order])
    model = trace.model[order]
    inside = model[1:] == model[:-1]
    gaps, owner = gaps[inside], model[1:][inside]
    n = np.bincount(owner, minlength=len(trace.models))
    total = np.bincount(owner, gaps, minlength=len(trace.models))
    squares = np.bincount(owner, gaps**2, minlength=len(trace.models))
    known = (n >= LEAST_GAPS) & (total > 0)
    if not known.any():
        return float("nan")
    mean = total[known] / n[known]
    spread = np.sqrt(np.maximum(0.0, squares[known] / n[known] - mean**2))
    return float(np.median(spread / mean))


def peak_over_mean(arrival_s: npt.NDArray[np.float64]) -> float:
    bins = np.bincount((arrival_s / BIN_S).astype(np.int64))
    return float(bins.max() / bins.mean())


def active_models(trace: Trace) -> npt.NDArray[np.int64]:
    """Models with an arrival, for each consecutive window of 17 s."""
    slot = (trace.arrival_s / WINDOW_S).astype(np.int64)
    pairs = np.unique(slot * len(trace.models) + trace.model)
    windows = int(slot.max()) + 1
    return np.bincount(pairs // len(trace.models), minlength=windows)
