"""A market of models: popularity, bursty arrivals per model, lengths, conversations. M models.

Every model draws from streams of its own, one for each purpose (PCG64 seeded by seed, model,
purpose), so that adding a model changes no other and the cut into chunks changes nothing.
"""

from collections.abc import Iterator
from dataclasses import dataclass, fields
from enum import IntEnum
from math import inf
from typing import Any

import numpy as np
import numpy.typing as npt

from traces.arrivals import BURST_S, ArrivalProcess, Arrivals, modulation
from traces.errors import UserError
from traces.lengths import (
    LEVELS,
    OUTPUT_QUANTILES,
    PROMPT_QUANTILES,
    LengthModel,
    Lengths,
    Marginal,
    check_lognormal,
    check_quantiles,
)
from traces.merge import merged
from traces.sessions import Conversations, Single
from traces.stream import Chunk, TraceStream, collect
from traces.trace import LATEST_S, Trace, TraceKind
from traces.warp import Swing, Timeline, flash_crowds, ticks

BLOCK_REQUESTS = 1 << 19  # expected in a chunk
LEAD_SESSIONS = 4  # mean lengths of a session before 0 at which sessions start

BOUNDS = {  # least and most, beyond which a market is no workload and drawing it may not end
    "models": (1, 100_000),
    "duration_s": (1e-3, LATEST_S),
    "rate_rps": (1e-9, 1e6),
    "zipf": (-20, 20),
    "burst_s": (1e-3, LATEST_S),
    "diurnal_period_s": (1e-3, LATEST_S),
    "flash_per_day": (0, 1e4),
    "flash_factor": (1, 1e4),
    "flash_s": (1e-3, LATEST_S),
    "length_spread": (0, 10),
    "turns_mean": (1, 1e4),
    "think_s": (1e-3, 1e6),
    "context_tokens": (1, 2**31 - 1),
}
VARIATION = (1e-2, 1e3)  # of gaps, or a burst's rate over the mean


class Purpose(IntEnum):
    """What a random stream of a model is for."""

    GAPS = 0
    MODULATION = 1
    FLASH = 2
    PROMPT = 3
    OUTPUT = 4
    SCALE = 5
    TURNS = 6
    THINK = 7


@dataclass(frozen=True, slots=True, kw_only=True)
class MarketSpec:
    """`rate_rps` is the mean over whole periods of the swing. `processes` are dealt to the models
    in turn as (process, cv), see `arrivals`. Popularity is `popularity` where given, else Zipf; of
    `tail_models`, the last ones, `tail_share` of the requests, with Zipf inside each part."""

    name: str = "market"
    models: int = 64
    duration_s: float = 3600.0
    rate_rps: float = 6.4
    zipf: float = 1.1
    tail_models: int = 0
    tail_share: float = 0.0
    popularity: tuple[float, ...] = ()  # weight of each model
    processes: tuple[tuple[ArrivalProcess, float], ...] = (
        (ArrivalProcess.GAMMA, 2.0),
        (ArrivalProcess.ON_OFF, 4.0),
        (ArrivalProcess.POISSON, 1.0),
        (ArrivalProcess.WEIBULL, 1.5),
    )
    tail_processes: tuple[tuple[ArrivalProcess, float], ...] = ()  # of the tail, if others
    burst_s: float = BURST_S  # mean length of a burst, of on_off and mmpp
    diurnal_depth: float = 0.3
    diurnal_period_s: float = 3600.0
    flash_per_day: float = 0.0  # flash crowds of each model
    flash_factor: float = 10.0  # a crowd's height over the usual rate; it ebbs over `flash_s`
    flash_s: float = 600.0
    length_spread: float = 0.2  # log-normal sigma of a model's own length scale
    prompt_quantiles: tuple[float, ...] = PROMPT_QUANTILES
    output_quantiles: tuple[float, ...] = OUTPUT_QUANTILES
    prompt_lognormal: tuple[float, float] | None = None  # (median, sigma), in place of quantiles
    output_lognormal: tuple[float, float] | None = None
    length_correlation: float = 0.0  # of prompt and output, Gaussian copula
    turns_mean: float = 1.0  # of a conversation; 1: every request on its own
    think_s: float = 30.0
    context_tokens: int = 32_768
    seed: int = 0

    def __post_init__(self) -> None:
        positive = (
            "models",
            "duration_s",
            "rate_rps",
            "diurnal_period_s",
            "flash_s",
            "think_s",
            "burst_s",
        )
        for name in (*positive, "context_tokens"):
            if not 0 < getattr(self, name) < inf:
                raise UserError(f"market.{name}={getattr(self, name)}: expected more than 0")
        for name in ("flash_per_day", "length_spread", "seed"):
            if not 0 <= getattr(self, name) < inf:
                raise UserError(f"market.{name}={getattr(self, name)}: expected 0 or more")
        for name in ("flash_factor", "turns_mean"):
            if not 1 <= getattr(self, name) < inf:
                raise UserError(f"market.{name}={getattr(self, name)}: expected 1 or more")
        for name, (least, most) in BOUNDS.items():
            if not least <= getattr(self, name) <= most:
                raise UserError(
                    f"market.{name}={getattr(self, name)}: expected {least:g} to {most:g}"
                )
        if not 0 <= self.diurnal_depth < 1:
            raise UserError(f"market.diurnal_depth={self.diurnal_depth}: expected 0 <= depth < 1")
        for name in ("processes", "tail_processes"):
            dealt = getattr(self, name)
            if not (dealt or name == "tail_processes") or not all(
                VARIATION[0] <= cv <= VARIATION[1] for _, cv in dealt
            ):
                expected = "expected one or more (process, cv), cv from 0.01 to 1000"
                raise UserError(f"market.{name}={dealt}: {expected}")
        self._check_popularity()
        self._check_lengths()

    def _check_popularity(self) -> None:
        if not 0 <= self.tail_models < self.models:
            raise UserError(
                f"market.tail_models={self.tail_models}: expected 0 to {self.models - 1},"
                " under market.models"
            )
        if not 0 <= self.tail_share < 1 or (self.tail_share > 0) != (self.tail_models > 0):
            expected = "0 without market.tail_models, else a share over 0 and under 1"
            raise UserError(f"market.tail_share={self.tail_share}: expected {expected}")
        weights = self.popularity
        if weights and (len(weights) != self.models or not all(0 < w < inf for w in weights)):
            raise UserError(
                f"market.popularity: {len(weights)} values: expected one over 0 for each of"
                f" {self.models} models"
            )
        if not rates(self).min() > 0:
            raise UserError(
                f"market.popularity={list(weights)}: expected weights nearer to each other"
            )

    def _check_lengths(self) -> None:
        check_quantiles("market.prompt_quantiles", LEVELS, self.prompt_quantiles)
        check_quantiles("market.output_quantiles", LEVELS, self.output_quantiles)
        check_lognormal("market.prompt_lognormal", self.prompt_lognormal)
        check_lognormal("market.output_lognormal", self.output_lognormal)
        if not -1 <= self.length_correlation <= 1:
            raise UserError(
                f"market.length_correlation={self.length_correlation}: expected -1 to 1"
            )


def rates(spec: MarketSpec) -> npt.NDArray[np.float64]:
    """Requests per second of each model [M]; they sum to `rate_rps`."""
    if spec.popularity:
        weight = np.array(spec.popularity)
        return spec.rate_rps * weight / weight.sum()
    head = _zipf(spec.models - spec.tail_models, spec.zipf) * (1 - spec.tail_share)
    tail = _zipf(spec.tail_models, spec.zipf) * spec.tail_share
    return spec.rate_rps * np.concatenate([head, tail])


def _zipf(models: int, exponent: float) -> npt.NDArray[np.float64]:
    weight = np.arange(1, models + 1) ** -exponent
    return weight / weight.sum()


def generate(spec: MarketSpec) -> Trace:
    """The market in memory. Raises UserError when no request falls in the window."""
    return collect(market_stream(spec))


def market_stream(spec: MarketSpec) -> TraceStream:
    """The market's requests, of any number: memory does not grow with it."""
    return TraceStream(
        name=spec.name,
        kind=TraceKind.SYNTHETIC,
        models=tuple(f"model-{index:03d}" for index in range(spec.models)),
        start=lambda: _chunks(spec),
        optional=("session",) if spec.turns_mean > 1 else (),
        lineage=(f"generate {spec.name} seed={spec.seed}{_unusual(spec)}",),
        licence="Apache-2.0",
    )


def _unusual(spec: MarketSpec) -> str:
    """The keys that differ from their defaults, as the command line takes them."""
    plain = MarketSpec()
    keys = [f.name for f in fields(spec) if f.name not in ("name", "seed")]
    values = [
        (key, getattr(spec, key)) for key in keys if getattr(spec, key) != getattr(plain, key)
    ]
    return "".join(f" {key}={_text(value)}" for key, value in values)


def _text(value: Any) -> str:
    if isinstance(value, tuple):
        return f"[{','.join(map(_text, value))}]"
    return f"{value:.10g}" if isinstance(value, float) else str(value)


def _chunks(spec: MarketSpec) -> Iterator[Chunk]:
    end = ticks(spec.duration_s)
    sources = [_source(spec, index, float(rate)) for index, rate in enumerate(rates(spec))]
    is_empty = True
    for chunk in merged(sources, end, max(1, ticks(BLOCK_REQUESTS / spec.rate_rps))):
        is_empty = False
        yield chunk
    if is_empty:
        raise UserError(f"market {spec.name}: no request falls in {spec.duration_s:g} s")


def _process(spec: MarketSpec, index: int) -> tuple[ArrivalProcess, float]:
    in_tail = index - (spec.models - spec.tail_models)
    if in_tail >= 0 and spec.tail_processes:
        return spec.tail_processes[in_tail % len(spec.tail_processes)]
    return spec.processes[index % len(spec.processes)]


def _source(spec: MarketSpec, index: int, rate: float) -> Single | Conversations:
    """The requests of one model."""

    def rng(purpose: Purpose) -> np.random.Generator:
        key = np.random.SeedSequence(spec.seed, spawn_key=(index, purpose))
        return np.random.Generator(np.random.PCG64(key))

    process, cv = _process(spec, index)
    timelines = modulation(process, cv, rng(Purpose.MODULATION), spec.burst_s)
    if spec.flash_per_day > 0:
        crowds = flash_crowds(
            spec.flash_per_day, spec.flash_factor, spec.flash_s, rng(Purpose.FLASH)
        )
        timelines.append(Timeline(crowds))
    talks = spec.turns_mean > 1
    arrivals = Arrivals(
        process,
        rate / spec.turns_mean,
        cv,
        rng(Purpose.GAPS),
        ticks(spec.duration_s),
        timelines,
        Swing(spec.diurnal_depth, spec.diurnal_period_s) if spec.diurnal_depth > 0 else None,
        ticks(LEAD_SESSIONS * spec.turns_mean * spec.think_s) if talks else 0,
    )
    scale = np.exp(rng(Purpose.SCALE).normal(0.0, spec.length_spread, 2))
    lengths = Lengths(
        length_model(spec, (float(scale[0]), float(scale[1]))),
        (rng(Purpose.PROMPT), rng(Purpose.OUTPUT)),
    )
    if not talks:
        return Single(arrivals, lengths)
    return Conversations(
        arrivals,
        lengths,
        spec.turns_mean,
        spec.think_s,
        spec.context_tokens,
        rng(Purpose.TURNS),
        rng(Purpose.THINK),
    )


def length_model(spec: MarketSpec, scale: tuple[float, float]) -> LengthModel:
    return LengthModel(
        Marginal(LEVELS, spec.prompt_quantiles, spec.prompt_lognormal),
        Marginal(LEVELS, spec.output_quantiles, spec.output_lognormal),
        spec.length_correlation,
        scale,
    )
