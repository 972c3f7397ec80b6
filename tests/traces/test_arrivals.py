"""Arrival processes: mean rate, burstiness and the daily swing."""

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from traces.arrivals import ArrivalProcess, arrivals, diurnal, gaps, weibull_shape

PROCESSES = list(ArrivalProcess)
RENEWAL = [ArrivalProcess.GAMMA, ArrivalProcess.WEIBULL, ArrivalProcess.POISSON]


def cv_of(times: npt.NDArray[np.float64]) -> float:
    steps = np.diff(times)
    return float(steps.std() / steps.mean())


@given(
    process=st.sampled_from(PROCESSES),
    rate=st.floats(0.001, 5),
    cv=st.floats(0.3, 6),
    duration_s=st.floats(1, 1000),
    seed=st.integers(0, 2**32),
)
@settings(max_examples=80, deadline=None)
def test_arrivals_are_sorted_and_inside_the_window(
    process: ArrivalProcess, rate: float, cv: float, duration_s: float, seed: int
) -> None:
    times = arrivals(process, rate, cv, duration_s, np.random.default_rng(seed))
    assert np.all(np.diff(times) >= 0)
    assert np.all((times >= 0) & (times < duration_s))


@pytest.mark.parametrize("cv", [0.5, 1.0, 3.0])
@pytest.mark.parametrize("process", PROCESSES)
def test_arrivals_have_the_mean_rate(process: ArrivalProcess, cv: float) -> None:
    times = arrivals(process, 2.0, cv, 100_000.0, np.random.default_rng(3))
    assert len(times) / 100_000.0 == pytest.approx(2.0, rel=0.1)


@pytest.mark.parametrize("cv", [0.5, 1.5, 3.0])
@pytest.mark.parametrize("process", [ArrivalProcess.GAMMA, ArrivalProcess.WEIBULL])
def test_gaps_have_the_coefficient_of_variation(process: ArrivalProcess, cv: float) -> None:
    times = arrivals(process, 1.0, cv, 100_000.0, np.random.default_rng(5))
    assert cv_of(times) == pytest.approx(cv, rel=0.05)


@pytest.mark.parametrize("cv", [0.5, 3.0])
def test_poisson_ignores_the_coefficient_of_variation(cv: float) -> None:
    times = arrivals(ArrivalProcess.POISSON, 1.0, cv, 50_000.0, np.random.default_rng(5))
    assert cv_of(times) == pytest.approx(1.0, rel=0.05)


@pytest.mark.parametrize(("rate", "burst"), [(0.05, 2.0), (0.2, 4.0)])
def test_on_off_gaps_vary_as_an_interrupted_poisson_process(rate: float, burst: float) -> None:
    """Kuczura 1973: CV^2 = 1 + 2 l a / (a + b)^2, rate l while on, leaving on at a, off at b."""
    times = arrivals(ArrivalProcess.ON_OFF, rate, burst, 2e6, np.random.default_rng(11))
    on, leave_on = rate * burst, 1 / 120
    leave_off = leave_on / (burst - 1)
    expected = np.sqrt(1 + 2 * on * leave_on / (leave_on + leave_off) ** 2)
    assert expected > 1.5
    assert cv_of(times) == pytest.approx(expected, rel=0.1)


@given(cv=st.floats(0.15, 6))
@settings(max_examples=30, deadline=None)
def test_weibull_shape_gives_the_coefficient_of_variation(cv: float) -> None:
    shape = weibull_shape(cv)
    quantiles = (-np.log1p(-(np.arange(1_000_000) + 0.5) / 1_000_000)) ** (1 / shape)
    assert quantiles.std() / quantiles.mean() == pytest.approx(cv, rel=0.15)


@pytest.mark.parametrize("process", RENEWAL)
def test_gaps_come_from_their_own_stream_alone(process: ArrivalProcess) -> None:
    first = gaps(process, 1.0, 2.0, 10, np.random.default_rng(1))
    assert first.tolist() == gaps(process, 1.0, 2.0, 10, np.random.default_rng(1)).tolist()
    assert first.tolist() != gaps(process, 1.0, 2.0, 10, np.random.default_rng(2)).tolist()


@given(depth=st.floats(0, 0.99), times=st.lists(st.floats(0, 999.9), max_size=20).map(sorted))
def test_diurnal_keeps_count_order_and_window(depth: float, times: list[float]) -> None:
    moved = diurnal(np.array(times), depth, 250.0, 1000.0)
    assert len(moved) == len(times)
    assert np.all(np.diff(moved) >= 0)
    assert np.all((moved >= 0) & (moved < 1000.0))


@pytest.mark.parametrize("depth", [0.0, 0.3, 0.9])
def test_diurnal_swings_the_rate_by_its_depth(depth: float) -> None:
    """The rate is 1 + depth sin: its first half period holds 1/2 + depth/pi of the requests."""
    moved = diurnal(np.linspace(0, 1000, 100_000, endpoint=False), depth, 500.0, 1000.0)
    first_half = np.mean(moved % 500.0 < 250.0)
    assert first_half == pytest.approx(0.5 + depth / np.pi, abs=1e-3)
    peak = np.mean(np.abs(moved % 500.0 - 125.0) < 5.0) / (10 / 500)
    assert peak == pytest.approx(1 + depth, rel=0.02)
