"""SLO accounting in closed form against a plain walk over tokens, as anchors of both metrics."""

import math
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.core import NONE, NS
from runtime.pool.state import GAP_BINS, REQUEST
from runtime.slo import (
    GAP_FLOOR_S,
    GAP_PARTS,
    account_run,
    count_gaps,
    count_on_time,
    curve_ns,
    gap_edge_s,
    gap_quantile_s,
    qos_of,
)


class Burst(NamedTuple):
    """k tokens in a row: the run starts `gap_ns` after the last token."""

    gap_ns: int
    x_s: float
    y_s: float
    k: int


BURSTS = st.builds(
    Burst,
    gap_ns=st.one_of(st.just(0), st.integers(0, 30 * NS), st.integers(0, 1000)),
    x_s=st.one_of(st.floats(1e-6, 3.0), st.sampled_from([0.1, 0.05, 1.0])),
    y_s=st.one_of(st.just(0.0), st.floats(1e-9, 1e-2)),
    k=st.integers(1, 60),
)


def token_times(arrival_ns: int, bursts: list[Burst]) -> list[int]:
    times, last = [], arrival_ns
    for burst in bursts:
        start = last + burst.gap_ns
        for j in range(1, burst.k + 1):
            times.append(start + round((burst.x_s * j + burst.y_s * (0.5 * j * (j - 1))) * 1e9))
        last = times[-1]
    return times


def walk_on_time(arrival_ns: int, ttft_ns: int, tbt_ns: int, times: list[int]) -> int:
    """Token i is due by arrival + TTFT + i * TBT."""
    return sum(t <= arrival_ns + ttft_ns + i * tbt_ns for i, t in enumerate(times))


def walk_qos(arrival_ns: int, ttft_ns: int, tbt_ns: int, times: list[int]) -> float:
    """The artifact's covered wall time: a miss restarts the window at the accumulated target."""
    clock = start = acc = q = 0
    target, last = ttft_ns, arrival_ns
    for t in times:
        clock += t - last
        last = t
        if clock - start <= target:
            acc = target
            target += tbt_ns
        else:
            q += acc
            start, acc = clock, 0
            target += tbt_ns
    q += min(target, clock - start)
    return q / clock


def accounted(arrival_ns: int, ttft_ns: int, tbt_ns: int, bursts: list[Burst]) -> np.ndarray:
    """A REQUEST table of one row after `bursts`."""
    requests = np.zeros(1, REQUEST)
    requests["arrival_ns"] = requests["last_token_ns"] = arrival_ns
    requests["first_token_ns"], requests["qos_target_ns"] = NONE, ttft_ns
    for burst in bursts:
        start = int(requests["last_token_ns"][0]) + burst.gap_ns
        account_run(requests, 0, ttft_ns, tbt_ns, start, burst.x_s, burst.y_s, burst.k)
    return requests


@settings(max_examples=400, deadline=None)
@given(
    arrival_ns=st.integers(0, 10**15),
    ttft_s=st.sampled_from([0.05, 1.0, 10.0]),
    tbt_s=st.sampled_from([0.01, 0.03, 0.1, 1.0]),
    bursts=st.lists(BURSTS, min_size=1, max_size=6),
)
def test_account_run_equals_a_walk_over_tokens(
    arrival_ns: int, ttft_s: float, tbt_s: float, bursts: list[Burst]
) -> None:
    slo = round(ttft_s * NS), round(tbt_s * NS)
    times = token_times(arrival_ns, bursts)
    req = accounted(arrival_ns, *slo, bursts)
    assert req["emitted_tokens"][0] == len(times)
    assert (req["first_token_ns"][0], req["last_token_ns"][0]) == (times[0], times[-1])
    assert req["on_time_tokens"][0] == walk_on_time(arrival_ns, *slo, times)
    assert qos_of(req, 0, True) == walk_qos(arrival_ns, *slo, times)
    gaps = np.diff(times)
    assert req["stall_ns"][0] == pytest.approx(gaps.max() if gaps.size else 0, abs=1)


@pytest.mark.parametrize(
    ("bursts", "on_time", "qos"),
    [
        ([Burst(0, 1.0, 0.0, 1)], 1, 1.0),  # exactly at TTFT is on time
        ([Burst(1, 1.0, 0.0, 1)], 0, 0.0),  # 1 ns late; the window restarts and is empty
        ([Burst(0, 0.5, 0.0, 1), Burst(0, 0.1, 0.0, 10)], 11, 1.0),
        ([Burst(0, 1.0, 0.0, 1), Burst(0, 0.2, 0.0, 4)], 1, (1.0 + 0.6) / 1.8),
        ([Burst(0, 0.5, 0.0, 1), Burst(0, 0.0, 0.05, 20)], 8, None),  # steps slow down
        ([Burst(2 * NS, 0.5, 0.0, 1), Burst(0, 0.01, 0.0, 30)], 14, None),  # catches up
    ],
)
def test_attainment_of_hand_made_requests(
    bursts: list[Burst], on_time: int, qos: float | None
) -> None:
    """TTFT 1 s, TBT 100 ms."""
    req = accounted(0, NS, NS // 10, bursts)
    times = token_times(0, bursts)
    assert walk_on_time(0, NS, NS // 10, times) == req["on_time_tokens"][0] == on_time
    if qos is not None:
        assert qos_of(req, 0, True) == pytest.approx(qos, abs=1e-9)


def test_qos_is_zero_for_a_request_not_served_to_its_end() -> None:
    req = accounted(0, NS, NS // 10, [Burst(0, 0.5, 0.0, 1), Burst(0, 0.1, 0.0, 5)])
    assert qos_of(req, 0, True) == 1.0
    assert qos_of(req, 0, False) == 0.0
    assert qos_of(np.zeros(1, REQUEST), 0, True) == 0.0


@settings(max_examples=400, deadline=None)
@given(
    base_ns=st.integers(-5 * NS, 5 * NS),
    tbt_ns=st.integers(1, NS),
    x_s=st.floats(0.0, 1.0),
    y_s=st.one_of(st.just(0.0), st.floats(1e-9, 0.1)),
    k=st.integers(1, 300),
)
def test_count_on_time_equals_counting(
    base_ns: int, tbt_ns: int, x_s: float, y_s: float, k: int
) -> None:
    late = [base_ns + curve_ns(x_s, y_s, j) - (j - 1) * tbt_ns for j in range(1, k + 1)]
    assert count_on_time(base_ns, tbt_ns, x_s, y_s, k) == sum(ns <= 0 for ns in late)


def test_count_on_time_finds_a_dip_inside_a_late_run() -> None:
    """Fast steps overtake the deadlines, slower ones fall behind again: late at both ends."""
    base_ns, tbt_ns, x_s, y_s, k = 500_000_000, NS // 10, 0.01, 0.002, 150
    late = [base_ns + curve_ns(x_s, y_s, j) - (j - 1) * tbt_ns for j in range(1, k + 1)]
    assert late[0] > 0
    assert late[-1] > 0
    assert 0 < sum(ns <= 0 for ns in late) == count_on_time(base_ns, tbt_ns, x_s, y_s, k)


@settings(max_examples=200, deadline=None)
@given(
    first_s=st.floats(1e-4, 10.0),
    slope_s=st.one_of(st.just(0.0), st.floats(1e-9, 0.5)),
    n=st.integers(1, 300),
    weight=st.integers(1, 5),
)
def test_count_gaps_places_each_gap_as_if_alone(
    first_s: float, slope_s: float, n: int, weight: int
) -> None:
    together, alone = np.zeros((2, GAP_BINS), np.int64)
    count_gaps(together, first_s, slope_s, n, weight)
    for i in range(n):
        count_gaps(alone, first_s + slope_s * i, 0.0, 1, weight)
    assert together.sum() == n * weight
    # a gap on the edge of two bins may fall to either side
    assert np.abs(np.cumsum(together) - np.cumsum(alone)).max() <= weight


@settings(max_examples=200, deadline=None)
@given(
    gaps_s=st.lists(st.floats(GAP_FLOOR_S, 500.0), min_size=1, max_size=60),
    q=st.floats(0.01, 1.0),
)
def test_gap_quantile_is_exact_to_one_bin(gaps_s: list[float], q: float) -> None:
    bins = np.zeros(GAP_BINS, np.int64)
    for gap_s in gaps_s:
        count_gaps(bins, gap_s, 0.0, 1, 1)
    exact = sorted(gaps_s)[math.ceil(round(q * len(gaps_s), 9)) - 1]
    assert gap_quantile_s(bins, q) == pytest.approx(exact, rel=1 / GAP_PARTS)


def test_gaps_beyond_the_histogram_fall_in_its_end_bins() -> None:
    bins = np.zeros(GAP_BINS, np.int64)
    count_gaps(bins, 0.0, 0.0, 3, 1)
    count_gaps(bins, 1e9, 0.0, 2, 1)
    assert (bins[0], bins[-1]) == (3, 2)
    assert gap_quantile_s(bins, 0.5) == GAP_FLOOR_S


@pytest.mark.parametrize("octave", [0, 3, 20])
def test_gap_bins_divide_each_octave_evenly(octave: int) -> None:
    edges = [gap_edge_s(1 + octave * GAP_PARTS + part) for part in range(GAP_PARTS + 1)]
    low = GAP_FLOOR_S * 2**octave
    assert edges == pytest.approx(np.linspace(low, 2 * low, GAP_PARTS + 1))


def test_gap_quantile_without_gaps_is_nan() -> None:
    assert math.isnan(gap_quantile_s(np.zeros(GAP_BINS, np.int64), 0.5))
