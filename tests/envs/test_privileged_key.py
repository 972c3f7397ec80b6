"""The privileged key of the observation: there when asked for, and of no use to who acts."""

from collections.abc import Callable
from copy import deepcopy
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from aegaeon_rl.policies.learned import Learned
from aegaeon_rl.policies.registry import make_policy
from envs.observation import feature_spec
from envs.pool_env import PoolEnv
from envs.privileged import H, W
from envs.scenario import ScenarioSpec
from envs.vector import PoolVecEnv, PoolVectorEnv
from runtime.emulator.tables import Sim
from runtime.pool.features import C, F, I

MakeEnv = Callable[..., PoolEnv]
MakeVector = Callable[..., PoolVectorEnv]


def test_space_has_the_key_only_when_asked_for(make_env: MakeEnv) -> None:
    plain, asked = make_env(0), make_env(0, privileged=True)
    assert "privileged" not in plain.observation_space.spaces  # type: ignore[attr-defined]
    spaces: Any = asked.observation_space
    assert spaces["privileged"].shape == (8 * H + W,)
    assert {k: v for k, v in spaces.items() if k != "privileged"} == dict(
        plain.observation_space.items()  # type: ignore[attr-defined]
    )


def test_env_with_the_key_passes_the_checker(scenario: ScenarioSpec) -> None:
    check_env(gym.make("aegaeon/Pool-v0", scenario=scenario, privileged=True).unwrapped)


def test_key_adds_to_the_observation_and_changes_nothing_else(make_env: MakeEnv) -> None:
    plain, asked = make_env(2), make_env(2, privileged=True)
    rng, seen = np.random.default_rng(2), []
    for _ in range(150):
        action = np.int64(rng.choice(np.flatnonzero(plain.action_masks())))
        a, b = plain.step(action), asked.step(action)
        assert b[0] in asked.observation_space
        seen.append(b[0].pop("privileged"))
        assert all(np.array_equal(a[0][key], b[0][key]) for key in a[0])
        assert a[0].keys() == b[0].keys()
        assert a[1:4] == b[1:4]
        if a[3]:
            plain.reset(), asked.reset()
    kept = deepcopy(seen)
    asked.reset(seed=9)
    assert all(np.array_equal(x, y) for x, y in zip(seen, kept, strict=True))
    assert len({values.tobytes() for values in seen}) > 50


def test_rows_of_the_key_are_the_rows_of_the_observation(make_env: MakeEnv) -> None:
    env = make_env(1, privileged=True)
    sim: Any = env.pools.sims[0]
    for _ in range(60):
        observation = env.step(np.int64(env.action_masks().argmax()))[0]
        assert isinstance(sim, Sim)
        future = observation["privileged"].reshape(-1, H)
        rows = observation["rows"].reshape(-1, F)
        open_left = future[:-1, 6]
        is_open = env.pools.buffers.models[0] >= 0
        assert np.all(open_left[~is_open] == 0)
        ready = rows[:, 5] > 0
        assert np.all(open_left[ready & is_open] > 0)


def test_faces_show_the_same_key(scenario: ScenarioSpec, make_vector: MakeVector) -> None:
    env = PoolEnv(scenario, rows=8, privileged=True)
    vector = make_vector(2, autoreset_mode="SameStep", privileged=True)
    vec = PoolVecEnv(scenario, 2, rows=8, privileged=True)
    vec.seed(5)
    single, batch, sb3 = env.reset(seed=5)[0], vector.reset(seed=5)[0], vec.reset()
    for _ in range(80):
        assert np.array_equal(batch["privileged"], sb3["privileged"])
        assert np.array_equal(single["privileged"], batch["privileged"][0])
        actions = vector.action_masks().argmax(axis=1)
        single, _, _, is_over, _ = env.step(actions[0])
        batch, _, _, ends, infos = vector.step(actions)
        sb3, _, _, listed = vec.step(actions)
        for p in np.flatnonzero(ends):
            final = infos["final_obs"][p]["privileged"]
            assert np.array_equal(listed[p]["terminal_observation"]["privileged"], final)
            assert not np.array_equal(final, batch["privileged"][p])
        if is_over:
            single = env.reset()[0]


def test_weights_of_an_acting_policy_have_no_input_for_it() -> None:
    """The deployed network sees a row, the instance and the pool."""
    policy = make_policy("learned")
    assert isinstance(policy, Learned)
    assert policy.weights.w1.shape[1] == F + I + C
    assert set(feature_spec()) == {"schema", "version", "hash", "rows", "instance", "globals"}
    assert sum(len(feature_spec()[key]) for key in ("rows", "instance", "globals")) == F + I + C


@pytest.mark.parametrize("privileged", [False, True])
def test_environment_describes_what_it_shows(make_env: MakeEnv, privileged: bool) -> None:
    text = make_env(0, privileged=privileged).describe_observation()
    assert text.startswith("Feature spec ")
    assert "rows [128]" in text
    assert ("privileged [72]" in text) == privileged
