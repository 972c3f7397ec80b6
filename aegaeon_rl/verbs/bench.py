"""`bench`: how fast the emulator and the environment are on this machine."""

import resource
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

import numpy as np
from stable_baselines3.common.vec_env import VecEnv

from aegaeon_rl.evaluation.record import summary, write_rows, write_summary
from aegaeon_rl.evaluation.sizing import pool_of_size
from aegaeon_rl.policies.registry import make_policy
from aegaeon_rl.training.spec import TrainSpec
from aegaeon_rl.training.trainer import Trainer
from aegaeon_rl.verbs.common import RunSection, chosen_folder, console, run_folder
from envs.scenario import ScenarioSpec
from envs.vector import PoolVecEnv
from runtime.core import PoolSpec, SloSpec
from runtime.emulator.run import Run, run
from runtime.errors import UserError
from runtime.protocol import Policy
from traces import Trace
from traces.market import MarketSpec, generate


class Bench(StrEnum):
    EMULATOR = "emulator"
    ENV = "env"


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """The workload is a generated market of `models` at `rate_rps` on `gpus`."""

    pool: PoolSpec
    slo: SloSpec
    bench: Bench = Bench.EMULATOR
    policies: tuple[str, ...] = ("index", "aegaeon")
    gpus: int = 16
    models: int = 80
    rate_rps: float = 8.0
    duration_s: float = 3600.0
    threads: int = 1
    pools: int = 256
    decisions: int = 200_000
    seed: int = 0
    run: RunSection = field(default_factory=RunSection)

    def __post_init__(self) -> None:
        for name in ("gpus", "models", "threads", "pools", "decisions"):
            if getattr(self, name) < 1:
                raise UserError(f"{name}={getattr(self, name)}: expected at least 1")
        if self.seed < 0:
            raise UserError(f"seed={self.seed}: expected 0 or more")


def main(config: Config) -> None:
    trace = generate(
        MarketSpec(
            name="bench",
            models=config.models,
            duration_s=config.duration_s,
            rate_rps=config.rate_rps,
            seed=config.seed,
        )
    )
    config.slo.check_models(trace.models)
    pool = pool_of_size(config.pool, config.gpus)
    folder = chosen_folder("bench", config.run)
    if config.bench is Bench.EMULATOR:
        policies = [make_policy(name) for name in config.policies]
        for policy in policies:
            policy.configure(pool)  # refuses a pool it cannot run
        run_folder(folder, config)
        rows = [bench_emulator(config, trace, pool, policy) for policy in policies]
    else:
        scenario = ScenarioSpec(trace=trace, pool=pool, slo=config.slo)
        run_folder(folder, config)
        rows = [bench_env(config, scenario, folder)]
    write_rows(folder / "results.parquet", rows)
    content = summary("bench", config.seed, trace, pool, config.slo, rows)
    write_summary(folder / "summary.json", {**content, "bench": str(config.bench)})
    for row in rows:
        console.print("  ".join(f"{key}={_short(value)}" for key, value in row.items()))
    console.print(folder, soft_wrap=True)


def _short(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.3g}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def bench_emulator(config: Config, trace: Trace, pool: PoolSpec, policy: Policy) -> dict[str, Any]:
    """Whole runs of the trace, one per thread at once; the first, with compilation, apart."""

    def once() -> Run:
        return run(trace, pool, policy, config.slo)

    first_s = timed(once)
    with ThreadPoolExecutor(max_workers=config.threads) as threads:
        began = time.perf_counter()
        runs = list(threads.map(lambda _: once(), range(config.threads)))
        seconds = time.perf_counter() - began
    tokens = sum(int(r.results["emitted_tokens"].sum()) for r in runs)
    return {
        "policy": policy.name,
        "requests_s": round(trace.requests * config.threads / seconds),
        "tokens_s": round(tokens / seconds),
        "decisions_s": round(sum(r.decisions for r in runs) / seconds),
        "peak_rss_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "compile_s": max(0.0, first_s - seconds / config.threads),
        "threads": config.threads,
        "gpus": pool.gpus,
        "models": len(trace.models),
    }


def timed(work: Callable[[], Any]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def bench_env(config: Config, scenario: ScenarioSpec, folder: Path) -> dict[str, Any]:
    """Random allowed actions through the SB3 face, then PPO end to end at 2 epochs."""
    pools = PoolVecEnv(scenario, config.pools)
    pools.seed(config.seed)
    pools.reset()
    step_randomly(pools, 8, config.seed)
    steps = -(-config.decisions // config.pools)
    seconds = timed(lambda: step_randomly(pools, steps, config.seed))
    spec = TrainSpec(
        decisions=config.decisions, checkpoints=1, pools=config.pools, steps=32, warm_critic=False
    )
    trainer = Trainer(scenario, spec, config.seed, folder)
    train_s = timed(lambda: trainer.advance(lambda _: None))
    return {
        "policy": None,
        "decisions_s": round(steps * config.pools / seconds),
        "train_decisions_s": round(trainer.model.num_timesteps / train_s),
        "peak_rss_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "pools": config.pools,
        "gpus": scenario.pool.gpus,
        "models": len(scenario.trace.models),
    }


def step_randomly(pools: VecEnv, steps: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    for _ in range(steps):
        masks = np.stack(pools.env_method("action_masks"))
        pools.step(np.argmax(masks * rng.random(masks.shape), axis=1))
