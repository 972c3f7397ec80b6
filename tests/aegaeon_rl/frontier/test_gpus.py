"""The fewest GPUs for a trace in several ways, and plan.csv that adds up to them."""

import csv
import io
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from aegaeon_rl.evaluation.compare import Plan
from aegaeon_rl.evaluation.sizing import dedicated_gpus, pooled_share
from aegaeon_rl.evaluation.spec import EvaluationSpec
from aegaeon_rl.frontier.cells import CellStore
from aegaeon_rl.frontier.cost import Prices
from aegaeon_rl.frontier.gpus import Ways, rows_of, ways_of
from aegaeon_rl.frontier.plan import HOT, as_csv, needed, serving_plan
from aegaeon_rl.policies.registry import make_policy
from runtime.core import PoolSpec, SloSpec
from runtime.errors import UserError
from traces import Trace
from traces.market import MarketSpec, generate

PRICES = Prices(usd_gpu_hour={"H100-SXM-80GB": 3.0})
POOL = PoolSpec(
    name="pair", profile="h100", checkpoints=("Qwen2.5-7B", "Yi-1.5-9B"), instances_per_node=2
)
INDEX = make_policy("index")


def plan_on(trace: Trace, target: float = 0.95) -> Plan:
    spec = EvaluationSpec(windows=2, window_s=60.0, warm_s=5.0, target=target, draws=200)
    return Plan(trace=trace, pool=POOL, slo=SloSpec(), spec=spec)


@pytest.fixture(scope="module")
def market() -> Trace:
    return generate(MarketSpec(name="m", models=8, duration_s=120.0, rate_rps=3.0, seed=1))


@pytest.fixture(scope="module")
def hot_market() -> Trace:
    """The first model has most of the requests."""
    spec = MarketSpec(
        name="hot",
        models=6,
        duration_s=120.0,
        rate_rps=30.0,
        popularity=(40, 1, 1, 1, 1, 1),
        seed=2,
    )
    return generate(spec)


@pytest.fixture(scope="module")
def ways(market: Trace) -> Ways:
    return ways_of(plan_on(market), [make_policy("vllm_sleep"), INDEX], CellStore())


def test_ways_hold_the_target_and_one_less_does_not(ways: Ways) -> None:
    gpus = ways.ways[-1].gpus
    assert gpus is not None
    assert ways.ways[-1].share >= 0.95
    assert gpus == 1 or pooled_share(ways.plan, INDEX, gpus - 1) < 0.95


def test_dedicated_is_sized_as_in_evaluate(ways: Ways) -> None:
    assert (ways.dedicated.gpus, ways.dedicated.share) == dedicated_gpus(ways.plan)


def test_no_way_passes_the_bound(ways: Ways) -> None:
    assert all(w.gpus >= ways.bound_gpus for w in ways.ways if w.gpus is not None)


def test_rows_name_gpus_savings_and_cost(ways: Ways) -> None:
    rows = rows_of(ways, PRICES)
    assert [r["policy"] for r in rows] == ["dedicated", "vllm_sleep", "index"]
    last = rows[-1]
    assert last["usd_hour"] == 3.0 * last["gpus"]
    assert last["saved"] == pytest.approx(1 - last["gpus"] / rows[0]["gpus"])
    hour = last["goodput_tokens_s"] * 3600 / 1e6
    assert last["usd_million_tokens"] == pytest.approx(last["usd_hour"] / hour)


def test_plan_adds_up_to_whole_gpus(ways: Ways) -> None:
    plan = serving_plan(ways, INDEX, PRICES)
    lines = list(csv.DictReader(io.StringIO(as_csv(plan.lines))))
    assert [line["model"] for line in lines] == list(ways.plan.trace.models)
    assert {line["placement"] for line in lines} == {"pooled"}
    total = sum(line.gpus for line in plan.lines)
    assert total == pytest.approx(plan.gpus) == pytest.approx(ways.best.gpus)
    assert plan.spare_gpus >= 1
    usd = 3.0 * (plan.gpus + plan.spare_gpus)
    assert plan.usd_hour == pytest.approx(usd)


def test_hot_model_gets_gpus_of_its_own_only_where_that_is_fewer(hot_market: Trace) -> None:
    found = ways_of(plan_on(hot_market, 0.9), [INDEX], CellStore())
    assert (needed(found) >= HOT).sum() == 1
    plan = serving_plan(found, INDEX, PRICES)
    assert plan.gpus <= (found.ways[-1].gpus or 10**9)
    apart = [line.model for line in plan.lines if line.placement == "dedicated"]
    assert len(apart) == len(plan.dedicated)
    assert sum(line.gpus for line in plan.lines) == pytest.approx(plan.gpus)


def test_unreachable_target_is_said(market: Trace) -> None:
    plan = replace(plan_on(market, 0.999), slo=SloSpec(ttft_s=1e-3, tbt_s=1e-4))
    found = ways_of(plan, [INDEX], CellStore())
    assert [w.gpus for w in found.ways] == [None, None]
    assert rows_of(found, PRICES)[1]["usd_million_tokens"] is None


def test_gpu_without_a_price_is_named() -> None:
    with pytest.raises(UserError, match=r"prices\.usd_gpu_hour: no 'A10-24GB'"):
        PRICES.of("A10-24GB")


def test_no_tokens_cost_without_end() -> None:
    assert np.isinf(PRICES.usd_million_tokens("H100-SXM-80GB", 1, 0.0))


@pytest.mark.parametrize("name", ["autoscaled", "vllm_sleep", "index_free_switches"])
def test_variant_keeps_its_changes(name: str, market: Trace, run_share: Any) -> None:
    policy: Any = make_policy(name)
    pool = policy.configure(POOL)
    assert policy.name == name
    assert all(getattr(pool, key) == value for key, value in policy.changes.items())
