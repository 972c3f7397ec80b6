"""`bench=env`: decisions a second through the environment, and what training makes of them."""

import resource
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
import numpy.typing as npt
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecEnv

from aegaeon_rl.training.speed import measure_training
from envs.pool_env import PoolEnv
from envs.scenario import ScenarioSpec
from envs.vector import PoolVecEnv

WARM_STEPS = 8
DRAWS = 64  # tables of random numbers that actions are drawn with
PEERS, PEER_STEPS = 4, 500  # single environments behind SB3's own vector environments


class Speed(NamedTuple):
    """Of the calls of `step` alone, resets of ended episodes included; not of choosing actions.
    `cpu_s` is this process's, on all its threads."""

    decisions: int
    wall_s: float
    cpu_s: float

    @property
    def decisions_s(self) -> int:
        return round(self.decisions / self.wall_s)

    @property
    def decisions_cpu_s(self) -> int:
        """Per second of processor time: what other programs on the machine change least."""
        return round(self.decisions / self.cpu_s)


def measure_steps(env: VecEnv, steps: int, seed: int) -> Speed:
    """`steps` steps of random allowed actions, after a few to warm up."""
    env.seed(seed)
    env.reset()
    rng = np.random.default_rng(seed)
    draws = rng.random((DRAWS, *masks_of(env).shape), np.float32)
    wall_s = cpu_s = 0.0
    for step in range(-WARM_STEPS, steps):
        actions = np.argmax(masks_of(env) * draws[step % DRAWS], axis=1)
        began_s, used_s = time.perf_counter(), time.process_time()
        env.step(actions)
        if step >= 0:
            wall_s += time.perf_counter() - began_s
            cpu_s += time.process_time() - used_s
    return Speed(steps * env.num_envs, wall_s, cpu_s)


def masks_of(env: VecEnv) -> npt.NDArray[np.bool_]:
    if isinstance(env, PoolVecEnv):
        return env.action_masks()
    return np.stack(env.env_method("action_masks"))


def bench_env(
    scenario: ScenarioSpec,
    folder: Path,
    *,
    pools: int,
    threads: int,
    decisions: int,
    train_decisions: int,
    peers: bool,
    seed: int,
) -> dict[str, Any]:
    """One row: the pools stepped by random actions, their observations by view as in training,
    MaskablePPO end to end at 2 epochs, and with `peers` the single environment
    behind SB3's DummyVecEnv and SubprocVecEnv."""
    steps = -(-decisions // pools)
    speed = measure_steps(PoolVecEnv(scenario, pools, threads=threads, copy=False), steps, seed)
    trained = measure_training(
        scenario, pools=pools, decisions=train_decisions, seed=seed, folder=folder
    )
    row = {
        "policy": None,
        "decisions_s": speed.decisions_s,
        "decisions_cpu_s": speed.decisions_cpu_s,
        "train_decisions_s": round(trained.decisions_s),
        "train_decisions_cpu_s": round(trained.decisions_cpu_s),
    }
    return {
        **row,
        **(peer_speeds(scenario, seed) if peers else {}),
        "peak_rss_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "threads": threads,
        "pools": pools,
        "gpus": scenario.pools[0].gpus,
        "models": len(scenario.trace(0).models),
    }


def peer_speeds(scenario: ScenarioSpec, seed: int) -> dict[str, int]:
    """Decisions a second on the clock of SB3's vector environments over the single one."""
    makers: list[Callable[[], gym.Env[Any, Any]]] = [partial(PoolEnv, scenario)] * PEERS
    speeds = {}
    for name, kind in (("dummy", DummyVecEnv), ("subproc", SubprocVecEnv)):
        env = kind(makers)
        speeds[f"{name}_decisions_s"] = measure_steps(env, PEER_STEPS, seed).decisions_s
        env.close()
    return speeds
