"""Event-time discounting for SB3: a step that took dt seconds discounts by exp(-dt / horizon).

For semi-Markov decision problems, where steps differ in length by orders of magnitude. Construct
the algorithm with gamma = 1 and `attach` the buffer to the environment afterwards: its keyword
arguments are pickled into SB3's zip files. One simplification of the algorithm's remains: the
bootstrap value of a truncated step is added undiscounted by that one step.
"""

from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from sb3_contrib.common.maskable.buffers import MaskableDictRolloutBuffer
from torch import Tensor


class Clocked(Protocol):
    """An environment that says how long its last step took."""

    @property
    def last_dt_s(self) -> npt.NDArray[np.float64]:
        """Seconds [pools]."""


class EventTimeBuffer(MaskableDictRolloutBuffer):
    """Letters: T steps, P pools. `dt_s` [T, P]."""

    def __init__(self, *args: Any, horizon_s: float, **kwargs: Any) -> None:
        self.horizon_s = horizon_s
        self.clock: Clocked | None = None
        super().__init__(*args, **kwargs)

    def attach(self, clock: Clocked) -> None:
        self.clock = clock

    def reset(self) -> None:
        self.dt_s = np.zeros((self.buffer_size, self.n_envs))
        super().reset()

    def add(self, *args: Any, **kwargs: Any) -> None:
        assert self.clock is not None, "attach() the environment first"
        self.dt_s[self.pos] = self.clock.last_dt_s
        super().add(*args, **kwargs)

    def compute_returns_and_advantage(
        self, last_values: Tensor, dones: npt.NDArray[np.bool_]
    ) -> None:
        """Generalised advantages (Schulman et al., 2016) with a discount of each step's own."""
        discount = np.exp(-self.dt_s / self.horizon_s)
        following = last_values.clone().cpu().numpy().flatten()
        continues = 1.0 - dones.astype(np.float32)
        advantage = np.zeros(self.n_envs)
        for t in reversed(range(self.buffer_size)):
            if t < self.buffer_size - 1:
                continues = 1.0 - self.episode_starts[t + 1]
                following = self.values[t + 1]
            ahead = discount[t] * continues
            delta = self.rewards[t] + ahead * following - self.values[t]
            advantage = delta + ahead * self.gae_lambda * advantage
            self.advantages[t] = advantage
        self.returns = self.advantages + self.values
