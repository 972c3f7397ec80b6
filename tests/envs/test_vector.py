"""The vector faces: resets, infos, and the same numbers as the single environment."""

from collections.abc import Callable
from copy import deepcopy
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from sb3_contrib import MaskablePPO
from sb3_contrib.common.maskable.utils import get_action_masks, is_masking_supported

from envs.pool_env import PoolEnv
from envs.scenario import ScenarioSpec
from envs.vector import PoolVecEnv, PoolVectorEnv
from runtime.errors import UserError

MODES = [AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP]
MakeVector = Callable[..., PoolVectorEnv]
MakeVec = Callable[..., PoolVecEnv]


def first_allowed(masks: np.ndarray) -> np.ndarray:
    return masks.argmax(axis=-1)


def drawn(rng: np.random.Generator, masks: np.ndarray) -> np.ndarray:
    """An allowed action for each pool."""
    return np.array([rng.choice(np.flatnonzero(mask)) for mask in masks])


def same(a: dict[str, Any], b: dict[str, Any]) -> bool:
    return a.keys() == b.keys() and all(np.array_equal(a[k], b[k]) for k in a)


def test_make_vec_gives_the_vector_environment(scenario: ScenarioSpec) -> None:
    vector = gym.make_vec(
        "aegaeon/Pool-v0", 3, vectorization_mode="vector_entry_point", scenario=scenario
    )
    assert isinstance(vector.unwrapped, PoolVectorEnv)
    assert vector.metadata["autoreset_mode"] is AutoresetMode.NEXT_STEP
    observation, infos = vector.reset(seed=1)
    assert observation in vector.observation_space
    assert infos["dt_s"].tolist() == [0, 0, 0]
    vector.action_space.seed(1)
    for _ in range(20):
        observation, reward, terminated, truncated, infos = vector.step(
            vector.action_space.sample()
        )
        assert observation in vector.observation_space
        assert reward.shape == terminated.shape == truncated.shape == infos["dt_s"].shape == (3,)
        assert not terminated.any()


def test_make_vec_takes_the_single_environment_too(scenario: ScenarioSpec) -> None:
    vector = gym.make_vec("aegaeon/Pool-v0", 2, vectorization_mode="sync", scenario=scenario)
    observation, _ = vector.reset(seed=1)
    assert observation in vector.observation_space


@pytest.mark.parametrize("mode", MODES)
def test_vector_of_one_is_gymnasiums_vector_of_the_single_environment(
    scenario: ScenarioSpec, make_vector: MakeVector, mode: AutoresetMode
) -> None:
    ours = make_vector(1, autoreset_mode=mode)
    theirs = SyncVectorEnv([lambda: PoolEnv(scenario, rows=8)], autoreset_mode=mode)
    assert ours.observation_space == theirs.observation_space
    assert ours.action_space == theirs.action_space
    rng = np.random.default_rng(4)
    mine, theirs_first = ours.reset(seed=7)[0], theirs.reset(seed=7)[0]
    assert same(mine, theirs_first)
    episodes = 0
    while episodes < 3:
        actions = drawn(rng, mine["action_mask"])
        a, b = ours.step(actions), theirs.step(actions)
        mine = a[0]
        assert same(mine, b[0])
        assert [x.tolist() for x in a[1:4]] == [x.tolist() for x in b[1:4]]
        assert a[4].get("_final_obs", False) == b[4].get("_final_obs", False)
        if "final_obs" in b[4]:
            assert same(a[4]["final_obs"][0], b[4]["final_obs"][0])
        episodes += int(a[3][0])


def test_three_faces_with_a_seed_give_the_same_rewards(
    scenario: ScenarioSpec, make_vector: MakeVector, make_vec: MakeVec
) -> None:
    env = PoolEnv(scenario, rows=8)
    vector, vec = make_vector(3, autoreset_mode="SameStep"), make_vec(3)
    single, _ = env.reset(seed=11)
    batch, _ = vector.reset(seed=11)
    vec.seed(11)
    sb3 = vec.reset()
    rng, episodes = np.random.default_rng(0), 0
    while episodes < 2:
        assert same(batch, sb3)
        assert same(single, {name: values[0] for name, values in batch.items()})
        actions = drawn(rng, vector.action_masks())
        single, reward, _, truncated, info = env.step(actions[0])
        batch, rewards, _, truncations, infos = vector.step(actions)
        sb3, sb3_rewards, dones, _ = vec.step(actions)
        assert rewards[0] == reward
        assert sb3_rewards.tolist() == rewards.astype(np.float32).tolist()
        assert infos["dt_s"][0] == info["dt_s"]
        assert vec.last_dt_s.tolist() == infos["dt_s"].tolist()
        assert truncations[0] == truncated
        assert dones.tolist() == truncations.tolist()
        if truncated:
            episodes += 1
            single, _ = env.reset()


def test_pools_of_one_vector_play_different_episodes(make_vector: MakeVector) -> None:
    observation, _ = make_vector(4).reset(seed=0)
    assert len({values.tobytes() for values in observation["globals"]}) == 4


def test_vector_is_a_function_of_seed_and_actions(make_vector: MakeVector) -> None:
    first, second = make_vector(4), make_vector(4)
    assert same(first.reset(seed=5)[0], second.reset(seed=5)[0])
    rng = np.random.default_rng(5)
    for _ in range(300):
        actions = drawn(rng, first.action_masks())
        a, b = first.step(actions), second.step(actions)
        assert same(a[0], b[0])
        assert [x.tolist() for x in a[1:4]] == [x.tolist() for x in b[1:4]]
    assert not same(first.reset(seed=6)[0], second.reset(seed=5)[0])


def test_next_step_resets_in_the_step_after_the_last(make_vector: MakeVector) -> None:
    vector = make_vector(4)
    vector.reset(seed=1)
    ended, resets = np.zeros(4, bool), 0
    rng = np.random.default_rng(1)
    while resets < 6:
        actions = drawn(rng, vector.action_masks())
        actions[ended] = 0  # ignored
        _, reward, terminated, truncated, infos = vector.step(actions)
        assert not terminated.any()
        assert np.all(reward[ended] == 0)
        assert np.all(infos["dt_s"][ended] == 0)
        assert not truncated[ended].any()
        assert not vector.pools.is_over[ended].any()
        assert "final_obs" not in infos
        resets += int(ended.sum())
        ended = truncated


def test_same_step_shows_the_next_episode_and_keeps_the_last_observation(
    make_vector: MakeVector,
) -> None:
    vector = make_vector(4, autoreset_mode="SameStep")
    vector.reset(seed=1)
    rng, ends = np.random.default_rng(1), 0
    while ends < 6:
        observation, _, _, truncated, infos = vector.step(drawn(rng, vector.action_masks()))
        assert not vector.pools.is_over.any()
        assert same(observation, vector.pools.observation(slice(None)))
        assert ("final_obs" in infos) == truncated.any()
        for p in np.flatnonzero(truncated):
            final = infos["final_obs"][p]
            assert final in vector.single_observation_space
            assert np.flatnonzero(final["action_mask"]).tolist() == [16]
            assert final["globals"].tolist() != observation["globals"][p].tolist()
        if truncated.any():
            assert infos["_final_obs"].tolist() == truncated.tolist()
            assert [f is None for f in infos["final_obs"]] == (~truncated).tolist()
        ends += int(truncated.sum())


@pytest.mark.parametrize("mode", MODES)
def test_returned_batches_never_change_later(make_vector: MakeVector, mode: AutoresetMode) -> None:
    vector = make_vector(3, autoreset_mode=mode)
    rng, kept = np.random.default_rng(2), [(vector.reset(seed=2)[0],)]
    for _ in range(150):
        kept.append(vector.step(drawn(rng, vector.action_masks())))
    copies = deepcopy(kept)
    vector.reset()
    for _ in range(20):
        vector.step(first_allowed(vector.action_masks()))
    for values, copied in zip(kept, copies, strict=True):
        assert same(values[0], copied[0])
        for array, copied_array in zip(values[1:4], copied[1:4], strict=True):
            assert np.array_equal(array, copied_array)
        if len(values) > 4:
            assert np.array_equal(values[4]["dt_s"], copied[4]["dt_s"])


def test_vector_refuses_what_it_cannot_do(make_vector: MakeVector) -> None:
    with pytest.raises(UserError, match="autoreset_mode=Disabled: expected NextStep or SameStep"):
        make_vector(2, autoreset_mode=AutoresetMode.DISABLED)
    with pytest.raises(UserError, match="num_envs=0"):
        make_vector(0)
    vector = make_vector(2)
    with pytest.raises(gym.error.ResetNeeded, match=r"call reset\(\)"):
        vector.step(np.zeros(2, np.int64))
    vector.reset(seed=0)
    for actions in ([0], [0, 0, 0], [0, 17], [-1, 0]):
        with pytest.raises(UserError, match="expected 2 from 0 to 16"):
            vector.step(np.array(actions))


def test_vec_env_closes_an_episode_as_sb3_expects(make_vec: MakeVec) -> None:
    vec = make_vec(3)
    vec.seed(8)
    vec.reset()
    returns, lengths, ends = np.zeros(3), np.zeros(3, int), 0
    rng = np.random.default_rng(8)
    while ends < 5:
        observation, reward, done, infos = vec.step(drawn(rng, vec.action_masks()))
        assert reward.dtype == np.float32
        returns += reward
        lengths += 1
        for p in range(3):
            assert bool(infos[p]) == bool(done[p])
            if done[p]:
                ends += 1
                assert infos[p]["TimeLimit.truncated"] is True
                assert infos[p]["terminal_observation"] in vec.observation_space
                assert infos[p]["episode"]["r"] == pytest.approx(returns[p], rel=1e-4)
                assert infos[p]["episode"]["l"] == lengths[p]
                returns[p], lengths[p] = 0.0, 0
        assert {name: values[0] for name, values in observation.items()} in vec.observation_space
    vec.close()


def test_vec_env_answers_for_its_attributes(make_vec: MakeVec) -> None:
    vec = make_vec(3)
    vec.reset()
    assert vec.get_attr("render_mode") == [None] * 3
    assert not vec.has_attr("no_such_attribute")
    vec.set_attr("mark", 5)
    assert vec.get_attr("mark", [0, 2]) == [5, 5]
    assert vec.env_is_wrapped(gym.Wrapper) == [False] * 3
    masks = vec.env_method("action_masks", indices=[1])
    assert np.array_equal(masks, vec.action_masks()[[1]])


def test_sb3_contrib_learns_on_masked_pools(make_vec: MakeVec) -> None:
    vec = make_vec(4)
    assert is_masking_supported(vec)
    model = MaskablePPO("MultiInputPolicy", vec, n_steps=16, batch_size=32, n_epochs=1, seed=0)
    model.learn(64)
    assert model.num_timesteps == 64
    observation = vec.reset()
    for _ in range(30):
        masks = get_action_masks(vec)
        assert np.array_equal(masks, observation["action_mask"].astype(bool))
        actions, _ = model.predict(observation, action_masks=masks)
        assert masks[np.arange(4), actions].all()
        observation, _, _, _ = vec.step(actions)


def test_pools_of_a_group_play_the_same_episodes(make_vector: MakeVector) -> None:
    env = make_vector(6, group=3)
    env.reset(seed=4)
    arrivals = [sim.arrivals.time_ns.tobytes() for sim in env.pools.sims if sim is not None]
    assert arrivals[:3] == [arrivals[0]] * 3
    assert arrivals[3:] == [arrivals[3]] * 3
    assert arrivals[0] != arrivals[3]
    with pytest.raises(UserError, match=r"group=4: expected a divisor of num_envs=6"):
        make_vector(6, group=4)
