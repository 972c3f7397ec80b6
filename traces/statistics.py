"""What a trace is like, in one pass: the facts that decide whether pooling pays. M models."""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from traces.digest import Digest
from traces.stream import Chunk, TraceStream, of_trace
from traces.tallies import Floats, Gaps, Ints, Raster, Values, WindowCounts, Windows, by_model
from traces.trace import Trace, TraceKind

WINDOW_S = 17.0  # the paper's mean service time: who is active within it needs a GPU
BIN_S = 60.0
GAPS_WINDOW_S = 600.0
LEAST_GAPS = 10


class TraceFacts(NamedTuple):
    requests: int
    models: int  # with a request
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
    cv_within: float  # median over models and windows of 600 s
    dispersion: float  # variance over mean of the requests in 60 s
    dispersion_model: float  # the same of one model, median over models
    active_models_p99: float
    active_models_max: float
    dedicated_gpus: int  # one a model
    pooled_share: float  # 1 - p99 of active models (at least one) over models
    length_correlation: float  # of the logarithms of prompt and output tokens


class Survey:
    """Takes a stream's chunks one after the other; then `facts`, and what the pictures show."""

    def __init__(self, stream: TraceStream) -> None:
        self.stream = stream
        count = len(stream.models)
        self.requests, self.span_s = 0, 0.0
        self.counts = np.zeros(count, np.int64)
        self.gaps = Gaps(count, GAPS_WINDOW_S, LEAST_GAPS)
        self.windows, self.bins = Windows(count, WINDOW_S), Windows(count, BIN_S)
        self.prompt, self.output = Values(), Values()
        self.raster = Raster(count)
        self.logs = np.zeros(5)  # sums of x, y, xx, yy, xy of the logarithms of lengths
        self.digest = Digest(stream.models)

    def add(self, chunk: Chunk) -> None:
        self.requests += chunk.requests
        self.span_s = float(chunk.arrival_s[-1])
        self.counts += np.bincount(chunk.model, minlength=len(self.counts))
        rows = by_model(chunk.model, chunk.arrival_s, len(self.counts))
        for tally in (self.gaps, self.windows, self.bins):
            tally.add(rows)
        self.prompt.add(chunk.prompt_tokens)
        self.output.add(chunk.output_tokens)
        self.raster.add(chunk.model, chunk.arrival_s)
        x, y = np.log(chunk.prompt_tokens), np.log(chunk.output_tokens)
        self.logs += [x.sum(), y.sum(), x @ x, y @ y, x @ y]
        self.digest.add(chunk.arrival_s, chunk.model, chunk.prompt_tokens, chunk.output_tokens)

    def end(self) -> "Surveyed":
        """No chunk follows; there was at least one."""
        return Surveyed(
            name=self.stream.name,
            kind=self.stream.kind,
            licence=self.stream.licence,
            lineage=self.stream.lineage,
            models=self.stream.models,
            sha256=self.digest.hex,
            span_s=self.span_s,
            counts=self.counts,
            cv=self.gaps.whole(),
            cv_within=self.gaps.median_within(),
            windows=self.windows.end(),
            bins=self.bins.end(),
            prompt=self.prompt,
            output=self.output,
            raster=self.raster,
            length_correlation=_correlation(self.requests, self.logs),
        )


class Surveyed(NamedTuple):
    """A whole trace, seen once."""

    name: str
    kind: TraceKind
    licence: str
    lineage: tuple[str, ...]
    models: tuple[str, ...]
    sha256: str
    span_s: float
    counts: Ints  # requests of each model [M]
    cv: Floats  # of each model's gaps [M], NaN with under 10
    cv_within: float
    windows: WindowCounts  # of 17 s
    bins: WindowCounts  # of 60 s
    prompt: Values
    output: Values
    raster: Raster
    length_correlation: float

    @property
    def requests(self) -> int:
        return int(self.counts.sum())

    @property
    def facts(self) -> TraceFacts:
        requests, models = self.requests, int((self.counts > 0).sum())
        popular = np.sort(self.counts)[::-1][: max(1, round(models / 10))]
        known = self.cv[~np.isnan(self.cv)]
        windows, bins = self.windows, self.bins
        p95, p99 = (windows.quantile(windows.active, level) for level in (0.95, 0.99))
        prompt, output = (v.quantiles(np.array([0.5, 0.99])) for v in (self.prompt, self.output))
        return TraceFacts(
            requests=requests,
            models=models,
            span_s=self.span_s,
            rate_rps=requests / self.span_s if self.span_s > 0 else 0.0,
            zipf=zipf_exponent(self.counts),
            cv=float(np.median(known)) if len(known) else float("nan"),
            peak_over_mean=float(bins.requests.max() * bins.windows / requests),
            active_models=float(windows.active.sum() / windows.windows),
            active_models_p95=p95,
            poisson_active_models=self.poisson_active_models,
            top10_share=float(popular.sum() / requests),
            prompt_p50=float(prompt[0]),
            prompt_p99=float(prompt[1]),
            output_p50=float(output[0]),
            output_p99=float(output[1]),
            cv_within=self.cv_within,
            dispersion=float(_dispersion((bins.requests**2).sum(), requests, bins.windows)),
            dispersion_model=self.dispersion_model,
            active_models_p99=p99,
            active_models_max=float(windows.active.max()),
            dedicated_gpus=models,
            pooled_share=1 - max(1.0, p99) / models,
            length_correlation=self.length_correlation,
        )

    @property
    def poisson_active_models(self) -> float:
        """Models within 17 s if each came at random at its own mean rate."""
        rates = self.counts / max(self.span_s, 1e-9)
        return float((1 - np.exp(-rates * WINDOW_S)).sum())

    @property
    def dispersion_model(self) -> float:
        """Median over models with at least 10 gaps; NaN without one."""
        mine = self.counts > LEAST_GAPS
        if not mine.any():
            return float("nan")
        each = _dispersion(self.bins.squares[mine], self.counts[mine], self.bins.windows)
        return float(np.median(each))


def survey(trace: Trace | TraceStream) -> Surveyed:
    """One pass over a trace of at least one request."""
    stream = of_trace(trace) if isinstance(trace, Trace) else trace
    found = Survey(stream)
    for chunk in stream.chunks():
        found.add(chunk)
    return found.end()


def describe(trace: Trace | TraceStream) -> TraceFacts:
    """Facts of a trace of at least one request."""
    return survey(trace).facts


STEEPEST = 20.0  # of the Zipf exponents that are sought


def zipf_exponent(counts: npt.NDArray[np.int64]) -> float:
    """Maximum likelihood of requests whose model has rank r with probability ~ r^-s, 0 to
    STEEPEST: where the mean log rank of the requests is the expected one. Every request counts
    alike, so the exponent is that of the head, not of the many models with few requests."""
    ranked = np.sort(counts[counts > 0])[::-1]
    if len(ranked) < 2:
        return 0.0
    ranks = np.log(np.arange(1, len(ranked) + 1))
    found, low, high = float(ranked @ ranks / ranked.sum()), 0.0, STEEPEST
    for _ in range(50):
        middle = 0.5 * (low + high)
        weights = np.exp(-middle * ranks)
        if weights @ ranks / weights.sum() > found:
            low = middle
        else:
            high = middle
    return high


def _dispersion(squares: Floats, total: Floats | Ints | int, windows: int) -> Floats:
    """Variance over mean of counts in windows, from the sum of their squares."""
    mean = np.asarray(total) / windows
    return (squares / windows - mean**2) / mean


def _correlation(n: int, sums: Floats) -> float:
    """Pearson's, from the sums of x, y, xx, yy, xy; NaN where one is constant."""
    x, y, xx, yy, xy = sums / n
    spread = (xx - x * x) * (yy - y * y)
    return float((xy - x * y) / spread**0.5) if spread > 1e-12 else float("nan")
