"""A small market on two GPUs that is often late, tiny training runs on it, and a quiet listener."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from aegaeon_rl.evaluation.spec import EvaluationSpec
from aegaeon_rl.policies.learned import FILE, Weights, load_weights
from aegaeon_rl.training.session import Job, Listener
from aegaeon_rl.training.spec import TrainSpec
from aegaeon_rl.training.trainer import Trainer
from runtime.core import PoolSpec, SloSpec
from traces.market import MarketSpec, generate
from traces.parts import cut_parts

SIZES = ("Qwen2.5-7B", "Yi-1.5-9B", "Llama-2-13B")
TINY = {
    "decisions": 384,
    "checkpoints": 3,
    "pools": 4,
    "steps": 16,
    "batch": 32,
    "learning_rate": 0.05,
    "hidden": 8,
    "rows": 16,
    "warm_s": 2.0,
    "shortest_s": 2.0,
    "longest_s": 5.0,
}


@pytest.fixture(scope="session")
def make_job() -> Callable[..., Job]:
    """A job in `folder`; three segments of two rollouts each, unless `changes` say otherwise."""
    market = MarketSpec(name="small", models=16, duration_s=300.0, rate_rps=8.0, seed=0)
    trace = generate(market)
    pool = PoolSpec(name="h100x2", profile="h100", checkpoints=SIZES, instances_per_node=2)

    def make(folder: Path, seed: int = 3, **changes: Any) -> Job:
        return Job(
            parts=cut_parts(trace),
            pool=pool,
            slo=SloSpec(ttft_s=1.0, tbt_s=0.05),
            spec=TrainSpec(**(TINY | changes)),
            evaluation=EvaluationSpec(windows=0, draws=100),
            seed=seed,
            folder=folder,
        )

    return make


@pytest.fixture(scope="session")
def make_trainer(make_job: Callable[..., Job]) -> Callable[..., Trainer]:
    def make(folder: Path, seed: int = 3, **changes: Any) -> Trainer:
        job = make_job(folder, seed, **changes)
        return Trainer(job.scenario(), job.spec, job.seed, folder)

    return make


@pytest.fixture(scope="session")
def quiet() -> Listener:
    return Listener(lambda _: None, lambda _: None)


@pytest.fixture(scope="session")
def same_weights() -> Callable[[Any, Any], bool]:
    """Are two sets of weights, or the files in two folders, equal to the bit?"""

    def same(a: Weights | Path, b: Weights | Path) -> bool:
        a, b = (load_weights(x / FILE) if isinstance(x, Path) else x for x in (a, b))
        return all(np.array_equal(x, y) for x, y in zip(a, b, strict=True))

    return same
