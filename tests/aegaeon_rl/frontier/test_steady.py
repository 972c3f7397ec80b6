"""Steady workloads: the rate holds to the end, and a larger one contains a smaller."""

import numpy as np
import pytest

from aegaeon_rl.frontier.steady import Steady, steady_trace
from runtime.errors import UserError
from traces.arrivals import ArrivalProcess

LOAD = Steady(rate=0.2, duration_s=3000.0, warm_s=100.0)


def of_model(trace: object, name: str) -> list[tuple[float, int, int]]:
    rows = trace.model == trace.models.index(name)  # type: ignore[attr-defined]
    columns = (trace.arrival_s, trace.prompt_tokens, trace.output_tokens)  # type: ignore[attr-defined]
    return list(zip(*(column[rows].tolist() for column in columns), strict=True))


def test_workload_keeps_its_rate_to_the_end() -> None:
    trace = steady_trace(LOAD, 40, 0)
    halves = np.bincount((trace.arrival_s > LOAD.span_s / 2).astype(int))
    assert halves / (LOAD.span_s / 2) == pytest.approx([8.0, 8.0], rel=0.05)
    counts = np.bincount(trace.model, minlength=40)
    assert counts.var() / counts.mean() == pytest.approx(1.0, abs=0.6)  # Poisson


def test_larger_workload_contains_the_smaller() -> None:
    small, large = steady_trace(LOAD, 5, 3), steady_trace(LOAD, 9, 3)
    for name in small.models:
        assert of_model(small, name) == of_model(large, name)


def test_seeds_differ_and_bursts_are_bursts() -> None:
    bursty = Steady(rate=0.2, process=ArrivalProcess.GAMMA, cv=4.0, duration_s=20_000.0)
    trace = steady_trace(bursty, 4, 1)
    gaps = np.diff(trace.arrival_s[trace.model == 0])
    assert gaps.std() / gaps.mean() == pytest.approx(4.0, rel=0.3)
    assert steady_trace(LOAD, 5, 0).sha256 != steady_trace(LOAD, 5, 1).sha256


def test_lengths_are_those_of_the_paper_and_scale() -> None:
    plain = steady_trace(LOAD, 20, 0)
    assert plain.prompt_tokens.mean() == pytest.approx(711, rel=0.05)
    assert plain.output_tokens.mean() == pytest.approx(300, rel=0.05)
    twice = steady_trace(Steady(rate=0.2, duration_s=3000.0, output_scale=2.0), 20, 0)
    assert twice.output_tokens.mean() == pytest.approx(600, rel=0.05)


@pytest.mark.parametrize(
    ("key", "value"), [("rate", 0.0), ("duration_s", 0.0), ("prompt_scale", 0.0)]
)
def test_workload_names_the_key_out_of_bounds(key: str, value: float) -> None:
    with pytest.raises(UserError, match=rf"frontier\.{key}=0"):
        Steady(**{"rate": 0.1, key: value})  # type: ignore[arg-type]
