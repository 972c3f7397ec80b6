"""The capacity bound counts the least work, and stays above what policies reach."""

from dataclasses import replace
from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from aegaeon_rl.frontier.bounds import (
    demands,
    least_instances,
    least_points,
    link_share,
    most_models,
)
from aegaeon_rl.frontier.steady import Steady, steady_trace
from runtime.core import PoolSpec, SloSpec

POOL = PoolSpec(name="p", profile="h100", checkpoints=("Qwen2.5-7B",), instances_per_node=4)
LOAD = Steady(rate=0.2, duration_s=600.0, warm_s=0.0)
INTERVALS = st.lists(
    st.tuples(st.integers(0, 12), st.integers(0, 6), st.integers(1, 3)), min_size=1, max_size=4
)


def fewest(intervals: list[tuple[int, int, int]]) -> int:
    """By trial of every multiset of points: opens, lengths and needs in whole numbers."""
    ends = sorted({o + n for o, n, _ in intervals})
    best = [10**9]

    def place(k: int, counts: list[int]) -> None:
        if sum(counts) >= best[0]:
            return
        if k == len(ends):
            held = all(
                sum(c for e, c in zip(ends, counts, strict=True) if o <= e <= o + n) >= need
                for o, n, need in intervals
            )
            best[0] = sum(counts) if held else best[0]
            return
        for count in range(10):
            place(k + 1, [*counts, count])

    place(0, [])
    return best[0]


@settings(max_examples=40, deadline=None)
@given(INTERVALS)
def test_points_are_the_fewest(intervals: list[tuple[int, int, int]]) -> None:
    opens, lengths, needs = (np.array(c) for c in zip(*intervals, strict=True))
    _, counts = least_points(opens.astype(float), (opens + lengths).astype(float), needs)
    assert counts.sum() == fewest(intervals)


def test_bound_falls_with_the_rate_and_rises_as_the_target_falls() -> None:
    slow, fast = (most_models(POOL, replace(LOAD, rate=r), SloSpec(), 0.99) for r in (0.1, 0.5))
    assert slow.value > fast.value
    assert (
        most_models(POOL, LOAD, SloSpec(), 0.9).value
        > most_models(POOL, LOAD, SloSpec(), 0.99).value
    )


def test_slow_links_bind() -> None:
    bound = most_models(replace(POOL, h2d_bytes_s=5e8), LOAD, SloSpec(), 0.9)
    assert bound.by == "link"
    assert bound.value >= POOL.instances * POOL.weight_slots


def test_models_that_stay_resident_need_no_link() -> None:
    found = demands(steady_trace(LOAD, 6, 0), POOL, SloSpec(), 0.0, 600.0)
    assert link_share(found, 6) == 0.0
    assert link_share(found, 1) > link_share(found, 4) > 0.0


def test_policies_stay_under_the_bound(run_share: Any) -> None:
    found = demands(steady_trace(LOAD, 30, 0), POOL, SloSpec(), 0.0, 600.0)
    least = least_instances(found, POOL, 0.99)
    assert not least.is_most
    below = int(least.value)
    assert below >= 1
    assert run_share(steady_trace(LOAD, 30, 0), replace(POOL, instances_per_node=below)) < 0.99
