"""Scenarios: windows drawn from a seed, warm pools, and specifications that cannot be."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from envs.pools import Pools
from envs.scenario import ScenarioSpec, demo_scenario, role_free, sample
from runtime.core import NS, DecisionKind, Dispatch, Phases, PrefetchMode, Stage
from runtime.emulator.loop import Signal
from runtime.emulator.tables import Sim
from runtime.errors import UserError
from traces import Trace


def drawn(scenario: ScenarioSpec, seed: int) -> Sim:
    return sample(scenario, np.random.default_rng(seed))


def windows(scenario: ScenarioSpec, count: int = 40) -> Iterator[Sim]:
    yield from (drawn(scenario, seed) for seed in range(count))


@given(seed=st.integers(0, 2**32))
@settings(max_examples=20, deadline=None)
def test_sample_is_a_function_of_the_seed(scenario: ScenarioSpec, seed: int) -> None:
    first, second = drawn(scenario, seed), drawn(scenario, seed)
    assert first.arrivals.time_ns.tolist() == second.arrivals.time_ns.tolist()
    assert first.arrivals.output_tokens.tolist() == second.arrivals.output_tokens.tolist()
    assert first.control.tobytes() == second.control.tobytes()
    assert first.state.requests.tobytes() == second.state.requests.tobytes()
    assert first.state.instances.tobytes() == second.state.instances.tobytes()


def test_sample_draws_another_window_for_another_seed(scenario: ScenarioSpec) -> None:
    firsts = {sim.arrivals.time_ns[:5].tobytes() for sim in windows(scenario)}
    assert len(firsts) == 40


def test_sample_plays_a_part_of_the_trace(scenario: ScenarioSpec) -> None:
    plain = replace(scenario, load_scale=(1.0, 1.0))
    trace = scenario.trace
    for sim in windows(plain, 10):
        prompts, outputs = sim.arrivals.prompt_tokens, sim.arrivals.output_tokens
        n = len(prompts)
        starts = [
            i
            for i in range(trace.requests - n + 1)
            if np.array_equal(trace.prompt_tokens[i : i + n], prompts)
            and np.array_equal(trace.output_tokens[i : i + n], outputs)
        ]
        assert len(starts) == 1
        part = slice(starts[0], starts[0] + n)
        gaps_ns = np.diff(trace.arrival_s[part]) * NS
        assert np.abs(np.diff(sim.arrivals.time_ns) - gaps_ns).max() < 10
        names = [trace.models[m] for m in sim.arrivals.model]
        assert names == [trace.models[m] for m in trace.model[part]]


def test_sample_scales_load_within_its_range(scenario: ScenarioSpec) -> None:
    mean = {}
    for load in (0.5, 4.0):
        sims = list(windows(replace(scenario, load_scale=(load, load)), 20))
        assert all(sim.arrivals.time_ns[-1] <= sim.control["horizon_ns"][0] for sim in sims)
        total_s = sum(sim.control["horizon_ns"][0] / NS for sim in sims)
        mean[load] = sum(len(sim.arrivals.time_ns) for sim in sims) / total_s
    assert mean[4.0] / mean[0.5] == pytest.approx(8.0, rel=0.3)


def test_sample_stays_between_start_and_end(scenario: ScenarioSpec) -> None:
    narrow = replace(scenario, start_s=100.0, end_s=160.0, load_scale=(1.0, 2.0))
    trace = scenario.trace.window(100.0, 60.0)
    allowed = set(zip(trace.prompt_tokens.tolist(), trace.output_tokens.tolist(), strict=True))
    for sim in windows(narrow):
        arrivals = sim.arrivals
        pairs = zip(arrivals.prompt_tokens.tolist(), arrivals.output_tokens.tolist(), strict=True)
        assert set(pairs) <= allowed


def test_sample_starts_from_a_warm_pool(scenario: ScenarioSpec) -> None:
    busy = 0
    for sim in windows(scenario):
        assert sim.state.pool["now_ns"][0] <= scenario.warm_s * NS
        busy += int(np.any(sim.state.instances["stage"] >= Stage.COMMANDED))
        length_s = sim.control["horizon_ns"][0] / NS - scenario.warm_s
        assert scenario.shortest_s <= length_s <= scenario.longest_s
    assert busy > 20


def test_sample_runs_the_given_warm_up_policy(scenario: ScenarioSpec) -> None:
    class Sleeper:
        """Serves nobody: it never lets the pool move."""

        name = "sleeper"
        driven = 0

        def memory(self, state: Any) -> str:
            return "memory"

        def drive(self, sim: Sim, memory: str) -> int:
            assert memory == "memory"
            self.driven += 1
            return Signal.END

    sleeper = Sleeper()
    sim = sample(replace(scenario, warm=sleeper), np.random.default_rng(0))
    assert sleeper.driven == 1
    assert sim.state.pool["now_ns"][0] == 0


def test_role_free_pool_keeps_its_hardware(scenario: ScenarioSpec) -> None:
    roles = (Phases.PREFILL, Phases.DECODE)
    pool = replace(
        scenario.pool, roles=roles, dispatch=Dispatch.PUSH, prefetch=PrefetchMode.RETROACTIVE
    )
    free = role_free(pool)
    assert free.roles == ()
    assert (free.dispatch, free.prefetch) == (Dispatch.PULL, PrefetchMode.CAUSAL)
    assert free == replace(scenario.pool, prefetch=PrefetchMode.CAUSAL)


def test_deadline_rate_counts_tokens_between_start_and_end(scenario: ScenarioSpec) -> None:
    part = scenario.trace.window(100.0, 60.0)
    narrow = replace(scenario, start_s=100.0, end_s=160.0)
    assert narrow.deadline_rate == pytest.approx(part.output_tokens.sum() / 60.0)


def test_demo_scenario_plays_the_bundled_trace() -> None:
    spec = demo_scenario()
    assert (spec.trace.name, spec.pool.instances) == ("market_demo", 8)
    assert 5 < spec.trace.rate_rps < 8


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"load_scale": (0.0, 1.0)}, "load_scale=(0.0, 1.0): expected 0 < low <= high"),
        ({"load_scale": (2.0, 1.0)}, "load_scale=(2.0, 1.0): expected 0 < low <= high"),
        ({"load_scale": (1.0, float("inf"))}, "load_scale=(1.0, inf): expected 0 < low"),
        ({"load_scale": (float("nan"), 1.0)}, "load_scale=(nan, 1.0): expected 0 < low"),
        ({"shortest_s": 0.0}, "shortest_s=0.0, longest_s=10.0: expected 0 < shortest_s"),
        ({"shortest_s": 11.0}, "shortest_s=11.0, longest_s=10.0: expected 0 < shortest_s"),
        ({"longest_s": float("nan")}, "shortest_s=5.0, longest_s=nan: expected 0 < shortest_s"),
        ({"start_s": -1.0}, "start_s=-1.0: expected 0 or more seconds"),
        ({"start_s": float("nan")}, "start_s=nan: expected 0 or more seconds"),
        ({"warm_s": -1.0}, "warm_s=-1.0: expected 0 or more seconds"),
        ({"end_s": 39.0}, "trace small: window of 39 s is shorter than warm_s + longest_s at"),
        ({"end_s": float("nan")}, "trace small: window of nan s is shorter than"),
        ({"start_s": 500.0, "end_s": 600.0}, "trace small: no request from 500 to 600 s"),
    ],
)
def test_scenario_that_cannot_be_names_key_and_value(
    scenario: ScenarioSpec, change: dict[str, Any], expected: str
) -> None:
    with pytest.raises(UserError) as caught:
        replace(scenario, **change)
    assert str(caught.value).startswith(expected)


def test_scenario_next_to_no_requests_is_refused_not_waited_for(scenario: ScenarioSpec) -> None:
    lone: Trace = scenario.trace.rows(slice(1))
    lone = replace(lone, arrival_s=np.array([5000.0]))
    pools = Pools(replace(scenario, trace=lone, end_s=1e9, load_scale=(1.0, 1.0)), 1)
    with pytest.raises(UserError, match="trace small: none of 1000 windows has a decision"):
        pools.reset(0)


def test_pools_grow_their_request_tables_in_an_episode(scenario: ScenarioSpec) -> None:
    """More requests than the table starts with: 512."""
    rush = replace(scenario, trace=scenario.trace.scale_rate(60.0).repeat(60), load_scale=(1, 1))
    pools = Pools(rush, 1, rows=8)
    pools.reset(0)
    while not pools.is_over[0]:
        pools.step(np.array([pools.buffers.mask[0].argmax()]))
    sim = pools.sims[0]
    assert sim is not None
    assert len(sim.state.requests) > 512
    assert sim.state.pool["in_flight"][0] > 512
    kinds = {DecisionKind.TURN, DecisionKind.PREFETCH}
    assert int(sim.control["decision_kind"][0]) in kinds
