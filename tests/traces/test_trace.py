"""`Trace`: windows, rates, repeats and the content hash."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from traces import Trace, TraceError, TraceKind

TRACES = st.from_type(Trace)
few = settings(max_examples=60, deadline=None)


@pytest.fixture
def trace() -> Trace:
    """Six requests of three models, one a second from 1 s on."""
    return Trace(
        name="six",
        kind=TraceKind.LOG,
        models=("a", "b", "c"),
        model=np.array([0, 1, 0, 2, 1, 0], np.int32),
        arrival_s=np.arange(1.0, 7.0),
        prompt_tokens=np.arange(10, 16, dtype=np.int32),
        output_tokens=np.arange(1, 7, dtype=np.int32),
        session=np.array(list("uvwxyz"), object),
        priority=np.arange(6, dtype=np.int8),
    )


def names(trace: Trace) -> list[str]:
    return [trace.models[m] for m in trace.model]


def test_window_keeps_start_and_drops_stop(trace: Trace) -> None:
    cut = trace.window(2.0, 3.0)
    assert cut.arrival_s.tolist() == [0.0, 1.0, 2.0]
    assert cut.prompt_tokens.tolist() == [11, 12, 13]
    assert cut.session is not None
    assert cut.session.tolist() == ["v", "w", "x"]
    assert cut.priority is not None
    assert cut.priority.tolist() == [1, 2, 3]
    assert cut.client is None
    assert cut.lineage == ("window start_s=2 duration_s=3",)


def test_window_numbers_models_again_unless_told_to_keep_them(trace: Trace) -> None:
    assert trace.window(4.0, None).models == ("c", "b", "a")
    kept = trace.window(4.0, None, keep_models=True)
    assert kept.models == ("a", "b", "c")
    assert names(kept) == names(trace.window(4.0, None)) == ["c", "b", "a"]


def test_window_beyond_the_end_is_empty(trace: Trace) -> None:
    cut = trace.window(100.0, 1.0)
    assert (cut.requests, cut.models, cut.span_s, cut.rate_rps) == (0, (), 0.0, 0.0)


@given(trace=TRACES, cut_s=st.floats(0, 2e6))
@few
def test_windows_on_both_sides_of_an_instant_share_out_the_requests(
    trace: Trace, cut_s: float
) -> None:
    assume(cut_s > 0)
    before, after = trace.window(0.0, cut_s), trace.window(cut_s, None)
    assert names(before) + names(after) == names(trace)
    assert np.all(before.arrival_s < cut_s)
    joined = np.concatenate([before.arrival_s, after.arrival_s + cut_s])
    assert np.allclose(joined, trace.arrival_s)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda t: t.window(-1.0, None), "trace.start_s=-1.0: expected a number of seconds, 0 or"),
        (lambda t: t.window(float("nan"), 1.0), "trace.start_s=nan: expected"),
        (lambda t: t.window(0.0, 0.0), "trace.duration_s=0.0: expected more than 0 seconds"),
        (lambda t: t.window(0.0, float("nan")), "trace.duration_s=nan: expected more than 0"),
        (lambda t: t.scale_rate(0.0), "trace.rate_scale=0.0: expected a positive number"),
        (lambda t: t.scale_rate(1e300), "trace.rate_scale=1e+300: expected at most 1e+09"),
        (lambda t: t.scale_rate(-2.0), "trace.rate_scale=-2.0: expected a positive number"),
        (lambda t: t.scale_rate(float("inf")), "trace.rate_scale=inf: expected a positive number"),
        (lambda t: t.repeat(0), "trace.repeat=0: expected 1 or more"),
        (lambda t: t.repeat(2, 4.9), "trace.period_s=4.9: expected the span of 6 s or more"),
        (lambda t: t.select_models(["a", "bb"]), "trace six: no model 'bb'; did you mean 'b'?"),
    ],
)
def test_change_that_cannot_be_names_key_and_value(
    trace: Trace, change: Any, expected: str
) -> None:
    with pytest.raises(TraceError) as caught:
        change(trace)
    assert str(caught.value).startswith(expected)


@given(trace=TRACES, factor=st.floats(0.01, 100))
@few
def test_scale_rate_compresses_time_and_keeps_the_rest(trace: Trace, factor: float) -> None:
    fast = trace.scale_rate(factor)
    assert np.allclose(fast.arrival_s * factor, trace.arrival_s)
    assert np.isclose(fast.rate_rps, trace.rate_rps * factor)
    assert names(fast) == names(trace)
    assert fast.output_tokens.tolist() == trace.output_tokens.tolist()


def test_scale_rate_of_one_is_the_same_trace(trace: Trace) -> None:
    assert trace.scale_rate(1.0) is trace


@given(trace=TRACES, times=st.integers(1, 4), pause_s=st.floats(0, 100))
@few
def test_repeat_plays_every_copy_a_period_later(trace: Trace, times: int, pause_s: float) -> None:
    period = trace.span_s + pause_s
    played = trace.repeat(times, period)
    assert names(played) == names(trace) * times
    for copy in range(times):
        part = played.arrival_s[copy * trace.requests : (copy + 1) * trace.requests]
        assert np.allclose(part, trace.arrival_s + copy * period)


def test_repeat_follows_at_once_by_default(trace: Trace) -> None:
    assert trace.repeat(2).arrival_s.tolist() == [*range(1, 7), *range(7, 13)]


def test_repeat_takes_any_period_that_keeps_arrivals_sorted(trace: Trace) -> None:
    assert trace.repeat(2, 5.0).arrival_s.tolist() == [1, 2, 3, 4, 5, 6, 6, 7, 8, 9, 10, 11]


def test_select_models_keeps_their_requests_only(trace: Trace) -> None:
    kept = trace.select_models(["c", "b"])
    assert kept.models == ("b", "c")
    assert kept.arrival_s.tolist() == [2.0, 4.0, 5.0]
    assert kept.lineage == ("models c, b",)


def test_head_keeps_the_first_requests(trace: Trace) -> None:
    assert trace.head(2).arrival_s.tolist() == [1.0, 2.0]
    assert trace.head(2).models == ("a", "b")
    assert trace.head(100).sha256 == trace.sha256


@given(trace=TRACES)
@few
def test_sha256_ignores_what_is_not_the_workload(trace: Trace) -> None:
    other = replace(
        trace,
        name="other",
        kind=TraceKind.LOG,
        lineage=("elsewhere",),
        licence="none",
        session=None,
        client=None,
        priority=None,
        arrival_s=np.where(trace.arrival_s == 0, -0.0, trace.arrival_s),
        prompt_tokens=trace.prompt_tokens.astype(np.int64),
        models=(*trace.models, "never asked for"),
    )
    assert other.sha256 == trace.sha256
    assert trace.head(trace.requests).sha256 == trace.sha256
    assert trace.repeat(1).scale_rate(2.0).scale_rate(0.5).sha256 == trace.sha256
    assert trace.select_models(trace.models).sha256 == trace.sha256


def test_sha256_does_not_depend_on_how_models_are_numbered(trace: Trace) -> None:
    backwards = replace(trace, models=("c", "b", "a"), model=2 - trace.model)
    assert backwards.sha256 == trace.sha256


@given(trace=TRACES, data=st.data())
@few
def test_sha256_tells_every_change_of_the_workload(trace: Trace, data: st.DataObject) -> None:
    row = data.draw(st.integers(0, trace.requests - 1))
    prompt, output = trace.prompt_tokens.copy(), trace.output_tokens.copy()
    prompt[row] = prompt[row] % 1000 + 1
    output[row] = output[row] % 1000 + 1
    later = trace.arrival_s.copy()
    later[-1] += 1.0
    changed = [
        replace(trace, prompt_tokens=prompt),
        replace(trace, output_tokens=output),
        replace(trace, arrival_s=later),
        replace(trace, models=(*trace.models[:-1], "another name")),
        trace.repeat(2),
    ]
    assert len({t.sha256 for t in [trace, *changed]}) == 6


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        ({"arrival_s": np.arange(6)}, "arrival_s is int64"),
        ({"model": np.zeros(6, np.int64)}, "model is int64"),
        ({"output_tokens": np.ones(5, np.int32)}, "output_tokens has 5 rows, not 6"),
        ({"session": np.array(["s"], object)}, "session has 1 rows, not 6"),
        ({"models": ("a", "b")}, "row 4, column model is 2: expected an index below 2"),
        ({"model": np.full(6, -1, np.int32)}, "row 1, column model is -1: expected an index"),
        ({"arrival_s": -np.arange(6.0)}, "row 2, column arrival_s is -1: expected a number"),
        ({"prompt_tokens": np.zeros(6, np.int32)}, "row 1, column prompt_tokens is 0: expected"),
    ],
)
def test_trace_refuses_columns_that_do_not_fit(
    trace: Trace, columns: dict[str, Any], expected: str
) -> None:
    with pytest.raises(TraceError) as caught:
        replace(trace, **columns)
    assert str(caught.value).startswith(f"trace six: {expected}")
