"""A market of models: Zipf popularity, per-model bursty arrivals, lengths from given quantiles.

Every model draws from a stream of its own (SeedSequence.spawn), so adding a model changes no
other. Processes are stationary over the whole window: no model stops early.
"""

from dataclasses import dataclass
from math import inf

import numpy as np
import numpy.typing as npt

from traces.arrivals import ArrivalProcess, arrivals, diurnal
from traces.errors import UserError
from traces.trace import Trace, TraceKind, renumbered

# Rounded quantiles (0, 10, ... 90, 99, 100 %) of ShareGPT conversation lengths.
LEVELS = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.99, 1.0)
PROMPT_QUANTILES = (4, 12, 18, 26, 42, 78, 140, 230, 370, 640, 1500, 2000)
OUTPUT_QUANTILES = (4, 14, 40, 84, 140, 190, 240, 300, 370, 470, 830, 1000)


@dataclass(frozen=True, slots=True, kw_only=True)
class MarketSpec:
    """`processes` are dealt to the models in turn as (process, cv), see `arrivals`."""

    name: str = "market"
    models: int = 64
    duration_s: float = 3600.0
    rate_rps: float = 6.4
    zipf: float = 1.1
    processes: tuple[tuple[ArrivalProcess, float], ...] = (
        (ArrivalProcess.GAMMA, 2.0),
        (ArrivalProcess.ON_OFF, 4.0),
        (ArrivalProcess.POISSON, 1.0),
        (ArrivalProcess.WEIBULL, 1.5),
    )
    diurnal_depth: float = 0.3
    diurnal_period_s: float = 3600.0
    length_spread: float = 0.2  # log-normal sigma of a model's own length scale
    prompt_quantiles: tuple[float, ...] = PROMPT_QUANTILES
    output_quantiles: tuple[float, ...] = OUTPUT_QUANTILES
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("models", "duration_s", "rate_rps", "diurnal_period_s"):
            if not 0 < getattr(self, name) < inf:
                raise UserError(f"market.{name}={getattr(self, name)}: expected more than 0")
        if not -inf < self.zipf < inf:
            raise UserError(f"market.zipf={self.zipf}: expected a number")
        if not 0 <= self.length_spread < inf:
            raise UserError(f"market.length_spread={self.length_spread}: expected 0 or more")
        if not 0 <= self.diurnal_depth < 1:
            raise UserError(f"market.diurnal_depth={self.diurnal_depth}: expected 0 <= depth < 1")
        if not self.processes or not all(0 < cv < inf for _, cv in self.processes):
            raise UserError(
                f"market.processes={self.processes}: expected one or more (process, cv), cv over 0"
            )
        for name in ("prompt_quantiles", "output_quantiles"):
            table = getattr(self, name)
            if len(table) != len(LEVELS) or list(table) != sorted(table) or table[0] < 1:
                raise UserError(
                    f"market.{name}: expected {len(LEVELS)} rising values of 1 or more, at {LEVELS}"
                )


def rates(spec: MarketSpec) -> npt.NDArray[np.float64]:
    """Requests per second of each model [M]; they sum to `rate_rps`."""
    weight = np.arange(1, spec.models + 1) ** -spec.zipf
    return spec.rate_rps * weight / weight.sum()


def generate(spec: MarketSpec) -> Trace:
    """The market's requests in order of arrival. Raises UserError when none falls in the window."""
    streams = np.random.SeedSequence(spec.seed).spawn(spec.models)
    times, prompts, outputs = [], [], []
    for index, rate in enumerate(rates(spec)):
        rng = np.random.Generator(np.random.PCG64(streams[index]))
        process, cv = spec.processes[index % len(spec.processes)]
        raw = arrivals(process, float(rate), cv, spec.duration_s, rng)
        period = spec.diurnal_period_s
        times.append(diurnal(raw, spec.diurnal_depth, period, spec.duration_s))
        scale = np.exp(rng.normal(0.0, spec.length_spread, 2))
        prompts.append(lengths(spec.prompt_quantiles, float(scale[0]), len(raw), rng))
        outputs.append(lengths(spec.output_quantiles, float(scale[1]), len(raw), rng))
    return _merged(spec, times, prompts, outputs)


def lengths(
    quantiles: tuple[float, ...], scale: float, n: int, rng: np.random.Generator
) -> npt.NDArray[np.int32]:
    """Token counts by inverse transform of the quantile table, scaled; at least 1."""
    drawn = np.interp(rng.random(n), LEVELS, quantiles) * scale
    return np.maximum(1, np.rint(drawn)).astype(np.int32)


def _merged(
    spec: MarketSpec,
    times: list[npt.NDArray[np.float64]],
    prompts: list[npt.NDArray[np.int32]],
    outputs: list[npt.NDArray[np.int32]],
) -> Trace:
    model = np.repeat(np.arange(spec.models, dtype=np.int32), [len(t) for t in times])
    arrival: npt.NDArray[np.float64] = np.round(np.concatenate(times), 6).astype(np.float64)
    if len(arrival) == 0:
        raise UserError(f"market {spec.name}: no request falls in {spec.duration_s:g} s")
    order = np.argsort(arrival, kind="stable")
    names = tuple(f"model-{i:03d}" for i in range(spec.models))
    number, present = renumbered(model[order], names)
    return Trace(
        name=spec.name,
        kind=TraceKind.SYNTHETIC,
        models=present,
        model=number,
        arrival_s=arrival[order],
        prompt_tokens=np.concatenate(prompts)[order],
        output_tokens=np.concatenate(outputs)[order],
        lineage=(f"generate market seed={spec.seed}",),
        licence="Apache-2.0",
    )
