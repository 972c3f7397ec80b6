"""docs/environment.md: its table is the feature spec, its example the file, its facts true."""

from inspect import signature
from pathlib import Path

import gymnasium as gym

from envs.observation import describe_observation
from envs.pool_env import PoolEnv
from envs.pools import QUOTAS_S, ROWS
from envs.scenario import ScenarioSpec

ARGUMENTS = list(signature(PoolEnv).parameters.values())
ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "environment.md").read_text()
LAYOUT = (  # Gymnasium's own
    *("Description", "Action space", "Observation space", "Rewards", "Starting state"),
    *("Episode end", "Arguments", "Vector face", "Stable-Baselines3 face", "Event time (SMDP)"),
    *("Examples", "Version history"),
)


def test_page_has_gymnasiums_layout() -> None:
    headings = [line[3:] for line in PAGE.splitlines() if line.startswith("## ")]
    assert headings == list(LAYOUT)


def test_observation_table_is_the_feature_spec() -> None:
    begin = "<!-- describe_observation(ROWS, QUOTAS_S, privileged=True) -->\n"
    table = PAGE.split(begin)[1].split("<!-- end -->")[0]
    assert table == describe_observation(ROWS, QUOTAS_S, privileged=True), "paste the table anew"


def test_example_on_the_page_is_the_file() -> None:
    assert (ROOT / "examples" / "event_time.py").read_text() in PAGE


def test_spaces_and_arguments_are_as_stated() -> None:
    env = gym.make("envs:aegaeon/Pool-v0", rows=ROWS, quotas_s=QUOTAS_S, render_mode=None)
    assert f"`Discrete(K * Q + 1)`, masked; {env.action_space.n} by default" in PAGE
    keys = ", ".join(env.observation_space.spaces)
    assert f"`Dict({keys})`" in PAGE
    call = PAGE.split("gymnasium.make(\n")[1].split("\n)\n")[0]
    stated = [f"{p.name}={p.default!r},".replace("'", '"') for p in ARGUMENTS]
    assert [line.strip() for line in call.splitlines()][1:] == stated


def test_times_of_an_episode_are_the_scenarios_defaults() -> None:
    fields = ScenarioSpec.__dataclass_fields__
    shortest_s, longest_s, warm_s = (
        fields[name].default for name in ("shortest_s", "longest_s", "warm_s")
    )
    assert f"({shortest_s:g} to {longest_s:g} s)" in PAGE
    assert f"`warm_s` seconds ({warm_s:g})" in PAGE


def test_links_lead_somewhere() -> None:
    targets = [part.split(")")[0] for part in PAGE.split("](")[1:]]
    assert targets
    for target in targets:
        assert (ROOT / "docs" / target).resolve().exists(), target
