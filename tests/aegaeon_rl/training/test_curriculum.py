"""The curriculum's rule, its state as plain data, and gaps measured on the same episodes."""

import json
from dataclasses import replace
from math import nan
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aegaeon_rl.policies.registry import make_policy
from aegaeon_rl.training.curriculum import Curriculum, due_in, measured_gaps, play
from envs.episode import arrivals_in, draw
from envs.scenario import ScenarioSpec
from runtime.core import PoolSpec, SloSpec
from runtime.errors import UserError
from traces.market import MarketSpec, generate

SIZES = ("Qwen2.5-7B", "Yi-1.5-9B", "Llama-2-13B")
GAPS = st.lists(st.floats(-1, 1), min_size=1, max_size=12)


@pytest.fixture(scope="module")
def scenario() -> ScenarioSpec:
    """A quiet level and one with eight times its load."""
    market = MarketSpec(name="small", models=8, duration_s=400.0, rate_rps=2.0, seed=0)
    pool = PoolSpec(name="h100x2", profile="h100", checkpoints=SIZES, instances_per_node=2)
    return ScenarioSpec(
        traces=(generate(market),),
        pools=(pool,),
        slos=(SloSpec(ttft_s=1.0, tbt_s=0.05),),
        warm_s=5.0,
        shortest_s=10.0,
        longest_s=15.0,
        load_scale=(0.125, 8.0),
        load_bins=2,
    )


@given(gaps=GAPS, floor=st.floats(0, 1))
def test_chances_follow_the_rule(gaps: list[float], floor: float) -> None:
    weights = Curriculum(gaps=tuple(gaps), floor=floor).weights()
    assert sum(weights) == pytest.approx(1)
    behind = sum(max(0.0, gap) for gap in gaps)
    for gap, weight in zip(gaps, weights, strict=True):
        assert weight >= floor / len(gaps) - 1e-12
        if behind > 1e-300:
            share = max(0.0, gap) / behind
            assert weight == pytest.approx(floor / len(gaps) + (1 - floor) * share)
        elif behind == 0:
            assert weight == pytest.approx(1 / len(gaps))


def test_without_a_gap_all_levels_are_drawn_alike() -> None:
    assert Curriculum(gaps=(0.0, -0.5, 0.0, -0.1)).weights() == (0.25,) * 4


def test_level_further_behind_is_drawn_more_often() -> None:
    weights = Curriculum(gaps=(0.01, 0.03, -0.2), floor=0.3).weights()
    assert weights == pytest.approx((0.1 + 0.7 / 4, 0.1 + 0.7 * 3 / 4, 0.1))


def test_gaps_are_averaged_over_rounds_and_the_first_counts_in_full() -> None:
    start = Curriculum(gaps=(0.0, 0.0), keep=0.75)
    first = start.updated((0.4, -0.2))
    assert (first.gaps, first.rounds) == ((0.4, -0.2), 1)
    second = first.updated((0.0, 0.2))
    assert second.gaps == pytest.approx((0.3, -0.1))
    assert second.rounds == 2


@given(gaps=GAPS, rounds=st.integers(0, 5))
def test_state_goes_through_json_unchanged(gaps: list[float], rounds: int) -> None:
    state = Curriculum(gaps=tuple(gaps), rounds=rounds)
    assert Curriculum.from_json(json.loads(json.dumps(state.to_json()))) == state


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"gaps": []}, "curriculum.gaps=[]: expected a number for each level"),
        ({"gaps": [nan]}, "curriculum.gaps[0]=nan: expected a number"),
        ({"gaps": [0.0], "floor": 1.5}, "curriculum.floor=1.5: expected at most 1"),
        ({"gaps": [0.0], "keep": -1.0}, "curriculum.keep=-1.0: expected at least 0"),
        ({"gaps": [0.0], "flor": 0.1}, "curriculum.flor: unknown key; did you mean 'floor'?"),
    ],
)
def test_state_that_cannot_be_is_one_line(values: dict[str, Any], expected: str) -> None:
    with pytest.raises(UserError) as caught:
        Curriculum.from_json(values)
    assert str(caught.value).startswith(expected)
    with pytest.raises(UserError, match="curriculum: 3 gaps: expected 1, one each"):
        Curriculum(gaps=(0.0,)).updated((0.0, 0.0, 0.0))


def test_policy_is_not_behind_itself_and_is_behind_a_better_one(scenario: ScenarioSpec) -> None:
    index, fcfs = make_policy("index"), make_policy("fcfs")
    assert measured_gaps(scenario, index, index, episodes=2, seed=1) == (0.0, 0.0)
    quiet, busy = measured_gaps(scenario, fcfs, index, episodes=6, seed=1)
    assert busy > max(0.01, quiet)
    assert measured_gaps(scenario, fcfs, index, episodes=6, seed=1) == (quiet, busy)
    other = measured_gaps(scenario, index, fcfs, episodes=6, seed=1)
    assert other == pytest.approx((-quiet, -busy))


def test_share_missed_is_of_the_deadlines_of_the_episode(scenario: ScenarioSpec) -> None:
    episode = draw(scenario, np.random.default_rng(2))
    arrivals = arrivals_in(scenario, episode)
    due, begin_s, end_s = 0, scenario.warm_s, episode.length_s
    for at_ns, tokens in zip(arrivals.time_ns, arrivals.output_tokens, strict=True):
        deadlines = at_ns / 1e9 + 1.0 + 0.05 * np.arange(tokens)
        due += int(np.sum((deadlines >= begin_s) & (deadlines < end_s)))
    assert due_in(scenario, episode) == pytest.approx(due, abs=3)  # a deadline at an end's instant
    assert 0 <= play(scenario, episode, make_policy("fcfs")).missed <= due


def test_noise_and_failures_are_the_same_for_learner_and_teacher(scenario: ScenarioSpec) -> None:
    rough = replace(scenario, noise=(0.1, 0.3), mtbf_s=(20.0,), speed=(0.5, 2.0))
    index = make_policy("index")
    assert measured_gaps(rough, index, index, episodes=2, seed=4) == (0.0, 0.0)
