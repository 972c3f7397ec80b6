"""`describe`: facts of small traces, computed by hand."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from traces import Trace, TraceKind, describe
from traces.market import MarketSpec, generate
from traces.statistics import WINDOW_S, survey, zipf_exponent
from traces.stream import of_trace
from traces.tallies import Values


def trace_of(requests: list[tuple[float, str]], tokens: int = 1) -> Trace:
    """Requests as (arrival_s, model), all of the same length."""
    names = tuple(dict.fromkeys(name for _, name in requests))
    n = len(requests)
    return Trace(
        name="t",
        kind=TraceKind.LOG,
        models=names,
        model=np.array([names.index(name) for _, name in requests], np.int32),
        arrival_s=np.array([arrival for arrival, _ in requests], np.float64),
        prompt_tokens=np.full(n, tokens, np.int32),
        output_tokens=np.arange(1, n + 1, dtype=np.int32),
    )


@pytest.mark.parametrize(
    ("counts", "expected"),
    [
        ([840, 420, 280, 210, 168], 1.0),
        ([100, 0, 900, 225], 2.0),  # in any order
        ([8, 2], 2.0),
        ([5, 5, 5], 0.0),
        ([7], 0.0),
        ([1, 1], 0.0),
    ],
)
def test_zipf_exponent_is_that_of_counts_by_rank(counts: list[int], expected: float) -> None:
    assert zipf_exponent(np.array(counts)) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("exponent", [0.7, 1.0, 1.4])
def test_zipf_exponent_is_found_where_most_models_have_a_request_or_two(exponent: float) -> None:
    shares = np.arange(1, 5001.0) ** -exponent
    counts = np.random.default_rng(3).multinomial(20_000, shares / shares.sum())
    assert zipf_exponent(counts) == pytest.approx(exponent, abs=0.08)


def test_median_cv_is_over_models_with_ten_gaps() -> None:
    even = [(2.0 * i, "even") for i in range(11)]  # ten gaps of 2 s: 0
    pairs = [(t, "pairs") for k in range(6) for t in (4.0 * k, 4.0 * k + 1)]  # 1 and 3 s in turn
    rare = [(float(t), "rare") for t in (0, 1, 50)]
    gaps = np.array([1.0, 3.0] * 5 + [1.0])
    assert describe(trace_of(sorted(even + rare))).cv == pytest.approx(0.0)
    assert describe(trace_of(sorted(pairs + rare))).cv == pytest.approx(gaps.std() / gaps.mean())
    both = describe(trace_of(sorted(even + pairs))).cv
    assert both == pytest.approx(0.5 * gaps.std() / gaps.mean())


def test_median_cv_without_ten_gaps_is_not_a_number() -> None:
    assert np.isnan(describe(trace_of([(float(i), "a") for i in range(10)])).cv)
    assert np.isnan(describe(trace_of([(1.0, "a")] * 12)).cv)


def test_peak_over_mean_is_the_busiest_minute_over_the_mean() -> None:
    def peak(*arrivals_s: float) -> float:
        return describe(trace_of([(t, "a") for t in arrivals_s])).peak_over_mean

    assert peak(0.0, 59.9, 60.0, 119.0, 119.5, 120.0) == pytest.approx(1.5)
    assert peak(0.0, 1.0, 2.0, 239.0) == pytest.approx(3.0)
    assert peak(7.0) == 1.0


def test_active_models_counts_models_once_in_each_17_seconds() -> None:
    trace = trace_of([(0, "a"), (1, "a"), (16.9, "b"), (17.0, "a"), (52, "a"), (60, "c")])
    windows = survey(trace).windows
    assert (windows.windows, windows.slot.tolist()) == (4, [0, 1, 3])
    assert (windows.active.tolist(), windows.requests.tolist()) == ([2, 1, 2], [3, 1, 2])
    assert [windows.quantile(windows.active, q) for q in (0.25, 0.26, 0.5, 0.51, 1.0)] == (
        [0.0, 1.0, 1.0, 2.0, 2.0]
    )


def test_describe_gives_the_facts_of_a_small_trace() -> None:
    facts = describe(trace_of([(0, "a"), (10, "a"), (20, "b"), (100, "a")], tokens=30))
    assert (facts.requests, facts.models, facts.span_s) == (4, 2, 100.0)
    assert facts.rate_rps == pytest.approx(0.04)
    assert facts.peak_over_mean == pytest.approx(1.5)
    assert facts.active_models == pytest.approx(3 / 6)  # windows 0, 1 and 5 of six
    assert facts.active_models_p95 == 1.0
    assert facts.top10_share == pytest.approx(0.75)
    expected = (1 - np.exp(-0.03 * 17)) + (1 - np.exp(-0.01 * 17))
    assert facts.poisson_active_models == pytest.approx(expected)
    assert (facts.prompt_p50, facts.prompt_p99, facts.output_p50) == (30.0, 30.0, 2.5)
    assert (facts.active_models_p99, facts.active_models_max) == (1.0, 1.0)
    assert (facts.dedicated_gpus, facts.pooled_share) == (2, 0.5)
    assert np.isnan(facts.length_correlation)


def test_dispersion_is_the_variance_over_the_mean_of_a_minutes_requests() -> None:
    """12 requests of a in the first of three minutes, 3 of b in the last."""
    rows = [(float(i), "a") for i in range(12)] + [(150.0 + i, "b") for i in range(3)]
    facts = describe(trace_of(rows))
    assert facts.dispersion == pytest.approx(np.var([12, 0, 3]) / 5)
    assert facts.dispersion_model == pytest.approx(np.var([12, 0, 0]) / 4)  # b has too few


def test_cv_within_leaves_out_the_silence_between_windows() -> None:
    """Twelve even gaps, an hour of silence, twelve more: even inside, bursty as a whole."""
    rows = [(start + 2.0 * i, "a") for start in (0.0, 3600.0) for i in range(13)]
    facts = describe(trace_of(rows))
    assert facts.cv > 3
    assert facts.cv_within == 0.0
    uneven = np.array([1.0, 3.0] * 6)
    facts = describe(trace_of([(t, "a") for t in np.concatenate([[0], np.cumsum(uneven)])]))
    assert facts.cv_within == pytest.approx(uneven.std() / uneven.mean(), rel=0.01)
    assert np.isnan(describe(trace_of([(1.0, "a")])).cv_within)


def test_length_correlation_is_that_of_the_logarithms() -> None:
    prompt = np.array([10, 100, 1000, 40, 7], np.int32)
    trace = replace(trace_of([(float(i), "a") for i in range(5)]), prompt_tokens=prompt)
    expected = np.corrcoef(np.log(prompt), np.log(trace.output_tokens))[0, 1]
    assert describe(trace).length_correlation == pytest.approx(expected)


@pytest.fixture(scope="module")
def market() -> Trace:
    return generate(MarketSpec(models=12, duration_s=4000.0, rate_rps=1.5, seed=2))


@pytest.mark.parametrize("rows", [1, 7, 500, 10**6])
def test_survey_is_the_same_in_any_chunks(market: Trace, rows: int) -> None:
    """Against plain NumPy over the whole trace."""
    found = survey(of_trace(market, rows))
    assert found.sha256 == market.sha256
    facts = found.facts
    slot = (market.arrival_s / WINDOW_S).astype(int)
    active = [len(set(market.model[slot == i])) for i in range(slot[-1] + 1)]
    assert facts.active_models == pytest.approx(np.mean(active))
    assert facts.active_models_max == max(active)
    assert facts.active_models_p95 == np.quantile(active, 0.95, method="inverted_cdf")
    minutes = np.bincount((market.arrival_s / 60).astype(int))
    assert facts.peak_over_mean == pytest.approx(minutes.max() / minutes.mean())
    assert facts.dispersion == pytest.approx(minutes.var() / minutes.mean())
    assert facts.prompt_p99 == pytest.approx(np.quantile(market.prompt_tokens, 0.99))
    cvs, within, dispersions = [], [], []
    for model in range(len(market.models)):
        times = market.arrival_s[market.model == model]
        if len(times) > 10:
            cvs.append(np.diff(times).std() / np.diff(times).mean())
            each = np.bincount((times / 60).astype(int), minlength=len(minutes))
            dispersions.append(each.var() / each.mean())
        for window in range(7):
            gaps = np.diff(times[(times // 600).astype(int) == window])
            within += [gaps.std() / gaps.mean()] if len(gaps) >= 10 else []
    assert facts.cv == pytest.approx(np.median(cvs))
    assert len(within) > 10
    assert facts.cv_within == pytest.approx(np.quantile(within, 0.5, method="lower"), rel=0.01)
    assert facts.dispersion_model == pytest.approx(np.median(dispersions))
    assert found.raster.cells.sum() == market.requests
    assert found.raster.cells.sum(1).tolist() == np.bincount(market.model).tolist()
    columns = np.bincount((market.arrival_s / found.raster.width_s).astype(int), minlength=240)
    assert found.raster.cells.sum(0).tolist() == columns.tolist()


@given(values=st.lists(st.integers(1, 50) | st.integers(2**20 - 2, 2**31 - 1), min_size=1))
@settings(max_examples=80, deadline=None)
def test_quantiles_are_exact_for_any_counts(values: list[int]) -> None:
    counted = Values()
    for part in np.array_split(np.array(values, np.int32), 3):
        if len(part):
            counted.add(part)
    levels = np.array([0.0, 0.01, 0.37, 0.5, 0.99, 1.0])
    assert counted.quantiles(levels) == pytest.approx(np.quantile(values, levels))


@given(trace=st.from_type(Trace))
@settings(max_examples=60, deadline=None)
def test_describe_of_any_trace_stays_in_bounds(trace: Trace) -> None:
    facts = describe(trace)
    assert facts.peak_over_mean >= 1
    assert 0 < facts.active_models <= facts.models
    assert 0 < facts.poisson_active_models <= facts.models
    assert facts.active_models <= facts.active_models_max <= facts.models
    assert 0 <= facts.pooled_share < 1
    assert 0 < facts.top10_share <= 1
    assert facts.prompt_p50 <= facts.prompt_p99
    assert facts.rate_rps == trace.rate_rps
