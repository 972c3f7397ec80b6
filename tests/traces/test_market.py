"""The market generator: popularity, streams of their own, lengths from quantiles."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from traces import TraceKind, UserError
from traces.arrivals import ArrivalProcess
from traces.bundled import RECIPES, load_bundled
from traces.errors import TraceError
from traces.market import LEVELS, OUTPUT_QUANTILES, MarketSpec, generate, lengths, rates
from traces.trace import Trace

SMALL = MarketSpec(models=6, duration_s=1800.0, rate_rps=2.0, seed=4)


def requests_of(trace: Trace, name: str) -> list[list[float]]:
    """Arrivals, prompts and outputs of one model."""
    mine = trace.select_models([name])
    columns = (mine.arrival_s, mine.prompt_tokens, mine.output_tokens)
    return [column.tolist() for column in columns]


def test_generate_is_a_function_of_the_spec() -> None:
    assert generate(SMALL).sha256 == generate(SMALL).sha256
    assert generate(replace(SMALL, seed=5)).sha256 != generate(SMALL).sha256


def test_generate_states_what_it_made() -> None:
    trace = generate(SMALL)
    assert (trace.name, trace.kind) == ("market", TraceKind.SYNTHETIC)
    assert trace.lineage == ("generate market seed=4",)
    assert trace.span_s < 1800.0
    assert trace.arrival_s.tolist() == np.round(trace.arrival_s, 6).tolist()


def test_generate_with_one_more_model_leaves_the_others_alone() -> None:
    weight = np.arange(1, 8) ** -SMALL.zipf
    wider = replace(SMALL, models=7, rate_rps=SMALL.rate_rps * weight.sum() / weight[:6].sum())
    before, after = generate(SMALL), generate(wider)
    assert len(after.models) == len(before.models) + 1
    for name in before.models:
        old, new = requests_of(before, name), requests_of(after, name)
        assert old[0] == pytest.approx(new[0], abs=2e-6)
        assert old[1:] == new[1:]


def test_rates_follow_zipf_and_sum_to_the_total() -> None:
    rate = rates(SMALL)
    assert rate.sum() == pytest.approx(SMALL.rate_rps)
    assert rate[0] / rate == pytest.approx(np.arange(1, 7) ** SMALL.zipf)


def test_generate_gives_each_model_its_share() -> None:
    spec = replace(SMALL, duration_s=50_000.0, processes=((ArrivalProcess.POISSON, 1.0),))
    trace = generate(spec)
    counts = [len(requests_of(trace, f"model-{i:03d}")[0]) for i in range(6)]
    assert np.array(counts) / spec.duration_s == pytest.approx(rates(spec), rel=0.05)


def test_generate_deals_the_processes_in_turn() -> None:
    smooth_then_bursty = ((ArrivalProcess.GAMMA, 0.2), (ArrivalProcess.WEIBULL, 3.0))
    spec = replace(
        SMALL, processes=smooth_then_bursty, diurnal_depth=0.0, duration_s=20_000.0, zipf=0.0
    )
    trace = generate(spec)
    for index in range(6):
        gaps = np.diff(requests_of(trace, f"model-{index:03d}")[0])
        assert gaps.std() / gaps.mean() == pytest.approx((0.2, 3.0)[index % 2], rel=0.15)


def test_lengths_follow_the_quantiles() -> None:
    drawn = lengths(OUTPUT_QUANTILES, 1.0, 100_000, np.random.default_rng(0))
    assert np.quantile(drawn, LEVELS[1:-1]) == pytest.approx(OUTPUT_QUANTILES[1:-1], rel=0.05)
    assert OUTPUT_QUANTILES[0] <= drawn.min()
    assert drawn.max() <= OUTPUT_QUANTILES[-1]


def test_lengths_scale_and_are_never_below_one() -> None:
    whole = lengths(OUTPUT_QUANTILES, 1.0, 1000, np.random.default_rng(0))
    double = lengths(OUTPUT_QUANTILES, 2.0, 1000, np.random.default_rng(0))
    assert np.abs(double - 2.0 * whole).max() <= 1
    assert lengths(OUTPUT_QUANTILES, 1e-9, 1000, np.random.default_rng(0)).tolist() == [1] * 1000


def test_generate_without_a_request_names_the_market() -> None:
    with pytest.raises(UserError, match=r"market market: no request falls in 0\.001 s"):
        generate(MarketSpec(models=1, duration_s=0.001, rate_rps=0.001, seed=1))


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"models": 0}, "market.models=0: expected more than 0"),
        ({"duration_s": float("nan")}, "market.duration_s=nan: expected more than 0"),
        ({"rate_rps": -1.0}, "market.rate_rps=-1.0: expected more than 0"),
        ({"diurnal_period_s": 0.0}, "market.diurnal_period_s=0.0: expected more than 0"),
        ({"diurnal_depth": 1.0}, "market.diurnal_depth=1.0: expected 0 <= depth < 1"),
        ({"zipf": float("inf")}, "market.zipf=inf: expected a number"),
        ({"length_spread": -0.1}, "market.length_spread=-0.1: expected 0 or more"),
        ({"processes": ()}, "market.processes=(): expected one or more"),
        ({"processes": ((ArrivalProcess.GAMMA, 0.0),)}, "market.processes=(("),
        ({"prompt_quantiles": (1, 2)}, "market.prompt_quantiles: expected 12 rising values"),
        ({"output_quantiles": (0, *range(1, 12))}, "market.output_quantiles: expected 12 rising"),
        ({"output_quantiles": tuple(range(12, 0, -1))}, "market.output_quantiles: expected 12"),
    ],
)
def test_spec_that_cannot_be_names_key_and_value(change: dict[str, Any], expected: str) -> None:
    with pytest.raises(UserError) as caught:
        MarketSpec(**change)
    assert str(caught.value).startswith(expected)


@pytest.mark.parametrize("name", RECIPES)
def test_bundled_trace_is_what_its_recipe_makes(name: str) -> None:
    bundled = load_bundled(name)
    assert bundled.sha256 == generate(RECIPES[name]).sha256
    assert bundled.kind is TraceKind.SYNTHETIC
    assert bundled.licence == "Apache-2.0"


def test_bundled_trace_of_an_unknown_name_lists_the_choices() -> None:
    with pytest.raises(TraceError, match="bundled trace 'market'; did you mean 'market_demo'"):
        load_bundled("market")
