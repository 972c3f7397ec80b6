"""Steady workloads: M distinct models, each with arrivals of its own at one true rate.

Every model draws from its own streams (traces.market), so that a workload of more models holds the
requests of one of fewer, and what differs between two sizes is the models added.
"""

from dataclasses import dataclass
from functools import lru_cache

from runtime.core import check_within
from traces import Trace
from traces.arrivals import ArrivalProcess
from traces.market import MarketSpec, generate

# Rounded quantiles (0, 10, ... 90, 99, 100 %) of the lengths in the SOSP'25 workloads, which are
# drawn from ShareGPT: mean 0.7 k prompt tokens and 0.3 k output tokens. The longest prompt of all
# (26 k) is left out.
PROMPT_QUANTILES = (1, 16, 54, 215, 410, 570, 786, 990, 1265, 1556, 2173, 5000)
OUTPUT_QUANTILES = (16, 45, 106, 158, 216, 266, 312, 370, 448, 578, 950, 1300)


@dataclass(frozen=True, slots=True, kw_only=True)
class Steady:
    """`rate` requests a second of each model; `cv` of its gaps, where the process is not Poisson.
    `warm_s` run first and do not count; `length_scale` multiplies prompts and outputs."""

    rate: float
    process: ArrivalProcess = ArrivalProcess.POISSON
    cv: float = 3.0
    duration_s: float = 1800.0
    warm_s: float = 120.0
    prompt_scale: float = 1.0
    output_scale: float = 1.0

    def __post_init__(self) -> None:
        check_within("frontier.rate", self.rate, 1e-6, 1e3)
        check_within("frontier.duration_s", self.duration_s, 1.0, 1e7)
        check_within("frontier.warm_s", self.warm_s, 0.0, 1e7)
        for name in ("prompt_scale", "output_scale"):
            check_within(f"frontier.{name}", getattr(self, name), 0.01, 100.0)

    @property
    def span_s(self) -> float:
        return self.warm_s + self.duration_s

    @property
    def label(self) -> str:
        bursty = "" if self.process is ArrivalProcess.POISSON else f" cv {self.cv:g}"
        return f"{self.process.value}{bursty} {self.rate:g}/s"


@lru_cache(maxsize=32)
def steady_trace(workload: Steady, models: int, seed: int) -> Trace:
    """The trace of `models` models; the same seed gives every policy the same requests."""
    return generate(
        MarketSpec(
            name=f"steady {workload.label} x {models}",
            models=models,
            duration_s=workload.span_s,
            rate_rps=workload.rate * models,
            zipf=0.0,
            processes=((workload.process, workload.cv),),
            diurnal_depth=0.0,
            length_spread=0.0,
            prompt_quantiles=_scaled(PROMPT_QUANTILES, workload.prompt_scale),
            output_quantiles=_scaled(OUTPUT_QUANTILES, workload.output_scale),
            seed=seed,
        )
    )


def _scaled(quantiles: tuple[int, ...], factor: float) -> tuple[float, ...]:
    return tuple(max(1.0, factor * value) for value in quantiles)
