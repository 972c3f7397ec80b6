"""`aegaeon/Pool-v0`: one pool, one decision at a time (which model next, for how long, what to
prefetch), with Gymnasium's interface."""

from collections.abc import Sequence
from typing import Any

import gymnasium as gym
import numpy as np
import numpy.typing as npt
from gymnasium import spaces

from envs.pools import QUOTAS_S, ROWS, Observation, Pools, Scenario, observation_space


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
        "render_modes": ["ansi"],
        "render_fps": 1,
    }

    def __init__(
        self,
        scenario: Scenario = "demo",
        *,
        rows: int = ROWS,
        quotas_s: Sequence[float] = QUOTAS_S,
        render_mode: str | None = None,
    ) -> None:
        self.pools = Pools(scenario, 1, rows=rows, quotas_s=quotas_s)
        self.observation_space: spaces.Space[Any] = observation_space(
            rows, len(self.pools.quotas_s)
        )
        self.action_space = spaces.Discrete(self.pools.idle_action + 1)
        self.render_mode = render_mode

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        super().reset(seed=seed)
        self.pools.rngs[0] = self.np_random
        self.pools.reset(0)
        return self.pools.observation(0), self._info()

    def step(self, action: np.int64) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        if self.pools.is_over[0]:
            raise gym.error.ResetNeeded("the episode is over: call reset() before step()")
        reward = self.pools.step(np.array([action], np.int64))
        is_over = bool(self.pools.is_over[0])
        return self.pools.observation(0), float(reward[0]), False, is_over, self._info()

    def action_masks(self) -> npt.NDArray[np.bool_]:
        """What sb3-contrib asks for: allowed actions [K*Q+1]."""
        return self.pools.mask[0].copy()

    def render(self) -> str | None:
        if self.render_mode != "ansi":
            return None
        sim = self.pools.sims[0]
        if sim is None:
            return "no episode: call reset()"
        names = self.pools.scenario.trace(0).models
        lines = [f"t={sim.state.pool['now_ns'][0] / 1e9:.3f} s"]
        for g, instance in enumerate(sim.state.instances):
            model = names[instance["model"]] if instance["model"] >= 0 else "-"
            lines.append(f"instance {g}: stage {instance['stage']} model {model}")
        return "\n".join(lines)

    def _info(self) -> dict[str, Any]:
        return {
            "dt_s": float(self.pools.dt_s[0]),
            "action_mask": self.action_masks(),
            "now_s": float(self.pools.now_s[0]),
        }
