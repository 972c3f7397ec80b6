"""The event-time buffer against plain sums, and against SB3's own where no time passes."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from sb3_contrib.common.maskable.buffers import MaskableDictRolloutBuffer

from aegaeon_rl.training.smdp import EventTimeBuffer

T, P = 9, 3
OBSERVATION = spaces.Dict({"x": spaces.Box(0, 1, (2,), np.float32)})
ACTION = spaces.Discrete(4)
LAMBDA = 0.9


class Played:
    """Made-up steps: rewards, values, starts [T, P], and the values and ends after the last."""

    def __init__(self, seed: int, mean_dt_s: float) -> None:
        rng = np.random.default_rng(seed)
        self.rewards, self.values = rng.normal(size=(2, T, P)).astype(np.float32)
        self.starts = rng.random((T, P)) < 0.3
        self.dt_s = rng.exponential(1.0, (T, P)) * mean_dt_s
        self.last_values = rng.normal(size=P).astype(np.float32)
        self.dones = rng.random(P) < 0.5

    def into(self, buffer: MaskableDictRolloutBuffer) -> Any:
        """`buffer`, filled step by step as SB3 does, and computed."""
        clock = SimpleNamespace(last_dt_s=np.zeros(P))
        if isinstance(buffer, EventTimeBuffer):
            buffer.attach(clock)
        for t in range(T):
            clock.last_dt_s = self.dt_s[t]
            buffer.add(
                {"x": np.zeros((P, 2), np.float32)},
                np.zeros(P),
                self.rewards[t],
                self.starts[t],
                torch.tensor(self.values[t]),
                torch.zeros(P),
                action_masks=np.ones((P, 4)),
            )
        buffer.compute_returns_and_advantage(torch.tensor(self.last_values), self.dones)
        return buffer

    def advantage(self, t: int, p: int, horizon_s: float) -> float:
        """The definition: discounted sum of temporal differences up to the episode's end."""
        total, weight = 0.0, 1.0
        for k in range(t, T):
            is_last = k == T - 1
            ends = self.dones[p] if is_last else self.starts[k + 1, p]
            following = self.last_values[p] if is_last else self.values[k + 1, p]
            ahead = 0.0 if ends else float(np.exp(-self.dt_s[k, p] / horizon_s))
            total += weight * (self.rewards[k, p] + ahead * following - self.values[k, p])
            weight *= ahead * LAMBDA
        return total


def event_time(horizon_s: float) -> EventTimeBuffer:
    options = {"gae_lambda": LAMBDA, "gamma": 1.0, "n_envs": P}
    return EventTimeBuffer(T, OBSERVATION, ACTION, "cpu", horizon_s=horizon_s, **options)


@pytest.mark.parametrize("horizon_s", [0.5, 45.0])
@pytest.mark.parametrize("seed", range(4))
def test_advantages_are_the_sums_of_their_definition(seed: int, horizon_s: float) -> None:
    played = Played(seed, mean_dt_s=2.0)
    buffer = played.into(event_time(horizon_s))
    expected = [[played.advantage(t, p, horizon_s) for p in range(P)] for t in range(T)]
    assert buffer.advantages == pytest.approx(np.array(expected), abs=1e-5)
    assert buffer.returns == pytest.approx(buffer.advantages + played.values, abs=1e-5)


@pytest.mark.parametrize("seed", range(4))
def test_without_time_it_is_sb3s_own_buffer_at_gamma_1(seed: int) -> None:
    played = Played(seed, mean_dt_s=0.0)
    theirs = MaskableDictRolloutBuffer(T, OBSERVATION, ACTION, "cpu", LAMBDA, 1.0, P)
    ours, theirs = played.into(event_time(45.0)), played.into(theirs)
    assert ours.advantages == pytest.approx(theirs.advantages, abs=1e-5)
    assert ours.returns == pytest.approx(theirs.returns, abs=1e-5)


def test_a_second_rollout_forgets_the_first() -> None:
    buffer, again = event_time(3.0), event_time(3.0)
    Played(0, mean_dt_s=2.0).into(buffer)
    buffer.reset()
    second = Played(1, mean_dt_s=2.0)
    assert np.array_equal(second.into(buffer).advantages, second.into(again).advantages)
