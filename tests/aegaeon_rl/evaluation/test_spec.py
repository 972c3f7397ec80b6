"""`EvaluationSpec` refuses what makes no sense; windows are spread evenly and never overlap."""

from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aegaeon_rl.evaluation.spec import EvaluationSpec, Window, plan_windows
from runtime.errors import UserError


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"windows": -1}, "evaluate.windows=-1: expected at least 0"),
        ({"seeds": 0}, "evaluate.seeds=0: expected at least 1"),
        ({"draws": 99}, "evaluate.draws=99: expected at least 100"),
        ({"windows": 10**9}, "evaluate.windows=1000000000: expected at most 100000"),
        ({"seeds": 10**9}, "evaluate.seeds=1000000000: expected at most 10000"),
        ({"draws": 10**9}, "evaluate.draws=1000000000: expected at most 100000"),
        ({"window_s": 0.0, "warm_s": 0.0}, "evaluate.window_s=0.0: expected more than 0 s"),
        ({"gantt_s": -1.0}, "evaluate.gantt_s=-1.0: expected more than 0 s"),
        ({"export_s": float("nan")}, "evaluate.export_s=nan: expected more than 0 s"),
        (
            {"warm_s": 600.0},
            "evaluate.warm_s=600.0: expected 0 <= warm_s < window_s=600.0",
        ),
        ({"warm_s": -1.0}, "evaluate.warm_s=-1.0: expected 0 <= warm_s < window_s=600.0"),
        ({"confidence": 1.0}, "evaluate.confidence=1.0: expected between 0 and 1"),
        ({"target": 0.0}, "evaluate.target=0.0: expected between 0 and 1"),
        ({"loads": ()}, "evaluate.loads=[]: expected positive multiples, at most 1e6"),
        (
            {"loads": (1.0, 0.0)},
            "evaluate.loads=[1.0, 0.0]: expected positive multiples, at most 1e6",
        ),
        (
            {"loads": (float("inf"),)},
            "evaluate.loads=[inf]: expected positive multiples, at most 1e6",
        ),
    ],
)
def test_spec_names_key_value_and_expectation(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as caught:
        EvaluationSpec(**changes)
    assert str(caught.value) == message


@settings(max_examples=200, deadline=None)
@given(
    span_s=st.floats(1.0, 1e6),
    windows=st.integers(1, 30),
    window_s=st.floats(1.0, 5e3),
)
def test_windows_lie_in_the_trace_and_never_overlap(
    span_s: float, windows: int, window_s: float
) -> None:
    spec = EvaluationSpec(windows=windows, window_s=window_s, warm_s=window_s / 10)
    planned = plan_windows(span_s, spec)
    if span_s <= 1.5 * window_s:
        assert planned == (Window(0.0, span_s + 1e-6, 0.0),)
        return
    assert 1 <= len(planned) <= windows
    assert {(w.duration_s, w.warm_s) for w in planned} == {(window_s, window_s / 10)}
    assert planned[0].start_s == 0.0
    for before, after in pairwise(planned):
        assert after.start_s - before.start_s >= window_s * (1 - 1e-9)
    if len(planned) > 1:
        assert planned[-1].start_s + window_s == pytest.approx(span_s)
    assert len(planned) == windows or (len(planned) + 1) * window_s > span_s


def test_no_windows_means_the_whole_trace() -> None:
    spec = EvaluationSpec(windows=0, window_s=10.0, warm_s=1.0)
    assert plan_windows(1000.0, spec) == (Window(0.0, 1000.0 + 1e-6, 0.0),)
