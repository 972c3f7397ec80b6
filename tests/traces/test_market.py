"""The market generator: popularity, burstiness and lengths as asked, in any chunks."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from traces import TraceKind, UserError, market
from traces.arrivals import ArrivalProcess
from traces.bundled import FILES, RECIPES, load_bundled
from traces.errors import TraceError
from traces.lengths import LEVELS, PROMPT_QUANTILES
from traces.market import MarketSpec, generate, market_stream, rates
from traces.stream import collect
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
    assert trace.lineage == ("generate market seed=4 models=6 duration_s=1800 rate_rps=2",)
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


def test_generate_deals_the_tail_its_own_processes() -> None:
    spec = replace(
        SMALL,
        duration_s=400_000.0,
        zipf=0.0,
        tail_models=2,
        tail_share=0.3,
        diurnal_depth=0.0,
        processes=((ArrivalProcess.POISSON, 1.0),),
        tail_processes=((ArrivalProcess.GAMMA, 0.2), (ArrivalProcess.ON_OFF, 20.0)),
        burst_s=1000.0,
    )
    trace = generate(spec)
    for index, cv in ((3, 1.0), (4, 0.2)):
        gaps = np.diff(requests_of(trace, f"model-{index:03d}")[0])
        assert gaps.std() / gaps.mean() == pytest.approx(cv, rel=0.05)
    slots = np.array(requests_of(trace, "model-005")[0]) // 1000
    counts = np.bincount(slots.astype(int), minlength=400)
    assert 0.05 < np.mean(counts > 0) < 0.2  # on for a twentieth, cut by the slots


@pytest.mark.parametrize("turns_mean", [1.0, 3.0])
@pytest.mark.parametrize("block", [7, 50, 10**6])
def test_market_is_the_same_in_any_chunks(
    monkeypatch: pytest.MonkeyPatch, turns_mean: float, block: int
) -> None:
    spec = replace(SMALL, turns_mean=turns_mean, flash_per_day=50.0)
    usual = generate(spec)
    monkeypatch.setattr(market, "BLOCK_REQUESTS", block)
    stream = market_stream(spec)
    assert (sum(1 for _ in stream.chunks()) > 1) == (block < 10**6)
    assert collect(stream).sha256 == usual.sha256


def test_market_hash_is_the_same_on_every_platform() -> None:
    """Pinned: PCG64 draws rounded to microseconds and tokens, whole numbers from there on."""
    trace = generate(replace(SMALL, turns_mean=2.0, flash_per_day=50.0, length_correlation=0.5))
    assert trace.sha256 == "1ac7303db2b35520e0e541ae69659d067f03d7a720da44690b03b73086485040"


def test_popularity_is_as_given() -> None:
    spec = replace(SMALL, popularity=(5.0, 1.0, 1.0, 1.0, 1.0, 1.0), rate_rps=10.0)
    assert rates(spec).tolist() == [5.0, 1.0, 1.0, 1.0, 1.0, 1.0]


def test_tail_has_its_share_of_the_requests() -> None:
    spec = replace(SMALL, tail_models=4, tail_share=0.2, rate_rps=10.0, zipf=1.0)
    rate = rates(spec)
    assert rate[2:].sum() == pytest.approx(2.0)
    assert (rate[0] / rate[1], rate[2] / rate[5]) == pytest.approx((2.0, 4.0))


def test_paper_market_has_the_papers_facts() -> None:
    """94.1 % of 779 models, 1.35 % of 167.6 M requests, 90 days."""
    spec = RECIPES["paper"]
    rate = rates(spec)
    assert spec.duration_s == 90 * 86_400
    assert rate.sum() * spec.duration_s == pytest.approx(167.6e6, rel=1e-3)
    tail = np.sort(rate)[: round(0.941 * 779)]
    assert len(rate) == 779
    assert tail.sum() / rate.sum() == pytest.approx(0.0135, rel=1e-6)


def test_paper_market_draws_what_it_states() -> None:
    """A fiftieth of it: the error of the counts is that of bursty models over 90 days."""
    paper = RECIPES["paper"]
    spec = replace(paper, rate_rps=paper.rate_rps / 50)
    trace = generate(spec)
    assert trace.requests == pytest.approx(167.6e6 / 50, rel=0.03)
    assert len(trace.models) > 700
    counts = np.sort(np.bincount(trace.model, minlength=779))
    assert counts[: round(0.941 * 779)].sum() / trace.requests == pytest.approx(0.0135, rel=0.12)
    assert np.quantile(trace.prompt_tokens, LEVELS[1:-1]) == pytest.approx(
        PROMPT_QUANTILES[1:-1], rel=0.35
    )


def test_conversations_grow_in_the_trace() -> None:
    trace = generate(replace(SMALL, turns_mean=4.0, rate_rps=4.0, duration_s=7200.0))
    assert trace.session is not None
    assert trace.requests == pytest.approx(4.0 * 7200, rel=0.15)
    model_of: dict[str, int] = {}
    longest: dict[str, int] = {}
    for model, session, prompt in zip(
        trace.model, trace.session, trace.prompt_tokens.tolist(), strict=True
    ):
        assert model_of.setdefault(session, model) == model
        assert prompt > longest.get(session, 0)
        longest[session] = prompt


def test_flash_crowds_raise_the_peak_and_keep_the_mean() -> None:
    calm = replace(SMALL, duration_s=86_400.0, processes=((ArrivalProcess.POISSON, 1.0),))
    crowded = replace(calm, flash_per_day=4.0, flash_factor=30.0)
    peaks = []
    for spec in (calm, crowded):
        trace = generate(spec)
        assert trace.requests == pytest.approx(86_400 * spec.rate_rps, rel=0.2)
        busiest = trace.select_models(["model-000"]).arrival_s
        peaks.append(np.bincount((busiest // 150).astype(int)).max() * 576 / len(busiest))
    assert peaks[0] < 2
    assert peaks[1] > 6


def test_generate_without_a_request_names_the_market() -> None:
    with pytest.raises(UserError, match=r"market market: no request falls in 0\.001 s"):
        generate(MarketSpec(models=1, duration_s=0.001, rate_rps=0.001, seed=1))


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"models": 0}, "market.models=0: expected more than 0"),
        ({"models": 10**9}, "market.models=1000000000: expected 1 to 100000"),
        ({"duration_s": 1e300}, "market.duration_s=1e+300: expected 0.001 to 4e+09"),
        ({"rate_rps": 1e12}, "market.rate_rps=1000000000000.0: expected 1e-09 to 1e+06"),
        ({"zipf": 1e300}, "market.zipf=1e+300: expected -20 to 20"),
        ({"turns_mean": 1e300}, "market.turns_mean=1e+300: expected 1 to 10000"),
        ({"burst_s": 1e-300}, "market.burst_s=1e-300: expected 0.001 to 4e+09"),
        ({"processes": ((ArrivalProcess.GAMMA, 1e300),)}, "market.processes=(("),
        ({"models": 2, "popularity": (1e300, 1e-300)}, "market.popularity=[1e+300, 1e-300]: exp"),
        ({"duration_s": float("nan")}, "market.duration_s=nan: expected more than 0"),
        ({"rate_rps": -1.0}, "market.rate_rps=-1.0: expected more than 0"),
        ({"diurnal_period_s": 0.0}, "market.diurnal_period_s=0.0: expected more than 0"),
        ({"diurnal_depth": 1.0}, "market.diurnal_depth=1.0: expected 0 <= depth < 1"),
        ({"zipf": float("inf")}, "market.zipf=inf: expected -20 to 20"),
        ({"length_spread": -0.1}, "market.length_spread=-0.1: expected 0 or more"),
        ({"seed": -1}, "market.seed=-1: expected 0 or more"),
        ({"flash_factor": 0.5}, "market.flash_factor=0.5: expected 1 or more"),
        ({"turns_mean": 0.0}, "market.turns_mean=0.0: expected 1 or more"),
        ({"tail_models": 64}, "market.tail_models=64: expected 0 to 63, under market.models"),
        ({"tail_models": 6}, "market.tail_share=0.0: expected 0 without market.tail_models"),
        ({"tail_share": 0.5}, "market.tail_share=0.5: expected 0 without market.tail_models"),
        ({"popularity": (1.0, 2.0)}, "market.popularity: 2 values: expected one over 0 for each"),
        ({"length_correlation": 1.5}, "market.length_correlation=1.5: expected -1 to 1"),
        ({"prompt_lognormal": (0.0, 1.0)}, "market.prompt_lognormal=(0.0, 1.0): expected"),
        ({"processes": ()}, "market.processes=(): expected one or more"),
        ({"processes": ((ArrivalProcess.GAMMA, 0.0),)}, "market.processes=(("),
        ({"tail_processes": ((ArrivalProcess.GAMMA, 0.0),)}, "market.tail_processes=(("),
        ({"burst_s": 0.0}, "market.burst_s=0.0: expected more than 0"),
        ({"prompt_quantiles": (1, 2)}, "market.prompt_quantiles: expected 12 rising values"),
        ({"output_quantiles": (0, *range(1, 12))}, "market.output_quantiles: expected 12 rising"),
        ({"output_quantiles": tuple(range(12, 0, -1))}, "market.output_quantiles: expected 12"),
    ],
)
def test_spec_that_cannot_be_names_key_and_value(change: dict[str, Any], expected: str) -> None:
    with pytest.raises(UserError) as caught:
        MarketSpec(**change)
    assert str(caught.value).startswith(expected)


@pytest.mark.parametrize("name", FILES)
def test_bundled_trace_is_what_its_recipe_makes(name: str) -> None:
    bundled = load_bundled(name)
    assert bundled.sha256 == generate(RECIPES[name]).sha256
    assert bundled.kind is TraceKind.SYNTHETIC
    assert bundled.licence == "Apache-2.0"


def test_bundled_trace_of_an_unknown_name_lists_the_choices() -> None:
    with pytest.raises(TraceError, match="bundled trace 'market'; did you mean 'market_demo'"):
        load_bundled("market")
