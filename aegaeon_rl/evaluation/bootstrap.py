"""Intervals and verdicts from paired units of time.

Letters: S seeds, U units (whole windows, or blocks of time within few windows), B draws. All
policies meet the same arrivals in the same unit, so differences are taken unit by unit. Seeds and
units are resampled at once (the pigeonhole bootstrap: Owen, Annals of Applied Statistics, 2007).
"""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
LEAST_UNITS = 3


class Units(NamedTuple):
    """Tokens on time and due [S, U]."""

    on_time: Floats
    due: Floats

    @property
    def share(self) -> float:
        return float(self.on_time.sum() / self.due.sum())


class Interval(NamedTuple):
    """NaN bounds: too few units to say."""

    value: float
    low: float
    high: float

    @property
    def verdict(self) -> str:
        if self.low > 0:
            return "better"
        return "worse" if self.high < 0 else "no significant difference"


def resampled(units: Units, draws: int, seed: int) -> Floats:
    """Token attainment of each of B resamples; the same seed draws the same units."""
    rng = np.random.default_rng(seed)
    n_seeds, n_units = units.due.shape
    unit = rng.multinomial(n_units, np.full(n_units, 1 / n_units), draws).astype(np.float64)
    if n_seeds > 1:
        row = rng.multinomial(n_seeds, np.full(n_seeds, 1 / n_seeds), draws).astype(np.float64)
    else:
        row = np.ones((draws, 1))
    on_time = np.einsum("bs,su,bu->b", row, units.on_time, unit, optimize=True)
    due = np.einsum("bs,su,bu->b", row, units.due, unit, optimize=True)
    return on_time / np.maximum(due, 1.0)


def interval_of(value: float, drawn: Floats, confidence: float, n_units: int) -> Interval:
    if n_units < LEAST_UNITS:
        return Interval(value, float("nan"), float("nan"))
    tail = (1 - confidence) / 2
    low, high = np.quantile(drawn, [tail, 1 - tail])
    return Interval(value, float(low), float(high))


def attainment_interval(units: Units, draws: int, confidence: float, seed: int) -> Interval:
    drawn = resampled(units, draws, seed)
    return interval_of(units.share, drawn, confidence, units.due.shape[1])


def difference_interval(
    units: Units, baseline: Units, draws: int, confidence: float, seed: int
) -> Interval:
    """`units` minus `baseline`, paired. Raises ValueError when their tokens due differ."""
    if not np.array_equal(units.due, baseline.due):
        raise ValueError("paired comparison of runs with different requests")
    drawn = resampled(units, draws, seed) - resampled(baseline, draws, seed)
    return interval_of(units.share - baseline.share, drawn, confidence, units.due.shape[1])
