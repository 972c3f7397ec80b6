"""The crossing of a target by paired bisection, and its interval. S sizes tried, U units, B draws.

All policies meet the same units, and a resample draws the same units for all of them, so that the
interval of a ratio is paired.
"""

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from os import cpu_count
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from aegaeon_rl.evaluation.bootstrap import Interval, interval_of
from aegaeon_rl.frontier.axis import Axis
from aegaeon_rl.frontier.cells import Cell, CellStore
from runtime.protocol import Policy

Floats = npt.NDArray[np.float64]
STRIDE = 0.25  # of the guess: the first step away from it
SCOUTS, LEAST_SCOUTED = 2, 6  # units that find the place, where there are as many as that
NEAR = 0.01  # of the place they find: the first step of all units
Listener = Callable[[str], None]


class Facts(NamedTuple):
    """One size under one policy: tokens over all units, and the mean of each unit's metrics."""

    size: int
    cells: tuple[Cell, ...]

    @property
    def share(self) -> float:
        return sum(c.on_time for c in self.cells) / max(1, sum(c.due for c in self.cells))

    def mean(self, name: str) -> float:
        return float(np.mean([c.metrics[name] for c in self.cells]))

    @property
    def metrics(self) -> dict[str, float]:
        means = {name: self.mean(name) for name in self.cells[0].metrics}
        return {**means, "token_attainment": self.share}


@dataclass(frozen=True)
class Ladder:
    """One policy on one axis; cells are run once, on all cores, and remembered."""

    axis: Axis
    policy: Policy
    store: CellStore
    listen: Listener = lambda _: None
    units: tuple[int, ...] | None = None  # None: all of the axis

    def at(self, size: int) -> Facts:
        units = self.axis.units if self.units is None else self.units
        with ThreadPoolExecutor(max_workers=cpu_count()) as threads:
            cells = tuple(threads.map(lambda unit: self._cell(size, unit), units))
        return Facts(size, cells)

    def _cell(self, size: int, unit: int) -> Cell:
        key = f"{self.axis.name}|{self.policy.name}|{size}|{unit}"
        cell = self.store.get(key)
        if cell is None:
            cell = self.axis.cell(self.policy, size, unit)
            self.store.put(key, cell)
            self.listen(f"{self.policy.name} at {size}")
        return cell


class Found(NamedTuple):
    """`best`: the hardest size that holds, or None; `tried` by size, from easy to hard."""

    best: Facts | None
    tried: tuple[Facts, ...]


def hardest(ladder: Ladder, holds: Callable[[Facts], bool], guess: int | None = None) -> Found:
    """Bisection between a size that holds and the next one that does not, taking difficulty to
    rise with the place in `sizes`. Where there are many units a few of them find the place first,
    and all are run near it."""
    sizes = [s for s in ladder.axis.sizes if ladder.axis.is_able(ladder.policy, s)]
    place = nearest_place(sizes, guess or ladder.axis.guess)
    first = max(1, int(STRIDE * place))
    units = ladder.axis.units
    if len(units) >= LEAST_SCOUTED:
        scouts = replace(ladder, units=units[:SCOUTS])
        place, _, _ = bisected(scouts, sizes, holds, place, first)
        place, first = max(0, place), max(1, round(NEAR * place))
    low, _, tried = bisected(ladder, sizes, holds, place, first)
    facts = tuple(tried[at] for at in sorted(tried))
    return Found(tried[low] if low >= 0 else None, facts)


def bisected(
    ladder: Ladder, sizes: Sequence[int], holds: Callable[[Facts], bool], place: int, first: int
) -> tuple[int, int, dict[int, Facts]]:
    """(the last place that holds or -1, the next one, what was tried by place)."""
    tried: dict[int, Facts] = {}

    def held(place: int) -> bool:
        tried[place] = ladder.at(sizes[place])
        return holds(tried[place])

    low, high = enclosed(held, len(sizes), place, first)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if held(middle) else (low, middle)
    return low, high, tried


def nearest_place(sizes: Sequence[int], size: int) -> int:
    return min(range(len(sizes)), key=lambda place: abs(sizes[place] - size), default=0)


def enclosed(
    held: Callable[[int], bool], places: int, guess: int, first: int = 1
) -> tuple[int, int]:
    """(a place that holds or -1, one that does not or `places`), by strides from the guess that
    double from `first` on."""
    if places == 0:
        return -1, 0
    up = held(guess)
    at, stride = guess, first
    while 0 < at < places - 1 or (up and at == 0 < places - 1) or (not up and at == places - 1 > 0):
        following = min(places - 1, at + stride) if up else max(0, at - stride)
        if held(following) != up:
            return (at, following) if up else (following, at)
        at, stride = following, 2 * stride
    return (at, places) if up else (-1, at)


def unit_weights(units: int, draws: int, seed: int) -> Floats:
    """[B, U]: how often each resample draws each unit."""
    rng = np.random.default_rng(seed)
    return rng.multinomial(units, np.full(units, 1 / units), draws).astype(np.float64)


def crossings(tried: Sequence[Facts], target: float, weights: Floats) -> Floats:
    """[B] the size at which each resample's share falls to the target, between the sizes tried."""
    on_time = np.array([[c.on_time for c in f.cells] for f in tried], np.float64)
    due = np.array([[c.due for c in f.cells] for f in tried], np.float64)
    share = np.minimum.accumulate(weights @ on_time.T / np.maximum(weights @ due.T, 1.0), axis=1)
    sizes = np.array([f.size for f in tried], np.float64)
    held = (share >= target).sum(1)
    left = np.clip(held - 1, 0, len(sizes) - 1)
    right = np.clip(held, 0, len(sizes) - 1)
    rows = np.arange(len(share))
    high, low = share[rows, left], share[rows, right]
    part = np.where(high > low, (high - target) / np.maximum(high - low, 1e-12), 0.0)
    return np.where(
        held == 0, sizes[0], sizes[left] + np.clip(part, 0, 1) * (sizes[right] - sizes[left])
    )


def crossing(
    tried: Sequence[Facts], target: float, *, draws: int, confidence: float, seed: int
) -> Interval:
    """The size of the crossing between those tried, and its interval over units."""
    units = len(tried[0].cells)
    value = float(crossings(tried, target, np.ones((1, units)))[0])
    drawn = crossings(tried, target, unit_weights(units, draws, seed))
    return interval_of(value, drawn, confidence, units)


def ratio(
    ours: Sequence[Facts],
    theirs: Sequence[Facts],
    target: float,
    *,
    draws: int,
    confidence: float,
    seed: int,
) -> Interval:
    """Our crossing over theirs, paired by unit."""
    units = len(ours[0].cells)
    even, weights = np.ones((1, units)), unit_weights(units, draws, seed)

    def over(w: Floats) -> Floats:
        return crossings(ours, target, w) / np.maximum(crossings(theirs, target, w), 1e-9)

    return interval_of(float(over(even)[0]), over(weights), confidence, units)


def by_size(*searches: Found) -> tuple[Facts, ...]:
    """What several searches of one ladder tried, each size once, in the order of difficulty that
    they share."""
    seen: Mapping[int, Facts] = {f.size: f for found in searches for f in found.tried}
    falls = any(
        a.size > b.size for s in searches for a, b in zip(s.tried, s.tried[1:], strict=False)
    )
    return tuple(sorted(seen.values(), key=lambda f: -f.size if falls else f.size))
