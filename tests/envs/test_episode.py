"""Episodes: windows drawn from a seed, warm pools, and what an episode draws besides."""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from envs.episode import arrivals_in, bin_edges, draw, empty_state, role_free, sample
from envs.pools import Pools
from envs.scenario import ScenarioSpec
from runtime.core import NS, DecisionKind, Dispatch, Phases, PrefetchMode, SloSpec, Stage
from runtime.emulator.tables import Sim
from runtime.errors import UserError
from runtime.pool.state import Table
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
    trace = scenario.trace(0)
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


def test_sample_starts_from_a_warm_pool(scenario: ScenarioSpec) -> None:
    busy = 0
    for sim in windows(scenario):
        assert sim.state.pool["now_ns"][0] <= scenario.warm_s * NS
        busy += int(np.any(sim.state.instances["stage"] >= Stage.COMMANDED))
        length_s = sim.control["horizon_ns"][0] / NS - scenario.warm_s
        assert scenario.shortest_s <= length_s <= scenario.longest_s
    assert busy > 20


def test_role_free_pool_keeps_its_hardware(scenario: ScenarioSpec) -> None:
    roles = (Phases.PREFILL, Phases.DECODE)
    pool = replace(
        scenario.pools[0], roles=roles, dispatch=Dispatch.PUSH, prefetch=PrefetchMode.RETROACTIVE
    )
    free = role_free(pool)
    assert free.roles == ()
    assert (free.dispatch, free.prefetch) == (Dispatch.PULL, PrefetchMode.CAUSAL)
    assert free == replace(scenario.pools[0], prefetch=PrefetchMode.CAUSAL)


def test_scenario_next_to_no_requests_is_refused_not_waited_for(scenario: ScenarioSpec) -> None:
    lone: Trace = scenario.trace(0).rows(slice(1))
    lone = replace(lone, arrival_s=np.array([1e9]))
    pools = Pools(replace(scenario, traces=(lone,)), 1)
    with pytest.raises(UserError, match="trace small: none of 1000 windows has a decision"):
        pools.reset(0)


def test_pools_grow_their_request_tables_in_an_episode(scenario: ScenarioSpec) -> None:
    """More requests than the table starts with: 512."""
    fast = scenario.trace(0).scale_rate(60.0).repeat(60)
    rush = replace(scenario, traces=(fast,), load_scale=(1.0, 1.0))
    pools = Pools(rush, 1, rows=8)
    pools.reset(0)
    while not pools.is_over[0]:
        pools.step(np.array([pools.mask[0].argmax()]))
    sim = pools.sims[0]
    assert sim is not None
    assert len(sim.state.requests) > 512
    assert sim.state.pool["in_flight"][0] > 512
    kinds = {DecisionKind.TURN, DecisionKind.PREFETCH}
    assert int(sim.control["decision_kind"][0]) in kinds


@pytest.fixture
def varied(scenario: ScenarioSpec) -> ScenarioSpec:
    """Two traces, two pools, two bins of load: eight levels."""
    small, trace = scenario.pools[0], scenario.trace(0)
    return replace(
        scenario,
        traces=(trace, replace(trace, name="slow").scale_rate(0.5)),
        pools=(small, replace(small, name="h100x4", instances_per_node=4)),
        slos=(SloSpec(ttft_s=1.0, tbt_s=0.05), SloSpec(ttft_s=5.0, tbt_s=0.1)),
        load_bins=2,
        mtbf_s=(0.0, 100.0),
        noise=(0.05, 0.2),
        speed=(0.5, 2.0),
    )


def test_draw_ranges_over_everything_the_scenario_varies(varied: ScenarioSpec) -> None:
    rng = np.random.default_rng(1)
    drawn = [draw(varied, rng) for _ in range(400)]
    assert {e.level for e in drawn} == set(range(8))
    assert {e.trace for e in drawn} == {0, 1}
    assert {e.pool.instances for e in drawn} == {2, 4}
    assert {e.slo for e in drawn} == set(varied.slos)
    assert {e.pool.mtbf_s for e in drawn} == {0.0, 100.0}
    assert all(0.05 <= e.pool.noise <= 0.2 for e in drawn)
    assert 0.5 <= min(e.speed for e in drawn) < 0.6
    assert 1.7 < max(e.speed for e in drawn) <= 2.0
    assert len({e.pool.seed for e in drawn}) == 400


def test_level_says_trace_pool_and_part_of_the_load(varied: ScenarioSpec) -> None:
    rng = np.random.default_rng(2)
    assert [bin_edges(varied, b) for b in (0, 1)] == [(0.5, 1.0), (1.0, 2.0)]
    for _ in range(200):
        episode = draw(varied, rng)
        is_large = episode.pool.instances == 4
        assert episode.level // 4 == episode.trace
        assert episode.level // 2 % 2 == is_large
        load = episode.load / (2 if is_large else 1)
        assert episode.level % 2 == (load > 1.0)


def test_level_weights_say_how_often_a_level_is_drawn(varied: ScenarioSpec) -> None:
    weighted = replace(varied, level_weights=(0, 0, 3, 0, 0, 1, 0, 0))
    rng = np.random.default_rng(3)
    levels = [draw(weighted, rng).level for _ in range(400)]
    assert set(levels) == {2, 5}
    assert levels.count(2) == pytest.approx(300, abs=40)


def test_speed_scales_every_step_time(varied: ScenarioSpec) -> None:
    def costs(speed: float) -> Table:
        episode = draw(replace(varied, speed=(speed, speed)), np.random.default_rng(4))
        return empty_state(varied, episode).costs

    plain, fast = costs(1.0), costs(2.0)
    for name in ("prefill_token_s", "decode_s", "decode_batch_s"):
        assert np.allclose(plain[name], 2 * fast[name])
    assert plain["knots"].tolist() == fast["knots"].tolist()


def test_episode_window_lies_within_its_trace(varied: ScenarioSpec) -> None:
    rng = np.random.default_rng(5)
    for _ in range(100):
        episode = draw(varied, rng)
        end_s = episode.begin_s + episode.length_s * episode.load
        assert 0 <= episode.begin_s <= end_s <= varied.trace(episode.trace).span_s
        arrivals = arrivals_in(varied, episode)
        assert arrivals.time_ns.max() <= episode.length_s * NS


def test_episode_with_a_journal_keeps_it_from_the_first_event(scenario: ScenarioSpec) -> None:
    sim = sample(scenario, np.random.default_rng(6), journal_rows=4)
    count = int(sim.control["journal_rows"][0])
    assert count > 4
    times = sim.journal["time_ns"][:count]
    assert times[0] == sim.arrivals.time_ns[0]
    assert np.all(np.diff(times) >= 0)
    plain = sample(scenario, np.random.default_rng(6))
    assert plain.state.requests.tobytes() == sim.state.requests.tobytes()
