"""Predicted times: linear form, decode table, concave prefills; instances of several GPUs."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.core import ModelSpec, PoolSpec, SloSpec
from runtime.errors import UserError
from runtime.pool.costs import prefill_s, prompt_s, step_s
from runtime.pool.initial import new_state
from runtime.pool.state import COST, KNOTS

GB = 10**9
SECONDS = st.floats(0, 1)


def cost_of(pairs: list[tuple[float, float]] | None = None, **columns: float) -> Any:
    cost = np.zeros(1, COST)
    for column, seconds in columns.items():
        cost[column] = seconds
    for k, (batch, seconds) in enumerate(pairs or []):
        cost["knot_batch"][0, k], cost["knot_s"][0, k] = batch, seconds
    cost["knots"] = len(pairs or [])
    return cost[0]


@settings(deadline=None)
@given(SECONDS, SECONDS, SECONDS, st.integers(0, 10**6), st.integers(1, 512))
def test_linear_step_is_its_three_terms(
    a: float, b: float, c: float, context: int, batch: int
) -> None:
    cost = cost_of(decode_s=a, decode_context_s=b, decode_batch_s=c)
    assert step_s(cost, context, batch) == a + b * context + c * batch


@settings(deadline=None)
@given(st.sets(st.integers(2, 400), min_size=1, max_size=KNOTS - 1), st.data())
def test_table_is_linear_between_knots_and_goes_on_behind_the_last(
    sizes: set[int], data: st.DataObject
) -> None:
    batches = [1, *sorted(sizes)]
    seconds = sorted(data.draw(st.lists(SECONDS, min_size=len(batches), max_size=len(batches))))
    cost = cost_of(
        list(zip(batches, seconds, strict=True)), decode_s=0.25, decode_context_s=1e-6,
        decode_batch_s=9.0,
    )  # fmt: skip
    for batch in (*batches, data.draw(st.integers(1, batches[-1]))):
        expected = 0.25 + 1e-6 * 1000 + np.interp(batch, batches, seconds)
        assert step_s(cost, 1000, batch) == pytest.approx(expected)
    slope = (seconds[-1] - seconds[-2]) / (batches[-1] - batches[-2])
    beyond = 0.25 + seconds[-1] + 100 * slope
    assert step_s(cost, 0, batches[-1] + 100) == pytest.approx(beyond)


def test_steps_of_a_table_grow_by_the_context_alone() -> None:
    """What the closed form of a run of steps rests on."""
    cost = cost_of([(1, 0.01), (8, 0.02)], decode_s=0.1, decode_context_s=1e-5)
    steps = [step_s(cost, 4000 + 4 * k, 4) for k in range(5)]
    assert np.diff(steps) == pytest.approx([4e-5] * 4)


@settings(deadline=None)
@given(SECONDS, SECONDS, st.floats(-1, 1), st.integers(0, 10**6), st.integers(0, 10**6))
def test_prefill_is_never_negative_nor_cheaper_for_more_tokens(
    a: float, b: float, c: float, tokens: int, more: int
) -> None:
    cost = cost_of(prefill_s=a, prefill_token_s=b, prefill_token2_s=c)
    first, second = prefill_s(cost, tokens), prefill_s(cost, tokens + more)
    assert first >= 0
    assert first <= second * (1 + 1e-9) + 1e-12


def test_concave_prefill_is_its_fit_up_to_the_vertex_and_flat_behind() -> None:
    cost = cost_of(prefill_s=0.5, prefill_token_s=1e-5, prefill_token2_s=-1e-9)
    assert prefill_s(cost, 4000) == pytest.approx(0.5 + 0.04 - 0.016)
    assert prefill_s(cost, 5000) == pytest.approx(0.525)
    assert prefill_s(cost, 50_000) == prefill_s(cost, 5000)
    assert prompt_s(cost, 50_000) == pytest.approx(0.025)


def state_of(**changes: Any) -> Any:
    pool = {"name": "p", "profile": "none", "checkpoints": ("c",), "vram_bytes": 80 * GB}
    pool |= {"h2d_bytes_s": 50e9, "d2h_bytes_s": 40e9, "disk_bytes_s": 6e9, "weight_slots": 2}
    model = ModelSpec(name="m", checkpoint="c", weight_bytes=140 * GB, kv_token_bytes=1)
    return new_state(PoolSpec(**(pool | changes)), (model,), (SloSpec(),), np.zeros((1, 1), COST))


def test_instance_of_several_gpus_has_their_memory_and_host_links() -> None:
    pool = state_of(tp=4).pool[0]
    assert (pool["vram_bytes"], pool["reserved_bytes"]) == (320 * GB, 280 * GB)
    assert (pool["h2d_bytes_s"], pool["d2h_bytes_s"]) == (200e9, 160e9)
    assert pool["disk_bytes_s"] == 6e9  # of the node, not of a GPU


def test_weights_that_do_not_fit_one_gpu_need_more() -> None:
    with pytest.raises(UserError, match=r"2 weight slots of 140\.0 GB leave no room .* 160 GB"):
        state_of(tp=2)


@pytest.mark.parametrize("tp", [0, 65])
def test_gpus_an_instance_are_bounded(tp: int) -> None:
    with pytest.raises(UserError, match=rf"pool\.tp={tp}: expected at"):
        state_of(tp=tp)


def test_pool_counts_its_gpus() -> None:
    pool = PoolSpec(
        name="p", profile="x", checkpoints=("c",), nodes=2, instances_per_node=2, tp=4
    )  # fmt: skip
    assert (pool.instances, pool.gpus) == (4, 16)
