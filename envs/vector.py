"""Hundreds of pools in one call: a Gymnasium `VectorEnv` and an SB3 `VecEnv` over one core."""

from collections.abc import Sequence
from typing import Any

import gymnasium as gym
import numpy as np
import numpy.typing as npt
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from stable_baselines3.common.vec_env import VecEnv

from envs.pools import QUOTAS_S, ROWS, Observation, Pools, observation_space
from envs.scenario import ScenarioSpec, demo_scenario
from runtime.errors import UserError

Floats = npt.NDArray[np.float32]
Bools = npt.NDArray[np.bool_]


class PoolVectorEnv(VectorEnv[Observation, npt.NDArray[np.int64], Any]):
    """P pools of `aegaeon/Pool-v0`; `autoreset_mode` is NEXT_STEP (Gymnasium's default) or
    SAME_STEP (what SB3 and most PPO code expect). Infos carry `dt_s` [P]. With `group` = n each
    n pools in a row play the same episodes, for baselines that compare them."""

    def __init__(
        self,
        num_envs: int = 16,
        scenario: ScenarioSpec | None = None,
        *,
        rows: int = ROWS,
        quotas_s: Sequence[float] = QUOTAS_S,
        autoreset_mode: AutoresetMode | str = AutoresetMode.NEXT_STEP,
        group: int = 1,
    ) -> None:
        if group < 1 or num_envs % group:
            raise UserError(f"group={group}: expected a divisor of num_envs={num_envs}")
        mode = AutoresetMode(autoreset_mode)
        if mode is AutoresetMode.DISABLED:
            raise UserError("autoreset_mode=Disabled: expected NextStep or SameStep")
        self.pools = Pools(scenario or demo_scenario(), num_envs, rows=rows, quotas_s=quotas_s)
        self.num_envs, self.mode, self.group = num_envs, mode, group
        self.metadata = {"autoreset_mode": mode, "render_modes": []}
        self.single_observation_space = observation_space(rows, len(self.pools.quotas_s))
        self.single_action_space = spaces.Discrete(self.pools.idle_action + 1)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self._is_seeded = False

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        super().reset(seed=seed)
        if seed is not None or not self._is_seeded:
            seeds = self.np_random.integers(1 << 62, size=self.num_envs // self.group)
            self.pools.seed([int(s) for s in np.repeat(seeds, self.group)])
            self._is_seeded = True
        for p in range(self.num_envs):
            self.pools.reset(p)
        return self.pools.observation(slice(None)), {"dt_s": np.zeros(self.num_envs)}

    def step(
        self, actions: npt.NDArray[np.int64]
    ) -> tuple[Observation, npt.NDArray[np.float64], Bools, Bools, dict[str, Any]]:
        if not self._is_seeded:
            raise gym.error.ResetNeeded("no episode: call reset() before step()")
        ended = self.pools.is_over.copy()
        reward = self.pools.step(np.ascontiguousarray(actions, np.int64))
        dt_s = np.where(ended, 0.0, self.pools.dt_s)
        reward = np.where(ended, 0.0, reward)
        for p in np.flatnonzero(ended):  # NEXT_STEP: this step was the reset
            self.pools.reset(int(p))
        truncated = self.pools.is_over & ~ended
        infos: dict[str, Any] = {"dt_s": dt_s}
        if self.mode is AutoresetMode.SAME_STEP and truncated.any():
            infos["final_obs"] = self._final_observations(truncated)
            infos["_final_obs"] = truncated
            for p in np.flatnonzero(truncated):
                self.pools.reset(int(p))
        terminated = np.zeros(self.num_envs, np.bool_)
        return self.pools.observation(slice(None)), reward, terminated, truncated, infos

    def action_masks(self) -> Bools:
        """Allowed actions [P, K*Q+1]."""
        return self.pools.mask.copy()

    def _final_observations(self, truncated: Bools) -> npt.NDArray[np.object_]:
        final = np.full(self.num_envs, None, dtype=object)
        for p in np.flatnonzero(truncated):
            final[p] = self.pools.observation(int(p))
        return final


class PoolVecEnv(VecEnv):
    """The same pools for Stable-Baselines3: SAME_STEP resets, `action_masks`, `last_dt_s` [P].

    `last_dt_s` is the pool time of the last step, for event-time discounting; an info of an ended
    episode carries `terminal_observation` and `TimeLimit.truncated`, as SB3 expects.
    """

    def __init__(
        self,
        scenario: ScenarioSpec,
        num_envs: int,
        *,
        rows: int = ROWS,
        quotas_s: Sequence[float] = QUOTAS_S,
        group: int = 1,
    ) -> None:
        self.vector = PoolVectorEnv(
            num_envs,
            scenario,
            rows=rows,
            quotas_s=quotas_s,
            autoreset_mode=AutoresetMode.SAME_STEP,
            group=group,
        )
        self.last_dt_s = np.zeros(num_envs)
        self.returns = np.zeros(num_envs)
        self.lengths = np.zeros(num_envs, np.int64)
        self._seed: int | None = None
        self.render_mode = None
        super().__init__(
            num_envs, self.vector.single_observation_space, self.vector.single_action_space
        )

    def reset(self) -> Any:
        observation, _ = self.vector.reset(seed=self._seed)
        self._seed = None
        self.returns[:] = 0.0
        self.lengths[:] = 0
        return observation

    def seed(self, seed: int | None = None) -> Sequence[int | None]:
        self._seed = seed
        return [seed] * self.num_envs

    def step_async(self, actions: npt.NDArray[np.int64]) -> None:
        self._actions = actions

    def step_wait(self) -> Any:
        observation, reward, _, truncated, infos = self.vector.step(self._actions)
        self.last_dt_s = infos["dt_s"]
        self.returns += reward
        self.lengths += 1
        listed: list[dict[str, Any]] = [{} for _ in range(self.num_envs)]
        for p in np.flatnonzero(truncated):
            episode = {"r": float(self.returns[p]), "l": int(self.lengths[p]), "t": 0.0}
            final = infos["final_obs"][p]
            listed[p] = {"terminal_observation": final, "TimeLimit.truncated": True}
            listed[p]["episode"] = episode
            self.returns[p] = 0.0
            self.lengths[p] = 0
        return observation, reward.astype(np.float32), truncated, listed

    def action_masks(self) -> Bools:
        return self.vector.action_masks()

    def close(self) -> None:
        self.vector.close()

    def get_attr(self, attr_name: str, indices: Any = None) -> list[Any]:
        return [getattr(self, attr_name) for _ in self._get_indices(indices)]

    def set_attr(self, attr_name: str, value: Any, indices: Any = None) -> None:
        setattr(self, attr_name, value)

    def env_method(
        self, method_name: str, *args: Any, indices: Any = None, **kwargs: Any
    ) -> list[Any]:
        """SB3's contrib asks each environment for its own `action_masks`."""
        result = getattr(self, method_name)(*args, **kwargs)
        return [result[i] for i in self._get_indices(indices)]

    def env_is_wrapped(self, wrapper_class: type[gym.Wrapper], indices: Any = None) -> list[bool]:
        return [False for _ in self._get_indices(indices)]
