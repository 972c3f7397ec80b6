"""The crossing is found by few sizes, on paired units, and its interval follows the units."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aegaeon_rl.frontier.cells import Cell, CellStore
from aegaeon_rl.frontier.search import (
    Facts,
    Ladder,
    by_size,
    crossing,
    enclosed,
    hardest,
    ratio,
)
from aegaeon_rl.policies.registry import make_policy

POLICY = make_policy("fcfs")
BOOT: dict[str, Any] = {"draws": 200, "confidence": 0.95, "seed": 0}


@dataclass(frozen=True)
class Slope:
    """Attainment falls by a point with each model beyond the unit's own limit."""

    limits: tuple[int, ...]
    sizes: tuple[int, ...] = tuple(range(1, 301))
    guess: int = 50
    name: str = "slope"

    @property
    def units(self) -> tuple[int, ...]:
        return tuple(range(len(self.limits)))

    def cell(self, policy: Any, size: int, unit: int) -> Cell:
        over = max(0, size - self.limits[unit]) if self.sizes[0] < self.sizes[-1] else 0
        over = over or (
            max(0, self.limits[unit] - size) if self.sizes[0] > self.sizes[-1] else over
        )
        return Cell(100 * max(0, 100 - over), 10_000, {"ttft_p99_s": float(size)})

    def is_able(self, policy: Any, size: int) -> bool:
        return True


def found(axis: Any, target: float, store: CellStore | None = None) -> Any:
    return hardest(Ladder(axis, POLICY, store or CellStore()), lambda f: f.share >= target)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 99), st.integers(0, 99), st.integers(1, 100))
def test_search_ends_at_the_last_place_that_holds(limit: int, guess: int, places: int) -> None:
    asked: list[int] = []

    def held(place: int) -> bool:
        asked.append(place)
        return place < limit

    low, high = enclosed(held, places, min(guess, places - 1))
    assert low == -1 or held(low)
    assert high == places or not held(high)
    assert low < high
    assert len(asked) < 30


def test_search_finds_the_crossing_of_all_units_together() -> None:
    done = found(Slope((100, 120)), 0.9)
    assert done.best.size == 120  # 80 and 100 points of 100
    assert done.best.metrics["token_attainment"] == pytest.approx(0.9)


def test_search_of_gpus_ends_at_the_fewest() -> None:
    done = found(Slope((40,), sizes=tuple(range(64, 0, -1)), guess=32), 0.9)
    assert done.best.size == 30
    assert [f.size for f in done.tried] == sorted((f.size for f in done.tried), reverse=True)


def test_search_says_when_nothing_holds() -> None:
    assert found(Slope((-100,)), 0.99).best is None


def test_search_runs_a_cell_once() -> None:
    steps: list[str] = []
    store = CellStore()
    ladder = Ladder(Slope((100, 120)), POLICY, store, steps.append)
    for target in (0.9, 0.9, 0.95):
        hardest(ladder, lambda f, target=target: f.share >= target)  # type: ignore[misc]
    assert len(steps) == len(store.known) < 40


def test_interval_encloses_the_crossing_and_is_a_point_for_equal_units() -> None:
    apart, alike = found(Slope((80, 100, 120, 140)), 0.9), found(Slope((100,) * 4), 0.9)
    at = crossing(apart.tried, 0.9, **BOOT)
    assert at.low < at.value < at.high
    same = crossing(alike.tried, 0.9, **BOOT)
    assert same.low == same.value == same.high == pytest.approx(110)


def test_ratio_is_paired_by_unit() -> None:
    ours, theirs = found(Slope((80, 100, 120)), 0.9), found(Slope((40, 50, 60)), 0.9)
    over = ratio(ours.tried, theirs.tried, 0.9, **BOOT)
    alone = crossing(ours.tried, 0.9, **BOOT)
    assert over.value == pytest.approx(105 / 60, rel=0.02)
    assert (over.high - over.low) / over.value < (alone.high - alone.low) / alone.value


def test_two_units_have_no_interval() -> None:
    assert np.isnan(crossing(found(Slope((80, 100)), 0.9).tried, 0.9, **BOOT).low)


def test_sizes_of_two_searches_come_once_and_in_order() -> None:
    axis = Slope((100, 120))
    merged = by_size(found(axis, 0.9), found(axis, 0.95))
    assert [f.size for f in merged] == sorted({f.size for f in merged})


def test_facts_share_is_of_all_tokens() -> None:
    facts = Facts(3, (Cell(10, 10, {"x": 1.0}), Cell(0, 30, {"x": 3.0})))
    assert facts.share == 0.25
    assert facts.mean("x") == 2.0
