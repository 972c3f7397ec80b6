"""The headline's rule: the smaller of two pools, the better baseline, side metrics no worse."""

from dataclasses import replace
from typing import Any

import pytest

from aegaeon_rl.evaluation.bootstrap import Interval
from aegaeon_rl.frontier.cells import Cell
from aegaeon_rl.frontier.models import Ratio, baseline_of, is_no_worse, quoted
from aegaeon_rl.frontier.search import Facts, Found
from aegaeon_rl.frontier.steady import Steady

GOOD = {"request_lost": 0.1, "worst_model": 0.8, "ttft_p99_s": 5.0}
LOAD = Steady(rate=0.1)


def facts(size: int = 10, **changed: float) -> Facts:
    return Facts(size, (Cell(9, 10, GOOD | changed),))


@pytest.mark.parametrize(
    ("changed", "held"),
    [
        ({}, True),
        ({"request_lost": 0.11}, False),
        ({"worst_model": 0.79}, False),
        ({"ttft_p99_s": 5.1}, False),
        ({"ttft_p99_s": float("inf")}, False),
        ({"request_lost": 0.0, "worst_model": 1.0, "ttft_p99_s": 1.0}, True),
    ],
)
def test_side_metrics_are_no_worse(changed: dict[str, float], held: bool) -> None:
    assert is_no_worse(facts(**changed), facts()) is held


def test_baseline_is_the_better_of_the_two() -> None:
    def found(size: int | None) -> Found:
        return Found(None if size is None else facts(size), ())

    both: dict[str, Any] = {"aegaeon": found(70), "aegaeon_tuned": found(75), "index": found(150)}
    assert baseline_of(both) == "aegaeon_tuned"
    assert baseline_of({**both, "aegaeon_tuned": found(None)}) == "aegaeon"
    assert baseline_of({"index": found(3)}) is None


def test_quoted_ratio_is_the_smaller_pools() -> None:
    def over(pool: str, value: float, target: float = 0.9) -> Ratio:
        at = Interval(value, value, value)
        return Ratio(pool, LOAD, target, "index", "aegaeon", at, False, 0.5)

    other = replace(LOAD, rate=0.5)
    rows = [over("a", 2.0), over("b", 1.9), over("a", 1.5, 0.99), over("b", 2.5, 0.99)]
    rows.append(over("a", 1.2)._replace(workload=other))
    assert [(r.pool, r.plain.value) for r in quoted(rows)] == [("b", 1.9), ("a", 1.5), ("a", 1.2)]
