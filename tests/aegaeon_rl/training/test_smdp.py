"""Event time against plain sums, and against SB3's own buffers where no time passes."""

from itertools import pairwise
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from hypothesis import given, settings
from hypothesis import strategies as st
from sb3_contrib.common.maskable.buffers import MaskableDictRolloutBuffer, MaskableRolloutBuffer
from stable_baselines3.common.buffers import DictRolloutBuffer, RolloutBuffer
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

from aegaeon_rl.training.smdp import (
    EventClock,
    EventTimeBuffer,
    EventTimeDictBuffer,
    EventTimeMaskableBuffer,
    EventTimeMaskableDictBuffer,
    leave_one_out,
)
from runtime.errors import UserError

T, P = 9, 4
BOX = spaces.Box(0, 1, (2,), np.float32)
DICT = spaces.Dict({"x": BOX})
ACTION = spaces.Discrete(4)
LAMBDA = 0.9
PAIRS = [
    (EventTimeBuffer, RolloutBuffer),
    (EventTimeDictBuffer, DictRolloutBuffer),
    (EventTimeMaskableBuffer, MaskableRolloutBuffer),
    (EventTimeMaskableDictBuffer, MaskableDictRolloutBuffer),
]


class Timed(gym.Env[Any, Any]):
    """An environment of another kind: steps and rewards as its list says; ends where it says."""

    observation_space, action_space = BOX, ACTION

    def __init__(self, steps: list[tuple[float, float, str]]) -> None:
        self.steps, self.done = steps, 0

    def reset(self, **_: Any) -> Any:
        return np.zeros(2, np.float32), {}

    def step(self, action: Any) -> Any:
        dt_s, reward, end = self.steps[self.done]
        self.done += 1
        info = {"dt_s": dt_s}
        return np.zeros(2, np.float32), reward, end == "terminated", end == "truncated", info


class Played:
    """Made-up steps [T, P] of `Timed` environments, and the critic's values of them."""

    def __init__(self, seed: int, mean_dt_s: float) -> None:
        rng = np.random.default_rng(seed)
        self.rewards, self.values = rng.normal(size=(2, T, P)).astype(np.float32)
        self.ends = rng.choice(["", "terminated", "truncated"], (T, P), p=(0.6, 0.2, 0.2))
        self.dt_s = rng.exponential(1.0, (T, P)) * mean_dt_s
        self.dt_s[rng.random((T, P)) < 0.2] = 0.0
        self.last_values, self.terminal = rng.normal(size=(2, P)).astype(np.float32)

    def clock(self) -> EventClock:
        steps = [
            list(zip(self.dt_s[:, p], self.rewards[:, p], self.ends[:, p], strict=True))
            for p in range(P)
        ]
        return EventClock(DummyVecEnv([lambda s=s: Timed(s) for s in steps]))

    def into(self, buffer: Any) -> Any:
        """`buffer`, filled step by step as SB3 does, and computed."""
        clock = self.clock()
        if hasattr(buffer, "attach"):
            buffer.attach(clock)
        clock.reset()
        starts = np.ones(P, bool)
        is_dict = isinstance(buffer.observation_space, spaces.Dict)
        masks = {"action_masks": np.ones((P, 4))} if hasattr(buffer, "action_masks") else {}
        for t in range(T):
            _, rewards, dones, infos = clock.step(np.zeros(P, int))
            for p in range(P):  # as SB3's collect_rollouts with gamma = 1
                if infos[p].get("TimeLimit.truncated", False):
                    rewards[p] += self.terminal[p]
            buffer.add(
                {"x": np.zeros((P, 2))} if is_dict else np.zeros((P, 2)),
                np.zeros(P),
                rewards,
                starts,
                torch.tensor(self.values[t]),
                torch.zeros(P),
                **masks,
            )
            starts = dones
        buffer.compute_returns_and_advantage(torch.tensor(self.last_values), dones)
        return buffer

    def temporal_difference(self, t: int, p: int, horizon_s: float) -> tuple[float, float]:
        """(reward plus discounted value behind less value before, discount; 0 at an end)."""
        discount = float(np.exp(-self.dt_s[t, p] / horizon_s))
        behind = self.last_values[p] if t == T - 1 else self.values[t + 1, p]
        behind = {"truncated": self.terminal[p], "terminated": 0.0}.get(self.ends[t, p], behind)
        delta = self.rewards[t, p] + discount * behind - self.values[t, p]
        return float(delta), 0.0 if self.ends[t, p] else discount

    def advantage(self, t: int, p: int, horizon_s: float, gae_lambda: float = LAMBDA) -> float:
        """The definition: discounted sum of temporal differences up to the episode's end."""
        total, weight = 0.0, 1.0
        for k in range(t, T):
            delta, discount = self.temporal_difference(k, p, horizon_s)
            total += weight * delta
            weight *= discount * gae_lambda
        return total


def make(kind: Any, **options: Any) -> Any:
    space = DICT if "Dict" in kind.__name__ else BOX
    stated = {"gae_lambda": LAMBDA, "gamma": 1.0, "n_envs": P} | options
    return kind(T, space, ACTION, "cpu", **stated)


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 1 << 30),
    horizon_s=st.sampled_from([0.5, 45.0, float("inf")]),
    kind=st.sampled_from([ours for ours, _ in PAIRS]),
)
def test_advantages_are_the_sums_of_their_definition(
    seed: int, horizon_s: float, kind: Any
) -> None:
    played = Played(seed, mean_dt_s=2.0)
    buffer = played.into(make(kind, horizon_s=horizon_s))
    expected = [[played.advantage(t, p, horizon_s) for p in range(P)] for t in range(T)]
    assert buffer.advantages == pytest.approx(np.array(expected), abs=1e-4)
    assert buffer.returns == pytest.approx(buffer.advantages + played.values, abs=1e-4)


@pytest.mark.parametrize(("ours", "theirs"), PAIRS)
@pytest.mark.parametrize("seed", range(3))
def test_without_time_it_is_sb3s_own_buffer_at_gamma_1(seed: int, ours: Any, theirs: Any) -> None:
    played = Played(seed, mean_dt_s=0.0)
    mine, plain = played.into(make(ours, horizon_s=45.0)), played.into(make(theirs))
    assert mine.advantages == pytest.approx(plain.advantages, abs=1e-5)
    assert mine.returns == pytest.approx(plain.returns, abs=1e-5)
    np.random.seed(seed)
    first = next(iter(mine.get(8)))
    np.random.seed(seed)
    second = next(iter(plain.get(8)))
    assert torch.allclose(first.advantages, second.advantages, atol=1e-5)


def test_a_second_rollout_forgets_the_first() -> None:
    buffer, again = (make(EventTimeBuffer, horizon_s=3.0) for _ in range(2))
    Played(0, mean_dt_s=2.0).into(buffer)
    buffer.reset()
    second = Played(1, mean_dt_s=2.0)
    assert np.array_equal(second.into(buffer).advantages, second.into(again).advantages)


def plain_baseline(
    returns: np.ndarray, time_s: np.ndarray, episode: np.ndarray, group: int, t: int, i: int
) -> float:
    """The definition, step by step: where is each of the others at this time of this episode?"""
    first, now, found = i // group * group, time_s[t, i], []
    for j in range(first, first + group):
        points = [
            (time_s[k, j], returns[k, j])
            for k in range(len(returns))
            if episode[k, j] == episode[t, i]
        ]
        exact = [value for at, value in points if at == now]
        between = [(a, b) for a, b in pairwise(points) if a[0] < now < b[0]]
        if i != j and exact:
            found.append(exact[-1])
        elif i != j and between:
            (at, value), (next_at, next_value) = between[0]
            found.append(value + (now - at) / (next_at - at) * (next_value - value))
    return float(np.mean(found)) if found else float("nan")


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 1 << 30), group=st.sampled_from([2, 4]))
def test_baseline_is_the_others_return_at_the_same_time(seed: int, group: int) -> None:
    rng = np.random.default_rng(seed)
    returns = rng.normal(size=(T, P))
    ends = rng.random((T, P)) < 0.25
    dt_s = rng.integers(0, 4, (T, P)) / 2  # times often coincide
    time_s, episode = np.zeros((T, P)), np.zeros((T, P), np.int64)
    for t in range(1, T):
        time_s[t] = np.where(ends[t - 1], 0.0, time_s[t - 1] + dt_s[t - 1])
        episode[t] = episode[t - 1] + ends[t - 1]
    found = leave_one_out(returns, time_s, episode, group)
    expected = np.array(
        [
            [plain_baseline(returns, time_s, episode, group, t, i) for i in range(P)]
            for t in range(T)
        ]
    )
    assert found == pytest.approx(expected, nan_ok=True)


def test_a_groups_advantage_is_the_return_less_the_others() -> None:
    played, horizon_s = Played(3, mean_dt_s=2.0), 5.0
    buffer = played.into(make(EventTimeBuffer, horizon_s=horizon_s, group=2))
    alone = played.into(make(EventTimeBuffer, horizon_s=horizon_s))
    to_go = np.array(
        [
            [played.advantage(t, p, horizon_s, 1.0) + played.values[t, p] for p in range(P)]
            for t in range(T)
        ]
    )
    others = leave_one_out(to_go, buffer.began_s, buffer.episode, 2)
    assert 0 < np.isnan(others).sum() < T * P
    expected = np.where(np.isnan(others), alone.advantages, to_go - others)
    assert buffer.advantages == pytest.approx(expected, abs=1e-4)
    assert np.array_equal(buffer.returns, alone.returns)  # what the critic learns stays


def test_environments_that_do_the_same_have_no_advantage() -> None:
    played = Played(5, mean_dt_s=1.0)
    for name in ("rewards", "values", "ends", "dt_s", "last_values", "terminal"):
        array = getattr(played, name)
        setattr(played, name, np.repeat(array[..., :1], P, axis=-1))
    played.dt_s += 0.1
    buffer = played.into(make(EventTimeBuffer, horizon_s=5.0, group=P))
    assert buffer.advantages == pytest.approx(np.zeros((T, P)), abs=1e-6)


def test_clock_says_where_in_its_episode_each_step_began() -> None:
    clock = EventClock(DummyVecEnv([lambda: Timed([(1.5, 0, ""), (2.0, 0, "terminated")] * 2)]))
    clock.reset()
    seen = []
    for _ in range(3):
        clock.step(np.zeros(1, int))
        seen.append((clock.began_s[0], clock.last_dt_s[0], clock.episode[0]))
    assert seen == [(0.0, 1.5, 0), (1.5, 2.0, 0), (0.0, 1.5, 1)]
    clock.reset()
    assert clock.episode.tolist() == clock.began_s.tolist() == [0]


@pytest.mark.parametrize("dt_s", [-1.0, float("nan"), float("inf")])
def test_impossible_seconds_are_refused(dt_s: float) -> None:
    clock = EventClock(DummyVecEnv([lambda: Timed([(dt_s, 0, "")])]))
    clock.reset()
    with pytest.raises(UserError, match=r"dt_s=\[.*\]: expected 0 or more seconds"):
        clock.step(np.zeros(1, int))


def test_what_cannot_work_is_refused() -> None:
    wrong = {"horizon_s": 0.0}, {"horizon_s": 1.0, "group": 3}, {"horizon_s": 1.0, "gamma": 0.99}
    for options in wrong:
        with pytest.raises(UserError, match="expected"):
            make(EventTimeBuffer, **options)
    buffer, played = make(EventTimeBuffer, horizon_s=1.0), Played(0, 1.0)
    with pytest.raises(UserError, match=r"attach\(VecNormalize\): expected an EventClock"):
        buffer.attach(VecNormalize(played.clock()))
    with pytest.raises(UserError, match=r"without a clock: expected attach\(model.get_env"):
        buffer.add(np.zeros((P, 2)), np.zeros(P), np.zeros(P), np.ones(P), None, None)
    silent = EventClock(DummyVecEnv([lambda: gym.make("CartPole-v1")]))
    silent.reset()
    with pytest.raises(UserError, match="info without dt_s"):
        silent.step(np.zeros(1, int))
