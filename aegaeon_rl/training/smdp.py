"""Event time for SB3 and sb3-contrib: a step of dt seconds discounts by exp(-dt / horizon).

For semi-Markov decision problems, where steps differ in length by orders of magnitude. Wrap the
environment in an `EventClock` (outermost), construct the algorithm with gamma = 1 and one of the
four buffers, then `attach` its buffer to the clock: not before, since SB3 pickles the buffer's
keyword arguments into its zip files. docs/environment.md has a whole example.

Letters: T steps, P environments.
"""

from typing import Any

import numpy as np
import numpy.typing as npt
from sb3_contrib.common.maskable.buffers import MaskableDictRolloutBuffer, MaskableRolloutBuffer
from stable_baselines3.common.buffers import DictRolloutBuffer, RolloutBuffer
from stable_baselines3.common.vec_env import VecEnv, VecEnvWrapper
from torch import Tensor

from runtime.errors import UserError

Floats = npt.NDArray[Any]
Numbers = npt.NDArray[np.int64]


class EventClock(VecEnvWrapper):
    """Knows how long each environment's last step took, and where in which episode it began.

    Seconds are the environment's `last_dt_s` [P] where it has that, else `dt_s` in each info.
    """

    def __init__(self, venv: VecEnv) -> None:
        super().__init__(venv)
        self._is_told_at_once = hasattr(venv, "last_dt_s")
        self._start()

    def _start(self) -> None:
        self.last_dt_s, self.last_rewards = np.zeros((2, self.num_envs))
        self.began_s, self._elapsed_s = np.zeros((2, self.num_envs))
        self.episode, self._episodes = np.zeros((2, self.num_envs), np.int64)

    def reset(self) -> Any:
        self._start()
        return self.venv.reset()

    def step_wait(self) -> Any:
        observation, rewards, dones, infos = self.venv.step_wait()
        self.last_dt_s, self.last_rewards = self._seconds(infos), rewards.astype(np.float64)
        self.began_s, self.episode = self._elapsed_s, self._episodes
        self._elapsed_s = np.where(dones, 0.0, self.began_s + self.last_dt_s)
        self._episodes = self.episode + dones
        return observation, rewards, dones, infos

    def _seconds(self, infos: list[dict[str, Any]]) -> Floats:
        told: Any = self.venv
        if self._is_told_at_once:
            return np.array(told.last_dt_s, np.float64)
        try:
            dt_s = np.array([info["dt_s"] for info in infos], np.float64)
        except KeyError:
            raise UserError("info without dt_s: expected the seconds that the step took") from None
        if not (np.isfinite(dt_s) & (dt_s >= 0)).all():
            raise UserError(f"dt_s={dt_s.tolist()}: expected 0 or more seconds")
        return dt_s


class EventTime(RolloutBuffer):
    """Generalised advantages (Schulman et al., 2016) with a discount of each step's own.

    With `group` = n > 1, environments 0..n-1, n..2n-1 and so on are groups that meet the same
    outside events at the same time of the same episode; the advantage of each is its return less
    the mean return of the others then (`leave_one_out`), and GAE where no other was there.
    """

    def __init__(self, *args: Any, horizon_s: float, group: int = 1, **kwargs: Any) -> None:
        self.horizon_s, self.group = horizon_s, group
        self.clock: EventClock | None = None
        super().__init__(*args, **kwargs)
        if not horizon_s > 0:
            raise UserError(f"horizon_s={horizon_s}: expected more than 0 seconds")
        if self.gamma != 1:
            raise UserError(f"gamma={self.gamma}: expected 1, time is discounted by horizon_s")
        if group < 1 or self.n_envs % group:
            raise UserError(f"group={group}: expected a divisor of the {self.n_envs} environments")

    def attach(self, clock: Any) -> None:
        """`clock` is the algorithm's environment, `model.get_env()`. Raises UserError when its
        outermost wrapper is not an EventClock."""
        if not isinstance(clock, EventClock):
            raise UserError(f"attach({type(clock).__name__}): expected an EventClock, outermost")
        self.clock = clock

    def reset(self) -> None:
        self.dt_s, self.began_s = np.zeros((2, self.buffer_size, self.n_envs))
        self.episode = np.zeros((self.buffer_size, self.n_envs), np.int64)
        super().reset()

    def add(self, *args: Any, **kwargs: Any) -> None:
        """SB3 has added the value behind a truncated step to its reward as if it took no time.
        Raises UserError before `attach`."""
        if self.clock is None:
            raise UserError("rollout buffer without a clock: expected attach(model.get_env())")
        clock, t = self.clock, self.pos
        self.dt_s[t], self.began_s[t], self.episode[t] = (
            clock.last_dt_s,
            clock.began_s,
            clock.episode,
        )
        obs, action, reward, *rest = args
        behind = reward - clock.last_rewards
        reward = clock.last_rewards + np.exp(-self.dt_s[t] / self.horizon_s) * behind
        super().add(obs, action, reward, *rest, **kwargs)

    def compute_returns_and_advantage(
        self, last_values: Tensor, dones: npt.NDArray[np.bool_]
    ) -> None:
        last = last_values.detach().cpu().numpy().flatten()
        self.advantages = self._advantages(last, dones, self.gae_lambda).astype(np.float32)
        self.returns = self.advantages + self.values
        if self.group > 1:
            to_go = self._advantages(last, dones, 1.0) + self.values
            others = leave_one_out(to_go, self.began_s, self.episode, self.group)
            better = np.where(np.isnan(others), self.advantages, to_go - others)
            self.advantages = better.astype(np.float32)

    def _advantages(self, last: Floats, dones: npt.NDArray[np.bool_], gae_lambda: float) -> Floats:
        discount = np.exp(-self.dt_s / self.horizon_s)
        following, continues = last, 1.0 - dones
        advantages, ahead_of_it = np.zeros((self.buffer_size, self.n_envs)), np.zeros(self.n_envs)
        for t in reversed(range(self.buffer_size)):
            ahead = discount[t] * continues
            delta = self.rewards[t] + ahead * following - self.values[t]
            advantages[t] = ahead_of_it = delta + ahead * gae_lambda * ahead_of_it
            following, continues = self.values[t], 1.0 - self.episode_starts[t]
        return advantages


class EventTimeBuffer(EventTime, RolloutBuffer):
    """For PPO and A2C."""


class EventTimeDictBuffer(EventTime, DictRolloutBuffer):
    """For PPO and A2C with Dict observations."""


class EventTimeMaskableBuffer(EventTime, MaskableRolloutBuffer):
    """For MaskablePPO."""


class EventTimeMaskableDictBuffer(EventTime, MaskableDictRolloutBuffer):
    """For MaskablePPO with Dict observations."""


def leave_one_out(returns: Floats, time_s: Floats, episode: Numbers, group: int) -> Floats:
    """Of each step, the mean over the others of its group of their return-to-go at the same
    time of the same episode, linear between their decisions; NaN where none of them was there.

    All [T, P], in order of time. Where decisions of one coincide, its last at that time counts.
    """
    total, count = np.zeros(returns.shape), np.zeros(returns.shape, np.int64)
    for first in range(0, returns.shape[1], group):
        for i in range(first, first + group):
            for j in range(first, first + group):
                if i != j:
                    there = return_at(returns, time_s, episode, j, time_s[:, i], episode[:, i])
                    is_there = ~np.isnan(there)
                    total[is_there, i] += there[is_there]
                    count[:, i] += is_there
    return np.divide(total, count, out=np.full(returns.shape, np.nan), where=count > 0)


def return_at(
    returns: Floats, time_s: Floats, episode: Numbers, j: int, at_s: Floats, of: Numbers
) -> Floats:
    """Return-to-go of environment j at times `at_s` of episodes `of`; NaN outside what it made."""
    span_s = float(max(time_s.max(), at_s.max())) + 1.0
    known, asked = time_s[:, j] + episode[:, j] * span_s, at_s + of * span_s
    before = np.searchsorted(known, asked, side="right") - 1
    after = np.minimum(before + 1, len(known) - 1)
    is_exact = (before >= 0) & (known[before] == asked)
    is_between = (before >= 0) & (after > before) & (episode[before, j] == episode[after, j])
    width = np.where(is_between & ~is_exact, known[after] - known[before], 1.0)
    share = np.where(is_exact, 0.0, (asked - known[before]) / width)
    value = returns[before, j] + share * (returns[after, j] - returns[before, j])
    return np.where(is_exact | is_between, value, np.nan)
