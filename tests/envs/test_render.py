"""Render modes through the doors of Gymnasium and SB3."""

from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from typing import Any

import gymnasium as gym
import numpy as np
import pytest

from envs.pool_env import PoolEnv
from envs.privileged import H
from envs.rendering.frames import FPS, MODES
from envs.scenario import ScenarioSpec
from envs.vector import PoolVecEnv, PoolVectorEnv
from runtime.errors import UserError

MakeEnv = Callable[..., PoolEnv]
MakeVector = Callable[..., PoolVectorEnv]
SHAPE = (540, 960, 3)


def act(env: PoolEnv, steps: int, seed: int = 0) -> None:
    """Allowed actions; episodes that end begin anew."""
    rng = np.random.default_rng(seed)
    for _ in range(steps):
        allowed = np.flatnonzero(env.action_masks())
        if env.step(np.int64(rng.choice(allowed)))[3]:
            env.reset()


def test_metadata_names_the_modes_and_the_speed_of_videos(make_vector: MakeVector) -> None:
    for metadata in (PoolEnv.metadata, make_vector(2).metadata):
        assert metadata["render_modes"] == list(MODES) == ["ansi", "rgb_array"]
        assert metadata["render_fps"] == FPS > 0


def test_ansi_shows_every_instance_and_the_decision_that_is_due(make_env: MakeEnv) -> None:
    env = make_env(0, render_mode="ansi")
    act(env, 60)
    text = env.render()
    asked = int(env.pools.sims[0].control["decision_index"][0])  # type: ignore[union-attr]
    assert f"of instance {asked}" in text
    marks = [line[0] for line in text.splitlines()[4:6]]
    assert [mark == ">" for mark in marks] == [asked == 0, asked == 1]
    assert "model-00" in text


def test_rgb_array_has_one_shape_and_moves_with_the_pool(make_env: MakeEnv) -> None:
    env = make_env(0, render_mode="rgb_array")
    frames = []
    for _ in range(4):
        frames.append(env.render())
        act(env, 40)
    assert all(frame.shape == SHAPE and frame.dtype == np.uint8 for frame in frames)
    assert len({frame.tobytes() for frame in frames}) == 4
    assert np.array_equal(env.render(), env.render())


def test_rendering_changes_nothing_of_the_episode(make_env: MakeEnv) -> None:
    plain, shown = make_env(3), make_env(3, render_mode="rgb_array")
    rng = np.random.default_rng(3)
    for _ in range(120):
        action = np.int64(rng.choice(np.flatnonzero(plain.action_masks())))
        a, b = plain.step(action), shown.step(action)
        shown.render()
        assert all(np.array_equal(a[0][key], b[0][key]) for key in a[0])
        assert a[1:4] == b[1:4]
        if a[3]:
            plain.reset(), shown.reset()


def test_copy_of_a_rendered_environment_looks_the_same_and_goes_on(make_env: MakeEnv) -> None:
    env = make_env(4, render_mode="rgb_array")
    act(env, 50)
    frame = env.render()
    other = deepcopy(env)
    assert np.array_equal(other.render(), frame)
    act(env, 30, seed=1), act(other, 30, seed=1)
    assert np.array_equal(other.render(), env.render())


@pytest.mark.filterwarnings("ignore:.*render:UserWarning")
def test_render_without_a_mode_or_an_episode_says_so(
    make_env: MakeEnv, scenario: ScenarioSpec
) -> None:
    assert make_env(0).render() is None
    with pytest.raises(gym.error.ResetNeeded, match=r"call reset\(\) before render\(\)"):
        PoolEnv(scenario, render_mode="ansi").render()
    with pytest.raises(UserError, match="render_mode='rgb_aray': did you mean 'rgb_array'"):
        PoolEnv(scenario, render_mode="rgb_aray")


def test_vector_renders_a_tuple_of_frames(make_vector: MakeVector) -> None:
    vector = make_vector(3, render_mode="rgb_array")
    with pytest.raises(gym.error.ResetNeeded):
        vector.render()
    vector.reset(seed=1)
    for _ in range(30):
        vector.step(vector.action_masks().argmax(axis=1))
    frames = vector.render()
    assert isinstance(frames, tuple)
    assert [frame.shape for frame in frames] == [SHAPE] * 3
    assert len({frame.tobytes() for frame in frames}) == 3
    texts = make_vector(2, render_mode="ansi")
    texts.reset(seed=1)
    assert [text.splitlines()[0][:2] for text in texts.render() or ()] == ["t=", "t="]


def test_vector_of_one_shows_what_the_single_environment_shows(
    make_env: MakeEnv, make_vector: MakeVector
) -> None:
    env = make_env(7, render_mode="ansi")
    vector = make_vector(1, render_mode="ansi")
    vector.reset(seed=7)
    for _ in range(25):
        action = env.action_masks().argmax()
        env.step(np.int64(action))
        vector.step(np.array([action]))
    assert vector.render() == (env.render(),)


def test_sb3_tiles_the_pictures(scenario: ScenarioSpec) -> None:
    vec = PoolVecEnv(scenario, 4, rows=8, render_mode="rgb_array")
    vec.reset()
    tiled: Any = vec.render("rgb_array")
    assert tiled.shape == (2 * SHAPE[0], 2 * SHAPE[1], 3)
    with pytest.raises(UserError, match="render_mode='ansi': expected rgb_array"):
        PoolVecEnv(scenario, 2, render_mode="ansi")


def test_journal_of_a_rendered_pool_grows_as_it_must(
    make_env: MakeEnv, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("envs.pools.JOURNAL_ROWS", 128)
    small = make_env(5, render_mode="ansi")
    monkeypatch.undo()
    large = make_env(5, render_mode="ansi")
    act(small, 150), act(large, 150)
    assert small.render() == large.render()
    assert len(small.pools.sims[0].journal) > 128  # type: ignore[union-attr]


def test_route_is_asked_of_no_instance_and_foretells_no_rows(scenario: ScenarioSpec) -> None:
    """The rows of a ROUTE are instances: only the pool's future is told."""
    pushed = replace(scenario, routes=True)
    env = PoolEnv(pushed, rows=8, render_mode="ansi", privileged=True)
    observation, _ = env.reset(seed=1)
    seen = set()
    for _ in range(80):
        text = env.render()
        is_route = "asked: route" in text
        seen.add(is_route)
        assert (">" in text) == (not is_route)
        future = observation["privileged"].reshape(-1, H)
        assert not (is_route and future[:-1].any())
        observation = env.step(np.int64(env.action_masks().argmax()))[0]
    assert seen == {True, False}
