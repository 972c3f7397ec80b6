"""The paired bootstrap: coverage, pairing, two-way resampling, and when it stays silent."""

import math

import numpy as np
import pytest

from aegaeon_rl.evaluation.bootstrap import (
    LEAST_UNITS,
    Interval,
    Units,
    attainment_interval,
    difference_interval,
    resampled,
)

DRAWS = 400


def synthetic(rng: np.random.Generator, units: int, gain: float) -> tuple[Units, Units]:
    """A baseline and a policy better by `gain`; a shock that both meet, and noise of their own."""
    due = rng.integers(500, 1500, (1, units)).astype(np.float64)
    shock = rng.normal(0.6, 0.15, (1, units))
    own = rng.normal(0.0, 0.03, (2, 1, units))
    return Units(due * (shock + own[0]), due), Units(due * (shock + gain + own[1]), due)


def test_interval_covers_the_true_difference_as_often_as_it_says() -> None:
    rng = np.random.default_rng(1)
    covered = {"difference": 0, "attainment": 0}
    for repetition in range(200):
        baseline, policy = synthetic(rng, 40, 0.05)
        difference = difference_interval(policy, baseline, DRAWS, 0.95, repetition)
        covered["difference"] += difference.low <= 0.05 <= difference.high
        alone = attainment_interval(baseline, DRAWS, 0.95, repetition)
        covered["attainment"] += alone.low <= 0.6 <= alone.high
    assert 180 <= covered["difference"] <= 198
    assert 180 <= covered["attainment"] <= 198


def test_verdict_is_seldom_wrong_where_nothing_differs() -> None:
    rng = np.random.default_rng(2)
    verdicts = []
    for repetition in range(200):
        baseline, policy = synthetic(rng, 40, 0.0)
        difference = difference_interval(policy, baseline, DRAWS, 0.95, repetition)
        verdicts.append(difference.verdict)
    assert 180 <= verdicts.count("no significant difference") <= 198
    assert 0 < verdicts.count("better") < 15
    assert 0 < verdicts.count("worse") < 15


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [
        (0.01, 0.2, "better"),
        (-0.2, -0.01, "worse"),
        (-0.1, 0.1, "no significant difference"),
        (0.0, 0.1, "no significant difference"),
        (-0.1, 0.0, "no significant difference"),
    ],
)
def test_verdict_needs_an_interval_beside_zero(low: float, high: float, verdict: str) -> None:
    assert Interval(0.05, low, high).verdict == verdict


def test_identical_units_differ_by_exactly_nothing() -> None:
    baseline, _ = synthetic(np.random.default_rng(3), 12, 0.0)
    difference = difference_interval(baseline, baseline, DRAWS, 0.95, 0)
    assert difference == (0.0, 0.0, 0.0)
    assert difference.verdict == "no significant difference"


def test_pairing_removes_the_shock_that_both_meet() -> None:
    baseline, policy = synthetic(np.random.default_rng(4), 40, 0.05)
    paired = difference_interval(policy, baseline, DRAWS, 0.95, 0)
    alone = attainment_interval(policy, DRAWS, 0.95, 0)
    assert paired.verdict == "better"
    assert paired.high - paired.low < 0.5 * (alone.high - alone.low)


def test_units_of_different_requests_are_not_compared() -> None:
    baseline, policy = synthetic(np.random.default_rng(5), 8, 0.0)
    with pytest.raises(ValueError, match="different requests"):
        difference_interval(policy, Units(baseline.on_time, baseline.due + 1), DRAWS, 0.95, 0)


@pytest.mark.parametrize("units", [1, LEAST_UNITS - 1, LEAST_UNITS])
def test_interval_is_silent_under_three_units(units: int) -> None:
    baseline, policy = synthetic(np.random.default_rng(6), units, 0.1)
    for interval in (
        attainment_interval(policy, DRAWS, 0.95, 0),
        difference_interval(policy, baseline, DRAWS, 0.95, 0),
    ):
        assert math.isfinite(interval.value)
        assert math.isnan(interval.low) == math.isnan(interval.high) == (units < LEAST_UNITS)


def test_value_is_the_ratio_of_sums_not_the_mean_of_ratios() -> None:
    units = Units(np.array([[90.0, 0.0]]), np.array([[90.0, 10.0]]))
    assert units.share == 0.9
    assert attainment_interval(units, DRAWS, 0.95, 0).value == 0.9


@pytest.mark.parametrize(("seeds", "units"), [(1, 6), (3, 6), (5, 4)])
def test_resampling_equals_a_plain_two_way_draw(seeds: int, units: int) -> None:
    """Rows and columns drawn with replacement, each pair taken once: mean and spread agree."""
    rng = np.random.default_rng(7)
    due = np.broadcast_to(rng.integers(50, 150, units), (seeds, units)).astype(np.float64)
    table = Units(due * rng.uniform(0.2, 1.0, (seeds, units)), due)
    plain = []
    for _ in range(4000):
        rows = rng.integers(0, seeds, seeds) if seeds > 1 else np.array([0])
        cells = np.ix_(rows, rng.integers(0, units, units))
        plain.append(table.on_time[cells].sum() / table.due[cells].sum())
    drawn = resampled(table, 4000, 0)
    assert drawn.mean() == pytest.approx(np.mean(plain), abs=4 * np.std(plain) / 60)
    assert drawn.std() == pytest.approx(np.std(plain), rel=0.06)


def test_seeds_that_disagree_widen_the_interval() -> None:
    due = np.full((4, 10), 100.0)
    share = np.array([0.2, 0.4, 0.6, 0.8])[:, np.newaxis]
    apart = attainment_interval(Units(due * share, due), DRAWS, 0.95, 0)
    summed = Units((due * share).sum(axis=0, keepdims=True), due.sum(axis=0, keepdims=True))
    alike = attainment_interval(summed, DRAWS, 0.95, 0)
    assert apart.value == pytest.approx(alike.value)
    assert apart.high - apart.low > 0.2
    assert alike.high - alike.low == pytest.approx(0.0, abs=1e-12)


def test_same_seed_gives_the_same_interval() -> None:
    baseline, policy = synthetic(np.random.default_rng(8), 9, 0.02)
    first, again, other = (
        difference_interval(policy, baseline, DRAWS, 0.95, seed) for seed in (1, 1, 2)
    )
    assert first == again
    assert first != other
    narrow = difference_interval(policy, baseline, DRAWS, 0.5, 1)
    assert first.low < narrow.low < narrow.high < first.high
