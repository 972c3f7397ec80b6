"""A small busy scenario, and environments over it."""

from collections.abc import Callable
from typing import Any

import pytest

from envs.pool_env import PoolEnv
from envs.scenario import ScenarioSpec
from envs.vector import PoolVecEnv, PoolVectorEnv
from runtime.core import PoolSpec, SloSpec
from traces.market import MarketSpec, generate

SIZES = ("Qwen2.5-7B", "Yi-1.5-9B", "Llama-2-13B")


@pytest.fixture(scope="session")
def scenario() -> ScenarioSpec:
    """Eight models on two GPUs, late now and then; episodes of 5 to 10 s, half to double load."""
    market = MarketSpec(name="small", models=8, duration_s=400.0, rate_rps=3.0, seed=0)
    pool = PoolSpec(name="h100x2", profile="h100", checkpoints=SIZES, instances_per_node=2)
    return ScenarioSpec(
        traces=(generate(market),),
        pools=(pool,),
        slos=(SloSpec(ttft_s=1.0, tbt_s=0.05),),
        warm_s=10.0,
        shortest_s=5.0,
        longest_s=10.0,
        load_scale=(0.5, 2.0),
    )


@pytest.fixture
def make_env(scenario: ScenarioSpec) -> Callable[..., PoolEnv]:
    """A `PoolEnv`, reset with `seed`."""

    def make(seed: int = 0, **options: Any) -> PoolEnv:
        env = PoolEnv(scenario, rows=8, **options)
        env.reset(seed=seed)
        return env

    return make


@pytest.fixture
def make_vector(scenario: ScenarioSpec) -> Callable[..., PoolVectorEnv]:
    return lambda n, **options: PoolVectorEnv(n, scenario, rows=8, **options)


@pytest.fixture
def make_vec(scenario: ScenarioSpec) -> Callable[..., PoolVecEnv]:
    return lambda n, **options: PoolVecEnv(scenario, n, rows=8, **options)
