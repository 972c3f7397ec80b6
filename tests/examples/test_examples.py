"""Every example of examples/ runs; docs/environment.md shows them as they are."""

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pytest

FOLDER = Path(__file__).parents[2] / "examples"
PAGE = (Path(__file__).parents[2] / "docs" / "environment.md").read_text()
TINY: dict[str, dict[str, int]] = {
    "random_agent": {"decisions": 200},
    "index_agent": {"decisions": 400, "num_envs": 4},
    "maskable_ppo": {"decisions": 64, "num_envs": 4, "n_steps": 8},
    "plain_pytorch": {"decisions": 80, "num_envs": 4},
    "event_time": {"decisions": 2048},
}


def load(name: str) -> Any:
    spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_example_is_tried() -> None:
    assert {path.stem for path in FOLDER.glob("*.py")} == set(TINY)


@pytest.mark.parametrize("name", TINY)
def test_example_runs(name: str) -> None:
    result = load(name).main(**TINY[name])
    assert isinstance(result, float)
    assert np.isfinite(result) or name == "maskable_ppo"


@pytest.mark.parametrize("name", TINY)
def test_example_is_on_the_page(name: str) -> None:
    assert f"examples/{name}.py" in PAGE


def test_index_misses_far_less_than_chance() -> None:
    random = load("random_agent").main(decisions=8000)
    tuned = load("index_agent").main(decisions=6000, num_envs=4)
    assert tuned > random
    assert random < 0


def test_other_environments_advantages_are_hand_computed_gae() -> None:
    """On the environment of the page: after a rollout of PPO, T steps, P environments."""
    model = load("event_time").make_model(n_steps=64)
    seen: dict[str, Any] = {}
    buffer = model.rollout_buffer
    compute = buffer.compute_returns_and_advantage

    def spy(last_values: Any, dones: Any) -> None:
        seen.update(last=last_values.numpy().flatten(), dones=dones)
        compute(last_values, dones)
        seen.update(advantages=buffer.advantages.copy())
        for name in ("rewards", "values", "episode_starts", "dt_s"):
            seen[name] = getattr(buffer, name).copy()

    buffer.compute_returns_and_advantage = spy
    model.learn(64 * 8)
    assert seen["dt_s"].min() == 1.0
    assert seen["dt_s"].max() > 8.0
    steps, pools = seen["rewards"].shape
    for p in range(pools):
        advantage, behind = 0.0, seen["last"][p]
        for t in reversed(range(steps)):
            is_last = t == steps - 1
            is_over = seen["dones"][p] if is_last else seen["episode_starts"][t + 1, p]
            discount = 0.0 if is_over else np.exp(-seen["dt_s"][t, p] / 20.0)
            delta = seen["rewards"][t, p] + discount * behind - seen["values"][t, p]
            advantage = delta + discount * model.gae_lambda * advantage
            assert seen["advantages"][t, p] == pytest.approx(advantage, abs=1e-3)
            behind = seen["values"][t, p]
