"""Arrival processes of one model, without end: gaps of a given mean, more or less bursty."""

from collections.abc import Sequence
from enum import StrEnum
from functools import lru_cache
from math import gamma, prod

import numpy as np
import numpy.typing as npt

from traces.warp import TICK_HZ, UNIT, Swing, Ticks, Timeline, bursts

BURST_S = 120.0
CALM = 0.1  # an MMPP's rate between bursts over its mean
SMALLEST_DRAW = 4
MOST_S = 1e9  # of gaps before the first arrival


class ArrivalProcess(StrEnum):
    POISSON = "poisson"
    GAMMA = "gamma"  # gaps of a given coefficient of variation
    WEIBULL = "weibull"
    ON_OFF = "on_off"  # Poisson bursts between silences
    MMPP = "mmpp"  # as ON_OFF, with a tenth of the mean rate between the bursts


MODULATED = {ArrivalProcess.ON_OFF: 0.0, ArrivalProcess.MMPP: CALM}


def gaps(
    process: ArrivalProcess, rate: float, cv: float, n: int, rng: np.random.Generator
) -> npt.NDArray[np.float64]:
    """Seconds between arrivals at mean `rate`, independent, of coefficient of variation `cv`
    (a Poisson process and those it underlies ignore it)."""
    if process is ArrivalProcess.GAMMA:
        return rng.gamma(1 / cv**2, cv**2 / rate, n)
    if process is ArrivalProcess.WEIBULL:
        shape = weibull_shape(cv)
        return rng.weibull(shape, n) / (rate * gamma(1 + 1 / shape))
    return rng.exponential(1 / rate, n)


@lru_cache
def weibull_shape(cv: float) -> float:
    """The shape whose coefficient of variation is `cv`, by bisection (0.1 to 10)."""
    low, high = 0.1, 10.0
    for _ in range(60):
        middle = 0.5 * (low + high)
        spread = gamma(1 + 2 / middle) / gamma(1 + 1 / middle) ** 2 - 1
        low, high = (middle, high) if spread > cv**2 else (low, middle)
    return 0.5 * (low + high)


def modulation(
    process: ArrivalProcess, cv: float, rng: np.random.Generator, burst_s: float = BURST_S
) -> list[Timeline]:
    """The random rate of a process that has one; `cv` is then its rate in bursts over its mean."""
    if process not in MODULATED or cv <= 1:
        return []
    return [Timeline(bursts(cv, MODULATED[process], burst_s, rng))]


class Arrivals:
    """One model's arrivals from 0 to `end`, in order, taken piece by piece.

    The gaps start early enough to be stationary `lead` before 0, where sessions may start. `drawn`
    feeds the gaps and nothing else, so that the pieces make no difference. `timelines` change the
    rate at random, `swing` by the hour.
    """

    def __init__(
        self,
        process: ArrivalProcess,
        rate: float,
        cv: float,
        drawn: np.random.Generator,
        end: int,
        timelines: Sequence[Timeline] = (),
        swing: Swing | None = None,
        lead: int = 0,
    ) -> None:
        self.process, self.rate, self.cv, self.drawn = process, rate, cv, drawn
        self.timelines, self.swing, self.lead = timelines, swing, lead
        renews = process in (ArrivalProcess.GAMMA, ArrivalProcess.WEIBULL)
        settling = round(TICK_HZ * min(MOST_S, 10 * (1 + cv**2) / rate)) if renews else 0
        self.mass = -settling
        self.last_mass = (end + lead) * 2 * prod(1 + t.top // UNIT for t in timelines)  # after end
        self.longest = self.last_mass + settling + 1
        self.pending = np.zeros(0, np.int64)

    def until(self, stop: int) -> Ticks:
        """The arrivals before `stop` that were not given yet."""
        parts = [self.pending]
        while self.mass <= self.last_mass and (len(parts[-1]) == 0 or parts[-1][-1] < stop):
            parts.append(self._draw(stop, SMALLEST_DRAW << len(parts)))
        times = np.concatenate(parts) if len(parts) > 1 else self.pending
        given = int(np.searchsorted(times, stop))
        self.pending = times[given:]
        return times[:given]

    def _draw(self, stop: int, least: int) -> Ticks:
        missing = max(0, stop + self.lead - self.mass) * self.rate / TICK_HZ
        n = max(least, int(missing + 2 * missing**0.5))
        steps = gaps(self.process, self.rate, self.cv, n, self.drawn) * TICK_HZ
        whole = np.rint(np.minimum(steps, self.longest)).astype(np.int64)
        masses = self.mass + np.cumsum(whole)
        self.mass = int(masses[-1])
        times = masses[(masses >= 0) & (masses <= self.last_mass)]
        for timeline in self.timelines:
            times = timeline.wall(times)
        times = times - self.lead
        return times if self.swing is None else self.swing.wall(times)
