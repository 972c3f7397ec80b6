"""The market of 1,192 GPUs is the one its assumptions describe."""

from typing import Any

import numpy as np
import pytest

from aegaeon_rl.frontier.market import BUSY, GPUS, Half, dealt, halves, in_parts
from runtime.core import PoolSpec
from traces.market import MarketSpec, generate

H20 = PoolSpec(name="h20x8", profile="h20", checkpoints=("Qwen2.5-7B",), vram_bytes=96_000_000_000)


@pytest.fixture(scope="module")
def market() -> tuple[Half, Half]:
    return halves(H20, 600.0, 0)


def test_market_has_the_papers_models_and_gpus(market: tuple[Half, Half]) -> None:
    single, groups = market
    assert (len(single.replicas), len(groups.replicas)) == (28, 19)
    assert (single.pool.tp, groups.pool.tp) == (1, 4)
    assert single.dedicated_gpus + groups.dedicated_gpus == GPUS
    assert all(BUSY[0] < half.busy < BUSY[1] for half in market)


def test_parts_keep_requests_checkpoints_and_order(market: tuple[Half, Half]) -> None:
    for half in market:
        assert len(half.pool.checkpoints) == len(half.trace.models)
        first = [
            int(np.flatnonzero(half.trace.model == m)[0]) for m in range(len(half.trace.models))
        ]
        assert first == sorted(first)
        whole: dict[str, set[str]] = {}
        for name, size in zip(half.trace.models, half.pool.checkpoints, strict=True):
            whole.setdefault(name.rpartition("/")[0], set()).add(size)
        assert all(len(sizes) == 1 for sizes in whole.values())


def test_parts_take_requests_in_turn() -> None:
    trace = generate(MarketSpec(name="m", models=3, duration_s=60.0, rate_rps=9.0, seed=1))
    split = in_parts(trace, [3, *[1] * (len(trace.models) - 1)])
    firsts = {f"{trace.models[0]}/{k}" for k in range(3)}
    assert set(split.models) == firsts | {f"{name}/0" for name in trace.models[1:]}
    counts = np.bincount(split.model)
    of_first = [counts[split.models.index(f"{trace.models[0]}/{k}")] for k in range(3)]
    assert max(of_first) - min(of_first) <= 1
    assert counts.sum() == trace.requests


@pytest.mark.parametrize(("instances", "models"), [(320, 28), (218, 19), (5, 5)])
def test_instances_are_dealt_whole_and_skewed(instances: int, models: int) -> None:
    counts: Any = dealt(instances, models)
    assert counts.sum() == instances
    assert counts.min() >= 1
    assert (np.diff(counts) <= 0).all()
