"""`ScenarioSpec`: plain data both ways, and specifications that cannot be."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from hydra import compose, initialize_config_module

import conf
from aegaeon_rl.config import build
from aegaeon_rl.verbs.evaluate import Config
from envs.episode import sample
from envs.named import named, names
from envs.scenario import ScenarioSpec, demo_scenario
from envs.trace_choice import TraceChoice
from runtime.core import ModelSlo, PoolSpec, SloSpec
from runtime.errors import UserError
from runtime.plain import from_plain
from traces.splits import Part

FOLDER = Path(conf.__file__).parent
MARKET = {"name": "own", "models": 4, "duration_s": 900, "rate_rps": 2}
GOOD: dict[str, Any] = {
    "traces": ["market_demo", {"market": MARKET, "part": "validation", "weight": 2}],
    "pools": ["h100x4", {"pool": "a100x8", "noise": 0.1}],
    "slos": [{"ttft_s": 1, "tbt_s": 0.05}, {"models": {"model-000": {"ttft_s": 3}}}],
    "load_scale": [0.25, 0.5],
    "shortest_s": 5,
    "longest_s": 10,
    "noise": [0, 0.1],
    "mtbf_s": [0, 600],
}


def test_scenario_is_the_same_after_a_way_through_json() -> None:
    spec = ScenarioSpec.from_json(GOOD)
    text = json.dumps(spec.to_json())
    again = ScenarioSpec.from_json(json.loads(text))
    assert again == spec
    assert again.to_json() == spec.to_json()
    first, second = (sample(s, np.random.default_rng(1)) for s in (spec, again))
    assert first.state.requests.tobytes() == second.state.requests.tobytes()


def test_scenario_takes_what_its_mapping_says() -> None:
    spec = ScenarioSpec.from_json(GOOD)
    first, second = spec.traces
    assert isinstance(first, TraceChoice)
    assert isinstance(second, TraceChoice)
    assert (first.name, first.part, first.weight) == ("market_demo", Part.TRAIN, 1.0)
    assert (second.part, second.weight) == (Part.VALIDATION, 2.0)
    assert [pool.name for pool in spec.pools] == ["h100x4", "a100x8"]
    assert [pool.noise for pool in spec.pools] == [0.0, 0.1]
    assert spec.pools[1].h2d_bytes_s == 25e9
    assert (spec.slos[0].ttft_s, spec.slos[1].of("model-000").ttft_s) == (1.0, 3.0)
    assert (spec.load_scale, spec.noise, spec.mtbf_s) == ((0.25, 0.5), (0.0, 0.1), (0.0, 600.0))
    assert ScenarioSpec.from_json(spec) is spec


@pytest.mark.parametrize("name", names("scenario"))
def test_named_scenario_loads_and_starts(name: str) -> None:
    spec = ScenarioSpec.from_json(name)
    stated = yaml.safe_load((FOLDER / "scenario" / f"{name}.yaml").read_text())
    assert len(spec.pools) == len(stated["pools"])
    sim = sample(spec, np.random.default_rng(0))
    assert sim.state.pool["now_ns"][0] > 0


def test_named_pools_are_those_of_the_command_line() -> None:
    with initialize_config_module(config_module="conf", version_base="1.3"):
        for name in names("pool"):
            pool = from_plain(PoolSpec, named("pool", name, "pool"))
            assert pool == build(Config, compose("evaluate", overrides=[f"pool={name}"])).pool


def test_trace_in_memory_has_no_json(scenario: ScenarioSpec) -> None:
    with pytest.raises(UserError, match=r"^scenario\.traces\[0\]: trace small is in memory"):
        scenario.to_json()


def test_deadline_rate_is_tokens_a_second_by_weight(scenario: ScenarioSpec) -> None:
    trace = scenario.trace(0)
    rate = trace.output_tokens.sum() / trace.span_s
    assert scenario.deadline_rate == pytest.approx(rate)
    double = replace(trace, output_tokens=2 * trace.output_tokens)
    both = replace(scenario, traces=(trace, double))
    assert both.deadline_rate == pytest.approx(1.5 * rate)
    weighted = ScenarioSpec.from_json(GOOD)
    one, two = (replace(weighted, traces=(t,)).deadline_rate for t in weighted.traces)
    assert weighted.deadline_rate == pytest.approx((one + 2 * two) / 3)


def test_demo_scenario_plays_the_bundled_trace() -> None:
    spec = demo_scenario()
    assert (spec.name, spec.pools[0].instances) == ("market_demo", 8)
    assert 5 < spec.trace(0).rate_rps < 8


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"load_scale": (0.0, 1.0)}, "scenario.load_scale=[0.0, 1.0]: expected 0 < low <= high"),
        ({"load_scale": (2.0, 1.0)}, "scenario.load_scale=[2.0, 1.0]: expected 0 < low <= high"),
        ({"load_scale": (1.0, float("inf"))}, "scenario.load_scale=[1.0, inf]: expected 0 < low"),
        ({"load_scale": (float("nan"), 1.0)}, "scenario.load_scale=[nan, 1.0]: expected 0 < low"),
        ({"speed": (0.0, 1.0)}, "scenario.speed=[0.0, 1.0]: expected 0 < low <= high"),
        ({"noise": (0.2, 0.1)}, "scenario.noise=[0.2, 0.1]: expected 0 <= low <= high"),
        ({"mtbf_s": (0.5,)}, "scenario.mtbf_s=0.5: expected 0 (none fails) or 1 to 1e9"),
        (
            {"slos": (SloSpec(models={"model-000": ModelSlo(tbt_s=1e9)}),)},
            "scenario.slos: ttft_s=10, tbt_s=1e+09: the last token of small is due after",
        ),
        ({"speed": (1e-9, 1.0)}, "scenario.speed=[1e-09, 1.0]: expected 0.001 to 1000"),
        ({"speed": (1.0, 1e9)}, "scenario.speed=[1.0, 1000000000.0]: expected 0.001 to 1000"),
        ({"shortest_s": 0.0}, "scenario.shortest_s=0.0, longest_s=10.0: expected 0 < shortest_s"),
        ({"shortest_s": 11.0}, "scenario.shortest_s=11.0, longest_s=10.0: expected 0 < shortest_s"),
        ({"longest_s": float("nan")}, "scenario.shortest_s=5.0, longest_s=nan: expected 0 <"),
        ({"warm_s": -1.0}, "scenario.warm_s=-1.0: expected at least 0"),
        ({"warm_s": 190.0}, "trace small: its 400 s are shorter than warm_s + longest_s at load_"),
        ({"load_bins": 0}, "scenario.load_bins=0: expected at least 1"),
        (
            {"level_weights": (1.0, 1.0)},
            "scenario.level_weights=[1.0, 1.0]: expected 1 of 0",
        ),
        ({"level_weights": (0.0,)}, "scenario.level_weights=[0.0]: expected 1 of 0 or more"),
        ({"traces": ()}, "scenario.traces=[]: expected at least one"),
        ({"pools": ()}, "scenario.pools=[]: expected at least one"),
    ],
)
def test_scenario_that_cannot_be_names_key_and_value(
    scenario: ScenarioSpec, change: dict[str, Any], expected: str
) -> None:
    with pytest.raises(UserError) as caught:
        replace(scenario, **change)
    assert str(caught.value).startswith(expected)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("dmo", "scenario=dmo: did you mean 'demo'?"),
        (3, "scenario=3: expected a name or a mapping"),
        (
            GOOD | {"lod_scale": [1, 2]},
            "scenario.lod_scale: unknown key; did you mean 'load",
        ),
        (GOOD | {"pools": "h100x8"}, "scenario.pools='h100x8': expected a list"),
        (GOOD | {"pools": ["h100x5"]}, "scenario.pools[0]=h100x5: did you mean 'h100x8'?"),
        (GOOD | {"pools": [{"pool": "h10"}]}, "scenario.pools[0].pool=h10: did you mean 'h100x"),
        (
            GOOD | {"pools": ["h100x4", {"pool": "h100x8", "noize": 1}]},
            "scenario.pools[1].noize: unknown key; did you mean 'noise'?",
        ),
        (GOOD | {"traces": ["market_dmo"]}, "trace.name=market_dmo: no such trace; did you mean"),
        (
            GOOD | {"traces": [{"part": "tst"}]},
            "scenario.traces[0].part='tst': did you mean 'test",
        ),
        (
            GOOD | {"traces": [{"market": {"modles": 3}}]},
            "scenario.traces[0].market.modles: unknown key; did you mean 'models'?",
        ),
        (GOOD | {"traces": [None]}, "scenario.traces[0]=None: expected keys of TraceChoice"),
        ({"traces": ["market_demo"]}, "scenario.pools: missing: expected a value"),
        ({}, "scenario.traces: missing: expected a value"),
        (GOOD | {"pools": [{}]}, "scenario.pools[0].name: missing: expected a value"),
        (GOOD | {"traces": [{"weight": 0}]}, "traces: weight=0.0: expected more than 0"),
        (GOOD | {"slos": [{"ttft_s": "x"}]}, "scenario.slos[0].ttft_s='x': expected a number"),
        (
            GOOD | {"slos": [{"models": {"model-0": {"ttft_s": 1}}}]},
            "slo.models.model-0: no such model; did you mean 'model-0",
        ),
    ],
)
def test_mapping_that_is_no_scenario_names_the_place(value: Any, expected: str) -> None:
    with pytest.raises(UserError) as caught:
        ScenarioSpec.from_json(value)
    assert str(caught.value).startswith(expected)
    assert "\n" not in str(caught.value)
