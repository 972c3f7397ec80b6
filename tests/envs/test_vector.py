"""The vector faces: resets, infos, and the same numbers as the single environment."""

import json
import pickle
from collections.abc import Callable
from copy import deepcopy
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.envs.registration import EnvSpec
from gymnasium.utils.env_match import check_environments_match
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from sb3_contrib import MaskablePPO
from sb3_contrib.common.maskable.evaluation import evaluate_policy
from sb3_contrib.common.maskable.utils import get_action_masks, is_masking_supported
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv

from envs.pool_env import PoolEnv
from envs.scenario import ScenarioSpec
from envs.vector import NOTHING, PoolVecEnv, PoolVectorEnv
from runtime.errors import UserError

MODES = [AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP]  # that step() alone resets in
JSON = {"traces": ["market_demo"], "pools": ["h100x4"], "warm_s": 5.0, "load_scale": [0.5, 1.0]}
MakeVector = Callable[..., PoolVectorEnv]
MakeVec = Callable[..., PoolVecEnv]


def first_allowed(masks: np.ndarray) -> np.ndarray:
    return masks.argmax(axis=-1)


def drawn(rng: np.random.Generator, masks: np.ndarray) -> np.ndarray:
    """An allowed action for each pool."""
    return np.array([rng.choice(np.flatnonzero(mask)) for mask in masks])


def same(a: dict[str, Any], b: dict[str, Any]) -> bool:
    return a.keys() == b.keys() and all(np.array_equal(a[k], b[k]) for k in a)


def assert_alike(first: PoolVectorEnv, second: PoolVectorEnv, steps: int) -> None:
    """From the same seed and by the same actions."""
    assert same(first.reset(seed=5)[0], second.reset(seed=5)[0])
    rng = np.random.default_rng(5)
    for _ in range(steps):
        actions = drawn(rng, first.action_masks())
        a, b = first.step(actions), second.step(actions)
        assert same(a[0], b[0])
        assert [x.tolist() for x in a[1:4]] == [x.tolist() for x in b[1:4]]


def pickle_copy(value: Any) -> Any:
    return pickle.loads(pickle.dumps(value))


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


def test_specs_with_json_arguments_make_the_same_again(scenario: ScenarioSpec) -> None:
    """As JSON, by id with the module, single and vector."""
    plain = {"scenario": JSON, "rows": 4, "quotas_s": [0.1, 0.3]}
    env = gym.make("envs:aegaeon/Pool-v0", **plain)
    assert env.spec is not None
    text = env.spec.to_json()
    assert json.loads(text)["kwargs"] == plain
    again = gym.make(EnvSpec.from_json(text))
    check_environments_match(env, again, 50)
    options: dict[str, Any] = {"vectorization_mode": "vector_entry_point"}
    vector = gym.make_vec(
        "envs:aegaeon/Pool-v0", num_envs=2, **options, autoreset_mode="SameStep", **plain
    )
    assert vector.spec is not None
    another = gym.make_vec(EnvSpec.from_json(vector.spec.to_json()))
    assert another.num_envs == 2
    assert another.metadata["autoreset_mode"] is AutoresetMode.SAME_STEP
    assert same(vector.reset(seed=1)[0], another.reset(seed=1)[0])
    single, _ = env.reset(seed=2)
    assert same(single, {name: values[1] for name, values in vector.reset(seed=1)[0].items()})


def test_make_vec_takes_the_single_environment_too(scenario: ScenarioSpec) -> None:
    vector = gym.make_vec("aegaeon/Pool-v0", 2, vectorization_mode="sync", scenario=scenario)
    observation, _ = vector.reset(seed=1)
    assert observation in vector.observation_space


@pytest.mark.parametrize("mode", [AutoresetMode.NEXT_STEP, AutoresetMode.DISABLED])
def test_vector_of_one_matches_gymnasiums_by_its_own_checker(
    scenario: ScenarioSpec, make_vector: MakeVector, mode: AutoresetMode
) -> None:
    theirs = SyncVectorEnv([lambda: PoolEnv(scenario, rows=8)], autoreset_mode=mode)
    ours = make_vector(1, autoreset_mode=mode)
    check_environments_match(ours, theirs, 300, info_comparison="superset")


@pytest.mark.parametrize("mode", AutoresetMode)
def test_vector_is_gymnasiums_vector_of_single_environments(
    scenario: ScenarioSpec, make_vector: MakeVector, mode: AutoresetMode
) -> None:
    ours = make_vector(3, autoreset_mode=mode)
    theirs = SyncVectorEnv([lambda: PoolEnv(scenario, rows=8)] * 3, autoreset_mode=mode)
    assert ours.observation_space == theirs.observation_space
    assert ours.action_space == theirs.action_space
    assert ours.metadata["autoreset_mode"] is theirs.metadata["autoreset_mode"]
    rng = np.random.default_rng(4)
    mine, others = ours.reset(seed=7), theirs.reset(seed=7)
    assert same(mine[0], others[0])
    assert all(np.array_equal(mine[1][name], others[1][name]) for name in mine[1])
    episodes = 0
    while episodes < 5:
        actions = drawn(rng, ours.action_masks())
        a, b = ours.step(actions), theirs.step(actions)
        assert same(a[0], b[0])
        assert [x.tolist() for x in a[1:4]] == [x.tolist() for x in b[1:4]]
        told = b[4]
        if "final_obs" in b[4]:  # ours keeps telling of the step, theirs of the reset
            ended, told = b[4]["_final_obs"], b[4]["final_info"]
            assert a[4]["_final_obs"].tolist() == a[4]["_final_info"].tolist() == ended.tolist()
            for p in np.flatnonzero(ended):
                assert same(a[4]["final_obs"][p], b[4]["final_obs"][p])
            for name in ("dt_s", "now_s", "_dt_s", "_now_s"):
                assert a[4]["final_info"][name].tolist() == told[name].tolist()
                assert np.array_equal(a[4][name][ended], told[name][ended])
        else:
            assert all(np.array_equal(a[4][name], told[name]) for name in a[4])
        episodes += int(a[3].sum())
        if mode is AutoresetMode.DISABLED and a[3].any():
            again = ours.reset(options={"reset_mask": a[3]})
            expected = theirs.reset(options={"reset_mask": a[3]})
            assert same(again[0], expected[0])
            assert all(np.array_equal(again[1][name], expected[1][name]) for name in again[1])


def test_three_faces_with_a_seed_give_the_same_rewards(
    scenario: ScenarioSpec, make_vector: MakeVector, make_vec: MakeVec
) -> None:
    """Pool p of a batch seeded with s is the single environment seeded with s + p."""
    envs = [PoolEnv(scenario, rows=8) for _ in range(3)]
    vector, vec = make_vector(3, autoreset_mode="SameStep"), make_vec(3)
    singles = [env.reset(seed=11 + p)[0] for p, env in enumerate(envs)]
    batch, _ = vector.reset(seed=11)
    assert vec.seed(11) == [11, 12, 13]
    sb3 = vec.reset()
    rng, episodes = np.random.default_rng(0), 0
    while episodes < 5:
        assert same(batch, sb3)
        for p, single in enumerate(singles):
            assert same(single, {name: values[p] for name, values in batch.items()})
        actions = drawn(rng, vector.action_masks())
        steps = [env.step(action) for env, action in zip(envs, actions, strict=True)]
        batch, rewards, _, truncations, infos = vector.step(actions)
        sb3, sb3_rewards, dones, _ = vec.step(actions)
        assert rewards.tolist() == [step[1] for step in steps]
        assert sb3_rewards.tolist() == rewards.astype(np.float32).tolist()
        assert infos["dt_s"].tolist() == [step[4]["dt_s"] for step in steps]
        assert vec.last_dt_s.tolist() == infos["dt_s"].tolist()
        assert truncations.tolist() == [step[3] for step in steps]
        assert dones.tolist() == truncations.tolist()
        episodes += int(dones.sum())
        over = zip(envs, steps, strict=True)
        singles = [env.reset()[0] if step[3] else step[0] for env, step in over]


def test_dummy_vec_env_of_single_environments_is_the_same(
    scenario: ScenarioSpec, make_vec: MakeVec
) -> None:
    ours, theirs = make_vec(2), DummyVecEnv([lambda: PoolEnv(scenario, rows=8)] * 2)
    assert ours.seed(3) == theirs.seed(3)
    assert same(ours.reset(), theirs.reset())
    rng = np.random.default_rng(3)
    for _ in range(150):
        actions = drawn(rng, ours.action_masks())
        a, b = ours.step(actions), theirs.step(actions)
        assert same(a[0], b[0])
        assert a[1].tolist() == b[1].tolist()
        assert a[2].tolist() == b[2].tolist()
        for p in np.flatnonzero(a[2]):
            assert same(a[3][p]["terminal_observation"], b[3][p]["terminal_observation"])
            assert a[3][p]["TimeLimit.truncated"] == b[3][p]["TimeLimit.truncated"]


@pytest.mark.parametrize("copied", [pickle_copy, deepcopy])
@pytest.mark.parametrize("steps", [None, 40])
def test_copies_and_pickles_go_on_as_the_original(
    scenario: ScenarioSpec, copied: Callable[[Any], Any], steps: int | None
) -> None:
    """Before any reset, and in the middle of episodes."""
    rng = np.random.default_rng(1)
    original = PoolVectorEnv(2, scenario, rows=8, autoreset_mode="SameStep", threads=2)
    if steps is not None:
        original.reset(seed=1)
        for _ in range(steps):
            original.step(drawn(rng, original.action_masks()))
    else:
        original.pools.seed(0, 5), original.pools.seed(1, 6)
    copy = copied(original)
    if steps is None:
        assert same(original.reset(seed=1)[0], copy.reset(seed=1)[0])
    ends = 0
    while ends < 3:
        assert np.array_equal(original.action_masks(), copy.action_masks())
        actions = drawn(rng, original.action_masks())
        a, b = original.step(actions), copy.step(actions)
        assert same(a[0], b[0])
        assert [x.tolist() for x in a[1:4]] == [x.tolist() for x in b[1:4]]
        ends += int(a[3].sum())


def test_other_faces_are_copied_too(scenario: ScenarioSpec, make_vec: MakeVec) -> None:
    env = PoolEnv(scenario, rows=8)
    env.reset(seed=1)
    copy = pickle_copy(env)
    for _ in range(20):
        action = np.int64(env.action_masks().argmax())
        assert same(env.step(action)[0], copy.step(action)[0])
    vec = make_vec(2)
    vec.seed(1)
    vec.reset()
    copied = pickle_copy(vec)
    for _ in range(20):
        actions = vec.action_masks().argmax(axis=1)
        assert same(vec.step(actions)[0], copied.step(actions)[0])


def test_threads_change_nothing(make_vector: MakeVector) -> None:
    assert_alike(make_vector(5), make_vector(5, threads=3), steps=200)


def test_pools_of_one_vector_play_different_episodes(make_vector: MakeVector) -> None:
    observation, _ = make_vector(4).reset(seed=0)
    assert len({values.tobytes() for values in observation["globals"]}) == 4


def test_vector_is_a_function_of_seed_and_actions(make_vector: MakeVector) -> None:
    first, second = make_vector(4), make_vector(4)
    assert_alike(first, second, steps=300)
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


@pytest.mark.parametrize("mode", AutoresetMode)
def test_views_stand_until_the_step_after_the_next(
    make_vector: MakeVector, mode: AutoresetMode
) -> None:
    """With copy=False: what was shown last is still there while the next is made."""
    views, copies = (make_vector(3, autoreset_mode=mode, copy=copy) for copy in (False, True))
    shown, expected = views.reset(seed=2)[0], copies.reset(seed=2)[0]
    rng, old = np.random.default_rng(2), shown
    for step in range(200):
        mask = views.action_masks()
        assert np.shares_memory(mask, shown["action_mask"])
        actions = drawn(rng, mask)
        after, ended = views.step(actions)[0], views.pools.is_over
        assert same(shown, expected)
        expected = copies.step(actions)[0]
        assert same(after, expected)
        is_reset = (mode is AutoresetMode.DISABLED and ended.any()) or step == 100
        options = {"reset_mask": ended} if ended.any() else None
        if is_reset:
            before, copied = after, expected
            after = views.reset(options=options)[0]
            assert same(before, copied)
            expected = copies.reset(options=options)[0]
            assert same(after, expected)
        old, shown = shown, after
    assert np.shares_memory(old["rows"], views.pools.buffers.rows)


def test_reset_mask_starts_the_chosen_pools_anew(make_vector: MakeVector) -> None:
    vector = make_vector(3, autoreset_mode="DISABLED")
    before, _ = vector.reset(seed=1)
    mask = np.array([False, True, False])
    after, infos = vector.reset(seed=[5, 6, None], options={"reset_mask": mask})
    assert infos["_dt_s"].tolist() == mask.tolist()
    alone, _ = make_vector(1).reset(seed=6)
    for name, values in after.items():
        assert np.array_equal(values[~mask], before[name][~mask])
        assert np.array_equal(values[1], alone[name][0])
        assert not np.array_equal(values, before[name]) or name == "action_mask"


def test_ended_pools_must_be_reset_where_no_step_does(make_vector: MakeVector) -> None:
    vector, rng = make_vector(2, autoreset_mode="Disabled"), np.random.default_rng(0)
    vector.reset(seed=0)
    truncated = np.zeros(2, bool)
    while not truncated.any():
        truncated = vector.step(drawn(rng, vector.action_masks()))[3]
    with pytest.raises(gym.error.ResetNeeded, match=r"pools \[\d.* are over: call"):
        vector.step(np.zeros(2, np.int64))
    vector.reset(options={"reset_mask": truncated})
    vector.step(drawn(rng, vector.action_masks()))


def test_vector_refuses_what_it_cannot_do(make_vector: MakeVector) -> None:
    with pytest.raises(UserError, match=r"autoreset_mode='Disable': .*Disabled"):
        make_vector(2, autoreset_mode="Disable")
    with pytest.raises(UserError, match="num_envs=0"):
        make_vector(0)
    with pytest.raises(UserError, match="threads=0"):
        make_vector(1, threads=0)
    vector = make_vector(2)
    with pytest.raises(gym.error.ResetNeeded, match=r"call reset\(\)"):
        vector.step(np.zeros(2, np.int64))
    with pytest.raises(UserError, match=r"seed=\[1\]: expected 2 of them, or one number"):
        vector.reset(seed=[1])
    for mask in ([True, True], np.ones(3, bool), np.ones(2, int), np.zeros(2, bool)):
        with pytest.raises(UserError, match=r"options\['reset_mask'\]=.*boolean array of shape"):
            vector.reset(options={"reset_mask": mask})
    vector.reset(seed=0)
    with pytest.raises(
        UserError, match=r"options\['reset_msk'\]: unknown key; did you mean 'reset_"
    ):
        vector.reset(options={"reset_msk": np.ones(2, bool)})


@pytest.mark.parametrize(
    ("actions", "expected"),
    [
        ([0], r"actions of shape \(1,\), int64: expected 2 whole numbers from 0 to 16"),
        ([0, 0, 0], r"actions of shape \(3,\), int64"),
        ([[0], [0]], r"actions of shape \(2, 1\), int64"),
        ([0.5, 1.0], r"actions of shape \(2,\), float64"),
        ([float("nan"), 0.0], r"actions of shape \(2,\), float64"),
        ([[0], [0, 1]], "actions of shape"),
        (["0", "1"], "actions of shape"),
        ([2**70, 0], "actions of shape"),
        (None, "actions of shape"),
        ([0, 17], r"actions\[1\]=17: expected a whole number from 0 to 16"),
        ([-1, 0], r"actions\[0\]=-1: expected a whole number from 0 to 16"),
        (np.array([0, 2**63], np.uint64), r"actions\[1\]=9223372036854775808: expected"),
    ],
)
def test_vector_takes_whole_numbers_in_the_space_alone(
    make_vector: MakeVector, actions: Any, expected: str
) -> None:
    vector = make_vector(2)
    vector.reset(seed=0)
    with pytest.raises(UserError, match=rf"^{expected}"):
        vector.step(actions)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"num_envs": "2"}, "num_envs='2': expected a whole number from 1 to 65536"),
        ({"num_envs": 2.0}, "num_envs=2.0: expected a whole number"),
        ({"num_envs": 10**9}, "num_envs=1000000000: expected a whole number from 1 to 65536"),
        ({"threads": 1.5}, "threads=1.5: expected a whole number"),
        ({"group": None}, "group=None: expected a whole number"),
        ({"copy": "no"}, "copy='no': expected true or false"),
        ({"autoreset_mode": None}, "autoreset_mode=None: known: Disabled, NextStep, SameStep"),
    ],
)
def test_vector_refuses_arguments_of_another_type(
    scenario: ScenarioSpec, options: dict[str, Any], expected: str
) -> None:
    with pytest.raises(UserError) as caught:
        PoolVectorEnv(scenario=scenario, **options)
    assert str(caught.value).startswith(expected)


@pytest.mark.parametrize("seed", [1.5, "a", -1, np.int32(-2), [0, "a"], [1.5, 2], [0, -1]])
def test_batches_refuse_seeds_that_are_no_whole_numbers(
    make_vector: MakeVector, make_vec: MakeVec, seed: Any
) -> None:
    with pytest.raises(UserError, match=r"^seed=.*: expected a whole number of 0 or more"):
        make_vector(2).reset(seed=seed)
    with pytest.raises(UserError, match=r"^seed=.*: expected a whole number of 0 or more"):
        make_vec(2).seed(seed)


def test_batches_take_numpys_numbers_as_seeds(make_vector: MakeVector) -> None:
    vector = make_vector(2)
    expected, _ = vector.reset(seed=3)
    for seed in (np.int64(3), np.uint8(3), np.array([3, 4]), (3, 4)):
        assert same(vector.reset(seed=seed)[0], expected)


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
            assert (infos[p] is NOTHING) == (not done[p])
            if done[p]:
                ends += 1
                assert infos[p]["TimeLimit.truncated"] is True
                assert infos[p]["terminal_observation"] in vec.observation_space
                assert infos[p]["episode"]["r"] == pytest.approx(returns[p], rel=1e-4)
                assert infos[p]["episode"]["l"] == lengths[p]
                returns[p], lengths[p] = 0.0, 0
        assert {name: values[0] for name, values in observation.items()} in vec.observation_space
    assert NOTHING == {}
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
    assert vec.env_method("describe_observation") == [vec.describe_observation()] * 3


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


def test_sb3_contrib_evaluates_without_a_wrapper_or_a_warning(make_vec: MakeVec) -> None:
    vec = make_vec(2)
    model = MaskablePPO("MultiInputPolicy", vec, n_steps=16, batch_size=32, n_epochs=1, seed=0)
    returns, lengths = evaluate_policy(model, vec, 2, return_episode_rewards=True)
    assert np.isfinite(returns).all()
    assert min(lengths) > 1
    assert vec.env_is_wrapped(Monitor) == [True] * 2


def test_pools_of_a_group_play_the_same_episodes(make_vector: MakeVector) -> None:
    env = make_vector(6, group=3)
    env.reset(seed=4)
    arrivals = [sim.arrivals.time_ns.tobytes() for sim in env.pools.sims if sim is not None]
    assert arrivals[:3] == [arrivals[0]] * 3
    assert arrivals[3:] == [arrivals[3]] * 3
    assert arrivals[0] != arrivals[3]
    with pytest.raises(UserError, match=r"group=4: expected a divisor of num_envs=6"):
        make_vector(6, group=4)
