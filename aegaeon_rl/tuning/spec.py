"""What is tuned, on which loads, for how long."""

from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple

from runtime.core import check_within
from runtime.errors import UserError


class Workload(StrEnum):
    STEADY = "steady"  # Poisson at a constant rate, chat lengths, equal models
    TRACE = "trace"  # windows of the trace


class Load(NamedTuple):
    """Models, each at a rate in requests/s."""

    models: int
    rate_rps: float


@dataclass(frozen=True, slots=True, kw_only=True)
class TuneSpec:
    """Every candidate meets the same cells: pools x loads x `seeds` workloads (steady), or pools x
    loads x windows (trace: `evaluate.loads`, `evaluate.windows`)."""

    trials: int = 400
    policies_at_once: int = 12  # candidates of a generation
    sigma: float = 0.5  # first step, in units of a parameter's scale
    workload: Workload = Workload.STEADY
    steady: tuple[str, ...] = ("150x0.1", "160x0.1", "90x0.5", "105x0.5")  # MODELSxRATE
    steady_s: float = 600.0  # that count, after `warm_s` that do not
    warm_s: float = 120.0
    seeds: int = 1  # workloads of each load
    first_seed: int = 1000  # of the workloads; validation takes those from `validation_seed` on
    validation_seed: int = 2000
    pools: tuple[str, ...] = ()  # names in conf/pool, beside `pool`; each has all loads
    pool_loads: tuple[str, ...] = ()  # POOL:MODELSxRATE, in place of `steady` for that pool
    start: str | None = None  # a policy.json to start from; null: the untuned parameters

    def __post_init__(self) -> None:
        check_within("tune.trials", self.trials, 1, 1_000_000)
        check_within("tune.policies_at_once", self.policies_at_once, 4, 1000)
        check_within("tune.sigma", self.sigma, 1e-6, 100)
        check_within("tune.seeds", self.seeds, 1, 1000)
        check_within("tune.steady_s", self.steady_s, 1, 1e7)
        check_within("tune.warm_s", self.warm_s, 0, 1e7)
        if abs(self.first_seed - self.validation_seed) < self.seeds or self.first_seed < 0:
            raise UserError(
                f"tune.validation_seed={self.validation_seed}: expected {self.seeds} or more away"
                f" from tune.first_seed={self.first_seed}"
            )
        if not self.steady:
            raise UserError("tune.steady=[]: expected loads like 150x0.1")
        for text in (*self.steady, *(entry.partition(":")[2] for entry in self.pool_loads)):
            load_of(text)

    def loads(self, pool: str) -> tuple[Load, ...]:
        """Of the pool by its name."""
        own = [text for at, _, text in (e.partition(":") for e in self.pool_loads) if at == pool]
        return tuple(map(load_of, own or self.steady))


def load_of(text: str) -> Load:
    """MODELSxRATE. Raises UserError."""
    models, _, rate = text.partition("x")
    try:
        load = Load(int(models), float(rate))
    except ValueError:
        raise UserError(f"tune.steady: {text!r}: expected MODELSxRATE, as 150x0.1") from None
    check_within(f"tune.steady: {text}: models", load.models, 1, 100_000)
    check_within(f"tune.steady: {text}: rate", load.rate_rps, 1e-6, 1e4)
    return load
