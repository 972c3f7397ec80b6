"""Arrival processes: mean rate, burstiness, and that pieces make no difference."""

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from traces.arrivals import CALM, ArrivalProcess, Arrivals, gaps, modulation, weibull_shape
from traces.warp import Swing, ticks

PROCESSES = list(ArrivalProcess)
RENEWAL = [ArrivalProcess.GAMMA, ArrivalProcess.WEIBULL, ArrivalProcess.POISSON]


def rng(seed: int) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64(seed))


def model(
    process: ArrivalProcess, rate: float, cv: float, end_s: float, seed: int, depth: float = 0.0
) -> Arrivals:
    swing = Swing(depth, 300.0) if depth else None
    timelines = modulation(process, cv, rng(seed + 1))
    return Arrivals(process, rate, cv, rng(seed), ticks(end_s), timelines, swing)


def whole(
    process: ArrivalProcess, rate: float, cv: float, end_s: float, seed: int
) -> npt.NDArray[np.int64]:
    return model(process, rate, cv, end_s, seed).until(ticks(end_s))


def cv_of(times: npt.NDArray[np.int64]) -> float:
    steps = np.diff(times)
    return float(steps.std() / steps.mean())


@given(
    process=st.sampled_from(PROCESSES),
    rate=st.floats(1e-9, 5),
    cv=st.floats(0.3, 6),
    depth=st.sampled_from([0.0, 0.7]),
    seed=st.integers(0, 2**32),
    stops_s=st.lists(st.floats(0, 999), max_size=6).map(sorted),
)
@settings(max_examples=80, deadline=None)
def test_arrivals_are_the_same_in_any_pieces(
    process: ArrivalProcess,
    rate: float,
    cv: float,
    depth: float,
    seed: int,
    stops_s: list[float],
) -> None:
    end = ticks(1000.0)
    at_once = model(process, rate, cv, 1000.0, seed, depth).until(end)
    assert np.all(np.diff(at_once) >= 0)
    assert np.all((at_once >= 0) & (at_once < end))
    slowly = model(process, rate, cv, 1000.0, seed, depth)
    stops = [*map(ticks, stops_s), end]
    pieces = [slowly.until(stop) for stop in stops]
    assert np.concatenate(pieces).tolist() == at_once.tolist()
    for piece, stop in zip(pieces, stops, strict=True):
        assert len(piece) == 0 or piece[-1] < stop


@pytest.mark.parametrize("cv", [0.5, 1.0, 3.0])
@pytest.mark.parametrize("process", PROCESSES)
def test_arrivals_have_the_mean_rate(process: ArrivalProcess, cv: float) -> None:
    """Standard error of the count: about cv / sqrt(2e5) for renewals, more for the modulated."""
    count = len(whole(process, 2.0, cv, 100_000.0, 3))
    assert count / 100_000.0 == pytest.approx(2.0, rel=0.1 if cv == 3.0 else 0.03)


@pytest.mark.parametrize("process", [ArrivalProcess.GAMMA, ArrivalProcess.WEIBULL])
def test_arrivals_are_stationary_from_the_start(process: ArrivalProcess) -> None:
    """A renewal process begun at 0 with CV 4 has (CV^2 - 1) / 2 = 7.5 arrivals too many."""
    early = [len(whole(process, 1.0, 4.0, 40.0, seed)) for seed in range(600)]
    assert np.mean(early) == pytest.approx(40.0, abs=3 * 4 * 40**0.5 / 600**0.5)


@pytest.mark.parametrize("cv", [0.5, 1.5, 3.0])
@pytest.mark.parametrize("process", [ArrivalProcess.GAMMA, ArrivalProcess.WEIBULL])
def test_gaps_have_the_coefficient_of_variation(process: ArrivalProcess, cv: float) -> None:
    assert cv_of(whole(process, 1.0, cv, 100_000.0, 5)) == pytest.approx(cv, rel=0.05)


@pytest.mark.parametrize("cv", [0.5, 3.0])
def test_poisson_ignores_the_coefficient_of_variation(cv: float) -> None:
    times = whole(ArrivalProcess.POISSON, 1.0, cv, 50_000.0, 5)
    assert cv_of(times) == pytest.approx(1.0, rel=0.05)


@pytest.mark.parametrize(("rate", "burst"), [(0.05, 2.0), (0.2, 4.0)])
def test_on_off_gaps_vary_as_an_interrupted_poisson_process(rate: float, burst: float) -> None:
    """Kuczura 1973: CV^2 = 1 + 2 l a / (a + b)^2, rate l while on, leaving on at a, off at b."""
    times = whole(ArrivalProcess.ON_OFF, rate, burst, 2e6, 11)
    on, leave_on = rate * burst, 1 / 120
    leave_off = leave_on / (burst - 1)
    expected = np.sqrt(1 + 2 * on * leave_on / (leave_on + leave_off) ** 2)
    assert expected > 1.5
    assert cv_of(times) == pytest.approx(expected, rel=0.1)


@pytest.mark.parametrize(("rate", "burst"), [(0.05, 4.0), (0.2, 3.0)])
def test_mmpp_counts_disperse_as_a_markov_modulated_process(rate: float, burst: float) -> None:
    """Index of dispersion over long windows t: 1 + 2 (l1 - l2)^2 a b / ((a + b)^3 mean), less its
    transient factor 1 - (1 - e^-(a+b)t) / ((a+b) t); a, b leave the burst and the calm."""
    leave_burst = 1 / 120
    share = (1 - CALM) / (burst - CALM)
    leave_calm = leave_burst * share / (1 - share)
    both, t = leave_burst + leave_calm, 2000.0
    spread = (rate * (burst - CALM)) ** 2 * leave_burst * leave_calm / both**3 / rate
    expected = 1 + 2 * spread * (1 - (1 - np.exp(-both * t)) / (both * t))
    times = whole(ArrivalProcess.MMPP, rate, burst, 8e6, 13)
    counts = np.bincount(times // ticks(t), minlength=4000)
    assert expected > 5
    assert counts.var() / counts.mean() == pytest.approx(expected, rel=0.12)


@given(cv=st.floats(0.15, 6))
@settings(max_examples=30, deadline=None)
def test_weibull_shape_gives_the_coefficient_of_variation(cv: float) -> None:
    shape = weibull_shape(cv)
    quantiles = (-np.log1p(-(np.arange(1_000_000) + 0.5) / 1_000_000)) ** (1 / shape)
    assert quantiles.std() / quantiles.mean() == pytest.approx(cv, rel=0.15)


@pytest.mark.parametrize("process", RENEWAL)
def test_gaps_come_from_their_own_stream_alone(process: ArrivalProcess) -> None:
    first = gaps(process, 1.0, 2.0, 10, rng(1))
    assert first.tolist() == gaps(process, 1.0, 2.0, 10, rng(1)).tolist()
    assert first.tolist() != gaps(process, 1.0, 2.0, 10, rng(2)).tolist()
