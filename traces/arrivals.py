"""Arrival processes of one model: gaps of a given mean, more or less bursty.

Each returns arrival seconds in [0, duration_s), for a mean rate in requests per second. The first
gap is drawn like the others (not from the equilibrium distribution): a bias of under one request.
"""

from enum import StrEnum
from math import gamma

import numpy as np
import numpy.typing as npt

Times = npt.NDArray[np.float64]


class ArrivalProcess(StrEnum):
    POISSON = "poisson"
    GAMMA = "gamma"  # gaps of a given coefficient of variation
    WEIBULL = "weibull"
    ON_OFF = "on_off"  # Markov-modulated: Poisson bursts between silences


def arrivals(
    process: ArrivalProcess, rate: float, cv: float, duration_s: float, rng: np.random.Generator
) -> Times:
    """Arrivals at mean `rate`. `cv` is the gaps' coefficient of variation (a Poisson process
    ignores it: 1); of ON_OFF it is the rate while on over the mean rate."""
    if process is ArrivalProcess.ON_OFF:
        return on_off(rate, cv, duration_s, rng)
    expected = rate * duration_s
    chunk = int(expected + 10 * max(1.0, cv) * np.sqrt(expected) + 50)
    times = np.cumsum(gaps(process, rate, cv, chunk, rng))
    while times[-1] < duration_s:
        more = np.cumsum(gaps(process, rate, cv, chunk, rng)) + times[-1]
        times = np.concatenate([times, more])
    return times[times < duration_s]


def gaps(
    process: ArrivalProcess, rate: float, cv: float, n: int, rng: np.random.Generator
) -> Times:
    if process is ArrivalProcess.GAMMA:
        return rng.gamma(1 / cv**2, cv**2 / rate, n)
    if process is ArrivalProcess.WEIBULL:
        shape = weibull_shape(cv)
        return rng.weibull(shape, n) / (rate * gamma(1 + 1 / shape))
    return rng.exponential(1 / rate, n)


def weibull_shape(cv: float) -> float:
    """The shape whose coefficient of variation is `cv`, by bisection (0.1 to 10)."""
    low, high = 0.1, 10.0
    for _ in range(60):
        middle = 0.5 * (low + high)
        spread = gamma(1 + 2 / middle) / gamma(1 + 1 / middle) ** 2 - 1
        low, high = (middle, high) if spread > cv**2 else (low, middle)
    return 0.5 * (low + high)


def on_off(rate: float, cv: float, duration_s: float, rng: np.random.Generator) -> Times:
    """Poisson while on, silent while off; on for 1/cv of the time, in periods of 120*cv s."""
    share = 1 / max(cv, 1.0)
    on_s, off_s = 120.0, 120.0 * (1 - share) / share
    times, clock, is_on = [], 0.0, rng.random() < share
    while clock < duration_s:
        length = rng.exponential(on_s if is_on else max(off_s, 1e-9))
        if is_on:
            n = rng.poisson(rate / share * length)
            times.append(clock + np.sort(rng.uniform(0, length, n)))
        clock, is_on = clock + length, not is_on
    joined = np.concatenate(times) if times else np.zeros(0)
    return joined[joined < duration_s]


def diurnal(times: Times, depth: float, period_s: float, duration_s: float) -> Times:
    """Time-rescale so that the rate swings by 1 +- depth over `period_s`; the count is kept."""
    if depth == 0:
        return times
    grid = np.linspace(0, duration_s, 4096)
    phase = 2 * np.pi * grid / period_s
    mass = grid - depth * period_s / (2 * np.pi) * (np.cos(phase) - 1)
    return np.interp(times, mass * duration_s / mass[-1], grid)
