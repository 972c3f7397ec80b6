"""Warps of time: swings, bursts and flash crowds raise the rate and keep its mean."""

from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from traces.warp import UNIT, Segments, Swing, Timeline, bursts, flash_crowds, seconds, ticks


def rng(seed: int) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64(seed))


def even(end_s: float, n: int) -> np.ndarray:
    return np.linspace(0, ticks(end_s), n, endpoint=False).astype(np.int64)


@given(
    depth=st.floats(0, 0.99), period_s=st.floats(0.001, 1e6), start=st.integers(-(10**9), 10**12)
)
@settings(max_examples=60, deadline=None)
def test_swing_keeps_order_and_whole_periods(depth: float, period_s: float, start: int) -> None:
    swing = Swing(depth, period_s)
    moved = swing.wall(start + np.arange(0, 10**7, 9973))
    assert np.all(np.diff(moved) >= 0)
    cycles = np.arange(-3, 4) * int(swing.mass[-1])
    assert swing.wall(cycles).tolist() == (np.arange(-3, 4) * swing.step * 96).tolist()


@pytest.mark.parametrize("depth", [0.3, 0.9])
def test_swing_raises_the_rate_by_its_depth(depth: float) -> None:
    """The rate is 1 + depth sin: its first half period holds 1/2 + depth/pi of the requests."""
    moved = seconds(Swing(depth, 500.0).wall(even(1000.0, 100_000)))
    assert moved[-1] == pytest.approx(1000.0, abs=0.1)
    assert np.mean(moved % 500.0 < 250.0) == pytest.approx(0.5 + depth / np.pi, abs=1e-3)
    peak = np.mean(np.abs(moved % 500.0 - 125.0) < 5.0) / (10 / 500)
    assert peak == pytest.approx(1 + depth, rel=0.02)


def two_levels() -> Iterator[Segments]:
    """Ten seconds at twice the rate, ten seconds silent, ten at the rate."""
    level = np.array([2 * UNIT, 0, UNIT], np.int64)
    while True:
        yield Segments(np.full(3, ticks(10.0), np.int64), level)


def test_timeline_plays_its_segments_and_skips_silence() -> None:
    masses = np.array([ticks(s) for s in (0, 5, 19.9, 20, 25, 30, 50)], np.int64)
    moved = seconds(Timeline(two_levels()).wall(masses))
    assert moved.tolist() == [0.0, 2.5, 9.95, 20.0, 25.0, 30.0, 50.0]


@given(cuts=st.lists(st.integers(0, 10**9), max_size=5).map(sorted))
@settings(max_examples=40, deadline=None)
def test_timeline_is_the_same_in_any_pieces(cuts: list[int]) -> None:
    masses = np.arange(0, 10**9, 10**6, dtype=np.int64)
    at_once = Timeline(bursts(4.0, 0.1, 3.0, rng(2))).wall(masses)
    slowly = Timeline(bursts(4.0, 0.1, 3.0, rng(2)))
    parts = [slowly.wall(part) for part in np.split(masses, np.searchsorted(masses, cuts))]
    assert np.concatenate(parts).tolist() == at_once.tolist()
    assert np.all(np.diff(at_once) >= 0)


def test_flash_crowds_come_as_often_and_as_high_as_asked() -> None:
    """24 a day of 600 s at 9 times the rate: a cycle of 4,200 s; the first quarter is highest."""
    crowds = flash_crowds(24.0, 9.0, 600.0, rng(1))
    drawn = [next(crowds) for _ in range(40)]
    wall = np.concatenate([part.wall for part in drawn]).reshape(-1, 5)
    level = np.concatenate([part.level for part in drawn]).reshape(-1, 5)
    assert wall[:, 1:].tolist() == np.full((640, 4), ticks(150.0)).tolist()
    assert wall[:, 0].mean() == pytest.approx(ticks(3600.0), rel=0.12)
    assert level[0] / level[0, 0] == pytest.approx([1, 9, 7, 5, 3], rel=1e-3)
    assert (wall * level).sum() / wall.sum() == pytest.approx(UNIT, rel=0.05)


@pytest.mark.parametrize(("burst", "calm"), [(4.0, 0.0), (4.0, 0.1), (20.0, 0.5)])
def test_bursts_keep_the_mean_rate(burst: float, calm: float) -> None:
    """Over 64,000 cycles of exponential times: an error of a percent or two."""
    drawn = bursts(burst, calm, 5.0, rng(3), batch=64_000)
    wall, level = next(drawn)
    assert (wall * level).sum() / wall.sum() == pytest.approx(UNIT, rel=0.02)
    assert wall[level == level.max()].mean() == pytest.approx(ticks(5.0), rel=0.02)
