"""Hundreds of pools in one call: a Gymnasium `VectorEnv` and an SB3 `VecEnv` over one core.

Pool p of a batch seeded with s plays what `PoolEnv` seeded with s + p plays, as in Gymnasium's and
SB3's own vector environments (in groups of n: with s + p // n).
"""

from collections.abc import Sequence
from typing import Any

import gymnasium as gym
import numpy as np
import numpy.typing as npt
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import VecEnv

from envs.arguments import count_of, flag_of, seed_of, seeds_of
from envs.pools import QUOTAS_S, ROWS, Observation, Pools, Scenario, observation_space
from envs.rendering.frames import FPS, MODES, Frames, check_mode
from runtime.errors import UserError, nearest

Bools = npt.NDArray[np.bool_]
RESET_KEYS = ("reset_mask",)
NOTHING: dict[str, Any] = {}  # the info of all pools with nothing to say; not to be written to


class PoolVectorEnv(VectorEnv[Observation, npt.NDArray[np.int64], Any]):
    """P pools of `aegaeon/Pool-v0`, stepped in compiled code on `threads` threads.

    `autoreset_mode`: NEXT_STEP (Gymnasium's default), SAME_STEP (what SB3 and most PPO code
    expect), or DISABLED (`reset(options={"reset_mask": mask})`, mask [P], starts those pools anew).
    Infos carry `dt_s` [P], the pool time of the step, and `now_s` [P]; in SAME_STEP `final_obs` and
    `final_info` of the episodes that ended. With `copy=False` observations are views that stand
    until the step after the next. With `group` = n each n pools in a row play the same episodes,
    for baselines that compare them. `render()` gives a frame of each pool.
    """

    def __init__(
        self,
        num_envs: int = 16,
        scenario: Scenario = "demo",
        *,
        rows: int = ROWS,
        quotas_s: Sequence[float] = QUOTAS_S,
        autoreset_mode: AutoresetMode | str = AutoresetMode.NEXT_STEP,
        group: int = 1,
        threads: int = 1,
        copy: bool = True,
        privileged: bool = False,
        render_mode: str | None = None,
    ) -> None:
        if count_of("num_envs", num_envs) % count_of("group", group):
            raise UserError(f"group={group}: expected a divisor of num_envs={num_envs}")
        self.mode, self.copy = mode_of(autoreset_mode), flag_of("copy", copy)
        self.render_mode = check_mode(render_mode)
        self.pools = Pools(
            scenario,
            num_envs,
            rows=rows,
            quotas_s=quotas_s,
            threads=threads,
            privileged=privileged,
            is_recorded=render_mode is not None,
        )
        self.num_envs, self.group = self.pools.count, int(group)
        self.metadata = {
            "autoreset_mode": self.mode,
            "render_modes": list(MODES),
            "render_fps": FPS,
        }
        self._frames = None if render_mode is None else Frames(render_mode)
        self.single_observation_space = observation_space(
            self.pools.rows, len(self.pools.quotas_s), privileged=privileged
        )
        self.single_action_space = spaces.Discrete(self.pools.idle_action + 1)
        self.observation_space = batch_space(self.single_observation_space, self.num_envs)
        self.action_space = batch_space(self.single_action_space, self.num_envs)
        self._is_seeded = False

    def reset(
        self,
        *,
        seed: int | Sequence[int | None] | None = None,
        options: dict[str, Any] | None = None,
    ) -> tuple[Observation, dict[str, Any]]:
        super().reset(seed=seed_of(seed) if isinstance(seed, int | np.integer) else None)
        chosen = self._reset_mask(options)
        self._seed(seed, chosen)
        self.pools.turn_over()
        for p in np.flatnonzero(chosen):
            self.pools.reset(int(p))
        infos = {"dt_s": np.zeros(self.num_envs), "now_s": np.where(chosen, self.pools.now_s, 0.0)}
        return self._observation(), infos | {f"_{name}": chosen.copy() for name in infos}

    def step(
        self, actions: npt.NDArray[np.int64]
    ) -> tuple[Observation, npt.NDArray[np.float64], Bools, Bools, dict[str, Any]]:
        ended = self._ended()
        reward = self.pools.step(actions)
        if self.mode is AutoresetMode.NEXT_STEP:
            for p in np.flatnonzero(ended):  # for them this step is the reset
                self.pools.reset(int(p))
        truncated = self.pools.is_over
        infos: dict[str, Any] = {"dt_s": self.pools.dt_s, "now_s": self.pools.now_s}
        infos |= {f"_{name}": np.ones(self.num_envs, np.bool_) for name in infos}
        if self.mode is AutoresetMode.SAME_STEP and truncated.any():
            infos |= self._finals(truncated, infos)
            for p in np.flatnonzero(truncated):
                self.pools.reset(int(p))
        terminated = np.zeros(self.num_envs, np.bool_)
        return self._observation(), reward, terminated, truncated, infos

    def action_masks(self) -> Bools:
        """Allowed actions [P, K*Q+1]."""
        return self.pools.mask.copy() if self.copy else self.pools.mask

    def render(self) -> tuple[Any, ...] | None:
        """A frame of each pool, see `PoolEnv.render`."""
        if self._frames is None:
            gym.logger.warn("render() without a render_mode shows nothing")
            return None
        if not self._is_seeded:
            raise gym.error.ResetNeeded("no episode: call reset() before render()")
        return tuple(self._frames.of(self.pools, p) for p in range(self.num_envs))

    def describe_observation(self) -> str:
        """Every number of a pool's observation: name, unit, scale, clips, meaning."""
        return self.pools.describe_observation()

    def _observation(self) -> Observation:
        return self.pools.observation(slice(None), copy=self.copy)

    def _reset_mask(self, options: dict[str, Any] | None) -> Bools:
        """The pools to reset. Raises UserError."""
        for key in options or {}:
            if key != "reset_mask":
                raise UserError(f"options[{key!r}]: unknown key; {nearest(str(key), RESET_KEYS)}")
        if not options:
            return np.ones(self.num_envs, np.bool_)
        mask = options["reset_mask"]
        is_mask = isinstance(mask, np.ndarray) and mask.dtype == np.bool_
        if not is_mask or mask.shape != (self.num_envs,) or not mask.any():
            raise UserError(
                f"options['reset_mask']={mask!r}: expected a boolean array of shape"
                f" ({self.num_envs},), true somewhere"
            )
        return np.array(mask)

    def _seed(self, seed: int | Sequence[int | None] | None, chosen: Bools) -> None:
        """A seed s stands for s, s + 1, ..., one a group; a list seeds each pool, but for None.
        Raises UserError."""
        if seed is None and self._is_seeded:
            return
        if seed is None:
            seed = int(self.np_random.integers(1 << 62))
        own = seeds_of(seed, self.num_envs, self.group)
        for p in np.flatnonzero(chosen):
            if (number := own[p]) is not None:
                self.pools.seed(int(p), number)
        self._is_seeded = True

    def _ended(self) -> Bools:
        """Pools whose episode is over. Raises ResetNeeded where no step would start a new one."""
        ended = self.pools.is_over
        if not self._is_seeded:
            raise gym.error.ResetNeeded("no episode: call reset() before step()")
        if self.mode is not AutoresetMode.NEXT_STEP and ended.any():
            raise gym.error.ResetNeeded(
                f"the episodes of pools {np.flatnonzero(ended).tolist()} are over: call"
                " reset(options={'reset_mask': ...}) before step()"
            )
        return ended

    def _finals(self, truncated: Bools, infos: dict[str, Any]) -> dict[str, Any]:
        """What the ended episodes showed and said last."""
        final = np.full(self.num_envs, None, dtype=object)
        for p in np.flatnonzero(truncated):
            final[p] = self.pools.observation(int(p))
        said = {name: np.where(truncated, infos[name], 0.0) for name in ("dt_s", "now_s")}
        said |= {f"_{name}": truncated.copy() for name in said}
        marks = {"_final_obs": truncated.copy(), "_final_info": truncated.copy()}
        return {"final_obs": final, "final_info": said} | marks


def mode_of(value: AutoresetMode | str) -> AutoresetMode:
    """By Gymnasium's name or value (SAME_STEP or SameStep). Raises UserError."""
    if isinstance(value, AutoresetMode):
        return value
    for mode in AutoresetMode:
        if value in (mode.name, mode.value):
            return mode
    choices = nearest(str(value), [mode.value for mode in AutoresetMode])
    raise UserError(f"autoreset_mode={value!r}: {choices}")


class PoolVecEnv(VecEnv):
    """The same pools for Stable-Baselines3: SAME_STEP resets, `action_masks`, `last_dt_s` [P].

    `last_dt_s` is the pool time of the last step, for event-time discounting; an info of an ended
    episode carries `terminal_observation` and `TimeLimit.truncated`, as SB3 expects, all others
    are one shared empty one.
    """

    def __init__(
        self,
        scenario: Scenario,
        num_envs: int,
        *,
        rows: int = ROWS,
        quotas_s: Sequence[float] = QUOTAS_S,
        group: int = 1,
        threads: int = 1,
        copy: bool = True,
        privileged: bool = False,
        render_mode: str | None = None,
    ) -> None:
        if render_mode not in (None, "rgb_array"):
            raise UserError(f"render_mode={render_mode!r}: expected rgb_array, what SB3 tiles")
        self.vector = PoolVectorEnv(
            num_envs,
            scenario,
            rows=rows,
            quotas_s=quotas_s,
            autoreset_mode=AutoresetMode.SAME_STEP,
            group=group,
            threads=threads,
            copy=copy,
            privileged=privileged,
            render_mode=render_mode,
        )
        self.last_dt_s = np.zeros(num_envs)
        self.returns = np.zeros(num_envs)
        self.lengths = np.zeros(num_envs, np.int64)
        self._seed: int | None = None
        self.render_mode = render_mode
        super().__init__(
            num_envs, self.vector.single_observation_space, self.vector.single_action_space
        )

    def reset(self) -> Any:
        observation, _ = self.vector.reset(seed=self._seed)
        self._seed = None
        self.reset_infos = [NOTHING] * self.num_envs
        self.returns[:] = 0.0
        self.lengths[:] = 0
        return observation

    def seed(self, seed: int | None = None) -> Sequence[int | None]:
        """Of the next reset."""
        self._seed = None if seed is None else seed_of(seed)
        return [
            None if seed is None else seed + p // self.vector.group for p in range(self.num_envs)
        ]

    def step_async(self, actions: npt.NDArray[np.int64]) -> None:
        self._actions = actions

    def step_wait(self) -> Any:
        observation, reward, _, truncated, infos = self.vector.step(self._actions)
        self.last_dt_s = infos["dt_s"]
        self.returns += reward
        self.lengths += 1
        listed = [NOTHING] * self.num_envs
        for p in np.flatnonzero(truncated):
            listed[p] = self._last_info(int(p), infos["final_obs"][p])
        return observation, reward.astype(np.float32), truncated, listed

    def _last_info(self, p: int, final: Observation) -> dict[str, Any]:
        episode = {"r": float(self.returns[p]), "l": int(self.lengths[p]), "t": 0.0}
        self.returns[p], self.lengths[p] = 0.0, 0
        return {"terminal_observation": final, "TimeLimit.truncated": True, "episode": episode}

    def action_masks(self) -> Bools:
        return self.vector.action_masks()

    def get_images(self) -> Sequence[Any]:
        """A picture of each pool, which `render` tiles."""
        return self.vector.render() or ()

    def describe_observation(self) -> str:
        return self.vector.describe_observation()

    def weigh_levels(self, weights: Sequence[float]) -> None:
        """How often each level of the scenario is drawn from the next resets on."""
        self.vector.pools.weigh_levels(weights)

    def close(self) -> None:
        self.vector.close()

    def get_attr(self, attr_name: str, indices: Any = None) -> list[Any]:
        return [getattr(self, attr_name) for _ in self._get_indices(indices)]

    def set_attr(self, attr_name: str, value: Any, indices: Any = None) -> None:
        setattr(self, attr_name, value)

    def env_method(
        self, method_name: str, *args: Any, indices: Any = None, **kwargs: Any
    ) -> list[Any]:
        """One call for all pools, whose result is that of each; of `action_masks`, which SB3's
        contrib asks for, each has its own."""
        result = getattr(self, method_name)(*args, **kwargs)
        is_by_pool = method_name == "action_masks"
        return [result[i] if is_by_pool else result for i in self._get_indices(indices)]

    def env_is_wrapped(self, wrapper_class: type[gym.Wrapper], indices: Any = None) -> list[bool]:
        """By Monitor: yes, infos tell of ended episodes as it does."""
        return [wrapper_class is Monitor for _ in self._get_indices(indices)]
