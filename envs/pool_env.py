"""`aegaeon/Pool-v0`: one pool, one decision at a time (which model next, for how long, what to
prefetch), with Gymnasium's interface."""

from collections.abc import Sequence
from typing import Any

import gymnasium as gym
import numpy as np
import numpy.typing as npt
from gymnasium import spaces

from envs.pools import QUOTAS_S, ROWS, Observation, Pools, Scenario, observation_space
from envs.rendering.frames import FPS, MODES, Frames, check_mode


class PoolEnv(gym.Env[Observation, np.int64]):
    """Action a < K*Q: row a // Q with quota level a % Q; a = K*Q: idle, or no prefetch.

    An action that the mask forbids counts as idle, or as action 0 where idle is forbidden too: an
    instance with work may wait only while something else in the pool is under way. Reward: minus
    the token deadlines missed since the last decision, over the scenario's deadline rate.
    Episodes end by truncation only, at a random time; `info` carries `dt_s`, the pool time the step
    took, `now_s`, since the start of the warm-up, and `action_mask`. The scenario is a
    specification, its JSON, or a name in conf/scenario. Copies and pickles go on as this one would.
    """

    metadata: dict[str, Any] = {  # noqa: RUF012 (Gymnasium's contract)
        "render_modes": list(MODES),
        "render_fps": FPS,
    }

    def __init__(
        self,
        scenario: Scenario = "demo",
        *,
        rows: int = ROWS,
        quotas_s: Sequence[float] = QUOTAS_S,
        privileged: bool = False,
        render_mode: str | None = None,
    ) -> None:
        self.render_mode = check_mode(render_mode)
        self.pools = Pools(
            scenario,
            1,
            rows=rows,
            quotas_s=quotas_s,
            privileged=privileged,
            is_recorded=render_mode is not None,
        )
        self.observation_space: spaces.Space[Any] = observation_space(
            self.pools.rows, len(self.pools.quotas_s), privileged=privileged
        )
        self.action_space = spaces.Discrete(self.pools.idle_action + 1)
        self._frames = None if render_mode is None else Frames(render_mode)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        super().reset(seed=seed)
        self.pools.rngs[0] = self.np_random
        self.pools.reset(0)
        return self.pools.observation(0), self._info()

    def step(self, action: np.int64) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        if self.pools.sims[0] is None:
            raise gym.error.ResetNeeded("no episode: call reset() before step()")
        if self.pools.is_over[0]:
            raise gym.error.ResetNeeded("the episode is over: call reset() before step()")
        reward = self.pools.step([action])
        is_over = bool(self.pools.is_over[0])
        return self.pools.observation(0), float(reward[0]), False, is_over, self._info()

    def action_masks(self) -> npt.NDArray[np.bool_]:
        """What sb3-contrib asks for: allowed actions [K*Q+1]."""
        return self.pools.mask[0].copy()

    def render(self) -> Any:
        """A page of text (`ansi`), or RGB [540, 960, 3] (`rgb_array`): instances, their last 20 s
        and the queues, at the decision that is due."""
        if self._frames is None:
            gym.logger.warn("render() without a render_mode shows nothing")
            return None
        if self.pools.sims[0] is None:
            raise gym.error.ResetNeeded("no episode: call reset() before render()")
        return self._frames.of(self.pools, 0)

    def describe_observation(self) -> str:
        """Every number of an observation: name, unit, scale, clips, meaning."""
        return self.pools.describe_observation()

    def _info(self) -> dict[str, Any]:
        return {
            "dt_s": float(self.pools.dt_s[0]),
            "action_mask": self.action_masks(),
            "now_s": float(self.pools.now_s[0]),
        }
