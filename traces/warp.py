"""Time in whole microseconds, and its warps: rates that rise and fall. S segments of a warp.

A warp maps mass, the time a clock of constant rate would show, to wall time, so that requests come
`level` times as fast while it lasts. From the drawn microseconds on all arithmetic is on int64, so
that platforms whose floating point rounds differently still agree on every arrival.
"""

from collections.abc import Iterator
from math import pi, sin
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Ticks = npt.NDArray[np.int64]
TICK_HZ = 1_000_000
DAY_S = 86_400.0
UNIT = 1 << 16  # a level of 1: the mean rate
STEPS = 96  # of a day's swing
EBB = (1.0, 0.75, 0.5, 0.25)  # a flash crowd's height in each quarter of its time


class Segments(NamedTuple):
    """Consecutive stretches of wall time [S] at a constant level (rate over mean, in UNIT)."""

    wall: Ticks
    level: Ticks


def ticks(seconds: float) -> int:
    return round(seconds * TICK_HZ)


def seconds(times: Ticks) -> npt.NDArray[np.float64]:
    return times / TICK_HZ


class Swing:
    """A cycle of 1 + depth * sin over a period, in 96 steps; the mean over a period is 1."""

    def __init__(self, depth: float, period_s: float) -> None:
        self.step = max(1, ticks(period_s) // STEPS)
        middles = [2 * pi * (k + 0.5) / STEPS for k in range(STEPS)]
        self.level = np.array([round(UNIT * (1 + depth * sin(m))) for m in middles], np.int64)
        self.mass = np.concatenate([[0], np.cumsum(self.step * self.level // UNIT)])

    def wall(self, mass: Ticks) -> Ticks:
        cycle, rest = np.divmod(mass, self.mass[-1])
        k = np.searchsorted(self.mass, rest, side="right") - 1
        inside = np.minimum((rest - self.mass[k]) * UNIT // self.level[k], self.step)
        return (cycle * STEPS + k) * self.step + inside


class Timeline:
    """Segments without end, taken as they are needed and forgotten when passed."""

    def __init__(self, segments: Iterator[Segments]) -> None:
        self.segments = segments
        self.start = self.mass = self.level = np.zeros(0, np.int64)  # start: wall time
        self.end_wall = self.end_mass = 0
        self._extend([next(segments)])
        self.top = int(self.level.max())

    def wall(self, mass: Ticks) -> Ticks:
        """The instants of rising masses; each call goes on where the last one ended."""
        if len(mass) == 0:
            return mass
        self._forget(int(mass[0]))
        self._reach(int(mass[-1]))
        k = np.searchsorted(self.mass, mass, side="right") - 1  # never one without mass
        return self.start[k] + (mass - self.mass[k]) * UNIT // self.level[k]

    def _forget(self, before: int) -> None:
        passed = max(0, int(np.searchsorted(self.mass, before, side="right")) - 1)
        self.start, self.mass = self.start[passed:], self.mass[passed:]
        self.level = self.level[passed:]

    def _reach(self, mass: int) -> None:
        new, reached = [], self.end_mass
        while reached <= mass:
            new.append(next(self.segments))
            reached += int((new[-1].wall * new[-1].level // UNIT).sum())
        if new:
            self._extend(new)

    def _extend(self, new: list[Segments]) -> None:
        wall, level = (np.concatenate(column) for column in zip(*new, strict=True))
        walls = self.end_wall + np.cumsum(wall)
        masses = self.end_mass + np.cumsum(wall * level // UNIT)
        self.start = np.concatenate([self.start, [self.end_wall], walls[:-1]])
        self.mass = np.concatenate([self.mass, [self.end_mass], masses[:-1]])
        self.level = np.concatenate([self.level, level])
        self.end_wall, self.end_mass = int(walls[-1]), int(masses[-1])


def bursts(
    burst: float, calm: float, burst_s: float, rng: np.random.Generator, batch: int = 64
) -> Iterator[Segments]:
    """Two levels in turn for exponential times (the modulation of an MMPP), `burst_s` on average at
    `burst` and at `calm` (under 1) in between for as long as the mean level of 1 asks for."""
    share = (1 - calm) / (burst - calm)  # of time in bursts
    mean_s = np.array([burst_s, burst_s * (1 - share) / share])
    level = np.array([round(UNIT * burst), round(UNIT * calm)], np.int64)
    if rng.random() >= share:
        mean_s, level = mean_s[::-1], level[::-1]
    while True:
        drawn = rng.standard_exponential((batch, 2)) * (mean_s * TICK_HZ)
        yield Segments(_whole(drawn).ravel(), np.tile(level, batch))


def flash_crowds(
    per_day: float, factor: float, crowd_s: float, rng: np.random.Generator, batch: int = 16
) -> Iterator[Segments]:
    """Now and then `factor` times the usual rate, ebbing in four steps over `crowd_s`; the mean
    level is 1."""
    gap_s = DAY_S / per_day
    height = np.array([1.0, *(1 + (factor - 1) * step for step in EBB)])
    share = np.array([gap_s, *[crowd_s / len(EBB)] * len(EBB)]) / (gap_s + crowd_s)
    level = np.rint(UNIT * height / (height * share).sum()).astype(np.int64)
    while True:
        wall = np.full((batch, len(level)), ticks(crowd_s / len(EBB)), np.int64)
        wall[:, 0] = _whole(rng.standard_exponential(batch) * (gap_s * TICK_HZ))
        yield Segments(wall.ravel(), np.tile(level, batch))


def _whole(drawn: npt.NDArray[np.float64]) -> Ticks:
    return np.maximum(1, np.rint(drawn)).astype(np.int64)
