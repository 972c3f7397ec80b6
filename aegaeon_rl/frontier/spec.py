"""What a frontier is asked: along which axis, for which targets, on which pools and workloads."""

from dataclasses import dataclass, field
from enum import StrEnum

from aegaeon_rl.frontier.steady import Steady
from runtime.core import PoolSpec, check_within
from runtime.errors import UserError
from traces.arrivals import ArrivalProcess


class Find(StrEnum):
    MODELS = "models"  # the most steady models on the pool
    LOAD = "load"  # the largest multiple of a trace's rate on the pool
    GPUS = "gpus"  # the fewest GPUs for a trace, beside what it takes otherwise: plan.csv
    MARKET = "market"  # the fewest GPUs for the rebuilt market of 1,192


@dataclass(frozen=True, slots=True, kw_only=True)
class FrontierSpec:
    """`rate`, `target` and `process`, where given, stand in for the lists. `pools`: several by
    name, in place of the verb's own. Seeds count from the verb's `seed`."""

    find: Find | None = None  # None: gpus where trace.path is given, else models
    rate: float | None = None  # requests/s of each model
    rates: tuple[float, ...] = (0.1,)
    target: float | None = None  # token attainment
    targets: tuple[float, ...] = (0.9,)
    process: ArrivalProcess | None = None
    processes: tuple[ArrivalProcess, ...] = (ArrivalProcess.POISSON,)
    cv: float = 3.0  # of gaps, or a burst's height, where the process is not Poisson
    prompt_scale: float = 1.0
    output_scale: float = 1.0
    duration_s: float = 1800.0  # that counts, after warm_s that does not
    warm_s: float = 120.0
    seeds: int = 10
    least: int = 1  # models between two sizes tried
    most: int = 1000  # models, GPUs, or per cent of the load
    bounds: bool = True
    curve: bool = True  # attainment against load around the crossings, in the report
    draws: int = 2000
    confidence: float = 0.95
    pools: dict[str, PoolSpec] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        for name, most in (("seeds", 1000), ("least", 1000), ("most", 100_000)):
            check_within(f"frontier.{name}", getattr(self, name), 1, most)
        check_within("frontier.draws", self.draws, 100, 100_000)
        check_within("frontier.cv", self.cv, 0.01, 1000)
        for name in ("rates", "targets", "processes"):
            if not getattr(self, name):
                raise UserError(f"frontier.{name}=[]: expected at least one")
        for target in (*self.all_targets, self.confidence):
            if not 0 < target < 1:
                raise UserError(f"frontier.target={target:g}: expected between 0 and 1")
        self.workloads  # noqa: B018  checks the rates

    @property
    def all_targets(self) -> tuple[float, ...]:
        return self.targets if self.target is None else (self.target,)

    @property
    def workloads(self) -> tuple[Steady, ...]:
        rates = self.rates if self.rate is None else (self.rate,)
        processes = self.processes if self.process is None else (self.process,)
        return tuple(
            Steady(
                rate=rate,
                process=process,
                cv=self.cv,
                duration_s=self.duration_s,
                warm_s=self.warm_s,
                prompt_scale=self.prompt_scale,
                output_scale=self.output_scale,
            )
            for process in processes
            for rate in rates
        )
