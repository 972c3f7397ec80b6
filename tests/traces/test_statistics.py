"""`describe`: facts of small traces, computed by hand."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from traces import Trace, TraceKind, describe
from traces.statistics import active_models, median_cv, peak_over_mean, zipf_exponent


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
        ([100, 900, 225, 1, 1, 0], 2.0),  # in any order, without those asked for once
        ([8, 2], 2.0),
        ([5, 5, 5], 0.0),
        ([7], 0.0),
        ([1, 1], 0.0),
    ],
)
def test_zipf_exponent_is_the_slope_of_log_count_on_log_rank(
    counts: list[int], expected: float
) -> None:
    assert zipf_exponent(np.array(counts)) == pytest.approx(expected, abs=1e-9)


def test_median_cv_is_over_models_with_ten_gaps() -> None:
    even = [(2.0 * i, "even") for i in range(11)]  # ten gaps of 2 s: 0
    pairs = [(t, "pairs") for k in range(6) for t in (4.0 * k, 4.0 * k + 1)]  # 1 and 3 s in turn
    rare = [(float(t), "rare") for t in (0, 1, 50)]
    gaps = np.array([1.0, 3.0] * 5 + [1.0])
    assert median_cv(trace_of(sorted(even + rare))) == pytest.approx(0.0)
    assert median_cv(trace_of(sorted(pairs + rare))) == pytest.approx(gaps.std() / gaps.mean())
    both = median_cv(trace_of(sorted(even + pairs)))
    assert both == pytest.approx(0.5 * gaps.std() / gaps.mean())


def test_median_cv_without_ten_gaps_is_not_a_number() -> None:
    assert np.isnan(median_cv(trace_of([(float(i), "a") for i in range(10)])))
    assert np.isnan(median_cv(trace_of([(1.0, "a")] * 12)))


def test_peak_over_mean_is_the_busiest_minute_over_the_mean() -> None:
    assert peak_over_mean(np.array([0.0, 59.9, 60.0, 119.0, 119.5, 120.0])) == pytest.approx(1.5)
    assert peak_over_mean(np.array([0.0, 1.0, 2.0, 239.0])) == pytest.approx(3.0)
    assert peak_over_mean(np.array([7.0])) == 1.0


def test_active_models_counts_models_once_in_each_17_seconds() -> None:
    trace = trace_of([(0, "a"), (1, "a"), (16.9, "b"), (17.0, "a"), (52, "a"), (60, "c")])
    assert active_models(trace).tolist() == [2, 1, 0, 2]


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


@given(trace=st.from_type(Trace))
@settings(max_examples=60, deadline=None)
def test_describe_of_any_trace_stays_in_bounds(trace: Trace) -> None:
    facts = describe(trace)
    assert facts.peak_over_mean >= 1
    assert 0 < facts.active_models <= facts.models
    assert 0 < facts.poisson_active_models <= facts.models
    assert 0 < facts.top10_share <= 1
    assert facts.prompt_p50 <= facts.prompt_p99
    assert facts.rate_rps == trace.rate_rps
