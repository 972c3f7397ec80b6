"""Sizing: dedicated GPUs where they help, the smallest pool that holds the target."""

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aegaeon_rl.evaluation.compare import Plan
from aegaeon_rl.evaluation.report import sizing_sentence
from aegaeon_rl.evaluation.sizing import (
    NODE,
    Sizing,
    Tokens,
    dedicated_gpus,
    dedicated_tokens,
    gpus_near,
    pool_of_size,
    pooled_gpus,
    pooled_share,
    size,
)
from aegaeon_rl.policies.registry import make_policy
from runtime.core import Phases, PoolSpec, SloSpec
from runtime.errors import UserError
from traces import Trace

INDEX = make_policy("index")
TIGHT = SloSpec(ttft_s=1.0, tbt_s=0.03)


@pytest.fixture(scope="module")
def hot_plan(plan_of: Any, trace_of: Any) -> Plan:
    """One model with 25 long requests a second beside three quiet ones."""
    hot = [(0.04 * i, 0, 4000, 100) for i in range(300)]
    cold = [(5.0 * i + m, m, 20, 10) for i in range(4) for m in (1, 2, 3)]
    return plan_of(trace_of(sorted(hot + cold)), slo=TIGHT, windows=0, target=0.9)


def test_dedicated_adds_gpus_for_the_hot_model_alone(hot_plan: Plan) -> None:
    gpus, share = dedicated_gpus(hot_plan)
    assert share >= 0.9

    def alone(model: int, replicas: int) -> Tokens:
        return dedicated_tokens(hot_plan, [hot_plan.trace], model, replicas)

    quiet = [alone(m, 1) for m in (1, 2, 3)]

    def total(replicas: int) -> float:
        tokens = [alone(0, replicas), *quiet]
        return sum(t.on_time for t in tokens) / sum(t.due for t in tokens)

    least = next(n for n in range(1, 20) if total(n) >= 0.9)
    assert least > 1
    assert (gpus, share) == (least + 3, total(least))


def test_dedicated_is_a_gpu_a_model_where_that_suffices(plan_of: Any, market: Trace) -> None:
    gpus, share = dedicated_gpus(plan_of(target=0.9))
    assert gpus == len(market.models) == 7
    assert share >= 0.9


def test_a_target_that_no_gpu_helps_to_reach_ends_the_search(plan_of: Any) -> None:
    """No step is that fast: without an end, thousands of GPUs would be tried."""
    sizing = size(plan_of(slo=SloSpec(ttft_s=1e-4, tbt_s=1e-4)), INDEX)
    assert (sizing.dedicated, sizing.dedicated_share) == (7, 0.0)
    assert (sizing.pooled, sizing.saved) == (None, 0.0)
    assert "out of reach" in sizing_sentence(sizing)


def test_sizing_of_groups_counts_all_their_gpus(plan_of: Any, trace_of: Any) -> None:
    """Three quiet models on instances of four GPUs: twelve dedicated, four in a pool."""
    quiet = trace_of([(40.0 * i + m, m, 20, 5) for i in range(3) for m in (0, 1, 2)])
    pool = PoolSpec(name="p", profile="h800", checkpoints=("Llama-3.1-70B",), tp=4)
    plan = plan_of(quiet, on=pool, windows=0, target=0.9, slo=SloSpec(ttft_s=20.0))
    sizing = size(plan, INDEX)
    assert (sizing.dedicated, sizing.pooled) == (12, 4)
    assert "dedicated 12 GPUs -> pooled 4" in sizing_sentence(sizing)


def test_gpus_of_one_model_take_its_requests_in_turn(hot_plan: Plan) -> None:
    hot = hot_plan.trace.rows(hot_plan.trace.model == 0)
    halves = [dedicated_tokens(hot_plan, [hot.rows(slice(g, None, 2))], 0, 1) for g in (0, 1)]
    both = dedicated_tokens(hot_plan, [hot_plan.trace], 0, 2)
    assert both == tuple(sum(pair) for pair in zip(*halves, strict=True))
    assert both.due == hot.output_tokens.sum()


def test_a_step_back_does_not_end_the_search(plan_of: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Eight GPUs serve a little less than seven, nine all: bursts and turns may be in step."""
    on_time = {6: 90, 7: 95, 8: 94, 9: 100}

    def tokens(plan: Plan, parts: Any, model: int, replicas: int) -> Tokens:
        return Tokens(on_time.get(replicas, 10 * replicas) if model == 0 else 100, 100)

    monkeypatch.setattr("aegaeon_rl.evaluation.sizing.dedicated_tokens", tokens)
    assert dedicated_gpus(plan_of(target=0.999)) == (9 + 6, 1.0)


def test_a_pool_under_a_policy_of_two_roles_has_two_gpus_or_more(plan_of: Any) -> None:
    plan, aegaeon = plan_of(target=0.8), make_policy("aegaeon")
    sizing = size(plan, aegaeon)
    assert sizing.policy == "aegaeon"
    assert sizing.pooled is not None
    assert 2 <= sizing.pooled <= 7
    assert pooled_gpus(plan, aegaeon, 1) == (None, 0.0)


def test_a_dedicated_gpu_has_all_that_its_one_model_leaves_for_kv(
    plan_of: Any, trace_of: Any, pool: PoolSpec
) -> None:
    """40 prompts of 2,000 tokens hold 5 GB: two slots of 15.2 GB in 31 GB would leave 0.5."""
    crowd = trace_of([(0.0, 0, 2000, 200)] * 40)
    plan = plan_of(crowd, on=replace(pool, vram_bytes=31_000_000_000), windows=0)
    assert dedicated_tokens(plan, [crowd], 0, 1) == (8000, 8000)


def test_gpus_go_to_the_model_that_misses_most_while_it_gains(
    plan_of: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Model 0 misses most but never gains; model 1 gains 25 a GPU, model 2 needs none."""
    tried: list[tuple[int, int]] = []

    def tokens(plan: Plan, parts: Any, model: int, replicas: int) -> Tokens:
        tried.append((model, replicas))
        return Tokens({0: 10, 1: min(100, 25 * replicas)}.get(model, 100), 100)

    monkeypatch.setattr("aegaeon_rl.evaluation.sizing.dedicated_tokens", tokens)
    assert dedicated_gpus(plan_of(target=0.99)) == (7 + 3, 610 / 700)
    assert tried[7:] == [(0, 2), (0, 3), (1, 2), (1, 3), (1, 4), (1, 5), (1, 6)]


@pytest.mark.parametrize("least", range(1, 14))
def test_bisection_is_exact_for_any_answer(
    plan_of: Any, monkeypatch: pytest.MonkeyPatch, least: int
) -> None:
    def share(plan: Plan, policy: Any, instances: int) -> float:
        return min(1.0, 0.9 * instances / least)

    monkeypatch.setattr("aegaeon_rl.evaluation.sizing.pooled_share", share)
    size = next(n for n in range(least, 15) if gpus_near(n) == n)
    expected = (size, share(plan_of(), INDEX, size)) if size <= 12 else (None, 0.9 * 12 / least)
    assert pooled_gpus(plan_of(target=0.9), INDEX, 12) == expected


@pytest.mark.parametrize("target", [0.5, 0.8, 0.95, 0.99])
def test_bisection_finds_the_smallest_pool(plan_of: Any, target: float) -> None:
    plan = plan_of(slo=SloSpec(ttft_s=2.0, tbt_s=0.05), target=target)
    shares = [pooled_share(plan, INDEX, n) for n in range(1, 9)]
    assert shares == sorted(shares)  # what bisection takes for granted
    least = next(n for n, share in enumerate(shares, 1) if share >= target)
    assert pooled_gpus(plan, INDEX, 8) == (least, shares[least - 1])


def test_a_pool_that_misses_the_target_is_none(plan_of: Any) -> None:
    plan = plan_of(slo=TIGHT, target=0.999)
    assert pooled_gpus(plan, INDEX, 1) == (None, pooled_share(plan, INDEX, 1))


def test_size_takes_both_sides_from_the_same_plan(plan_of: Any) -> None:
    plan = plan_of(target=0.95)
    sizing = size(plan, INDEX)
    assert (sizing.dedicated, sizing.dedicated_share) == dedicated_gpus(plan)
    assert (sizing.pooled, sizing.pooled_share) == pooled_gpus(plan, INDEX, sizing.dedicated)
    assert sizing.pooled is not None
    assert sizing.pooled < sizing.dedicated
    assert sizing.saved == 1 - sizing.pooled / sizing.dedicated


@given(st.integers(1, 3000), st.sampled_from([1, 2, 4, 8, 16]))
def test_pool_sizes_split_into_equal_nodes(n: int, tp: int) -> None:
    near, node = gpus_near(n, tp), max(NODE, tp)
    assert n <= near < n + tp * -(-(n + tp) // node)
    pool = pool_of_size(PoolSpec(name="p", profile="h100", checkpoints=("a",), tp=tp), near)
    assert pool.gpus == near == pool.instances * tp
    assert pool.instances_per_node * tp <= node
    assert pool.nodes == -(-near // node)
    assert pool.name == f"p:{near}"


def test_pool_of_another_size_keeps_hardware_and_drops_roles() -> None:
    roles = (Phases.PREFILL, Phases.DECODE)
    given_pool = PoolSpec(
        name="p", profile="h100", checkpoints=("a",), instances_per_node=2, roles=roles,
        vram_bytes=123,
    )  # fmt: skip
    pool = pool_of_size(given_pool, 12)
    assert (pool.nodes, pool.instances_per_node, pool.roles) == (2, 6, ())
    assert (pool.vram_bytes, pool.profile, pool.checkpoints) == (123, "h100", ("a",))
    with pytest.raises(UserError, match="pool of 0 GPUs: expected at least 1"):
        pool_of_size(given_pool, 0)


def test_pool_never_outgrows_dedicated_serving(
    plan_of: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nine GPUs do not split into equal nodes: the pool is of eight, not of ten."""
    tried: list[int] = []

    def share(plan: Plan, policy: Any, instances: int) -> float:
        tried.append(instances)
        return instances / 8

    monkeypatch.setattr("aegaeon_rl.evaluation.sizing.pooled_share", share)
    assert pooled_gpus(plan_of(target=0.99), INDEX, 9) == (8, 1.0)
    assert max(tried) == 8


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (
            {},
            "To keep 99 % of tokens on time: dedicated 40 GPUs -> pooled 10 under index, 75.0 %"
            " fewer.",
        ),
        (
            {"pooled": None, "pooled_share": 0.98987},
            "To keep 99 % of tokens on time, dedicated serving needs 40 GPUs; a pool of as many"
            " under index reaches 98.99 %.",
        ),
        (
            {"pooled": None, "dedicated_share": 0.98987},
            "99 % of tokens on time is out of reach: with a GPU for each model, and more for those"
            " that gain by it, dedicated serving reaches 98.99 %.",
        ),
    ],
)
def test_sentence_says_what_was_found(changes: dict[str, Any], sentence: str) -> None:
    plain: dict[str, Any] = {
        "target": 0.99, "policy": "index", "dedicated": 40, "dedicated_share": 0.995,
        "pooled": 10, "pooled_share": 0.991,
    }  # fmt: skip
    assert sizing_sentence(Sizing(**(plain | changes))) == sentence
