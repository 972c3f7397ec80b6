"""The page of a trace: the estimate first, figures that hold, names that are escaped."""

import re
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from aegaeon_rl.evaluation import trace_plots
from aegaeon_rl.evaluation.trace_page import answer, estimate, render
from traces import Trace
from traces.market import MarketSpec, generate
from traces.statistics import Surveyed, survey

FIGURES = ("over_time", "popularity", "burstiness", "activity", "lengths")


@pytest.fixture(scope="module")
def sparse() -> Surveyed:
    """150 models that are seldom asked."""
    spec = MarketSpec(name="sparse", models=150, duration_s=20_000.0, rate_rps=0.5, seed=1)
    return survey(generate(spec))


def text_of(page: str) -> str:
    return re.sub(
        r"\s+", " ", re.sub(r"<[^>]+>", " ", re.sub(r"<svg.*?</svg>", "", page, flags=re.S))
    )


def test_answer_tells_how_many_models_are_active(sparse: Surveyed, market: Trace) -> None:
    facts = sparse.facts
    assert answer(sparse) == (
        f"Of {facts.models} models in sparse, {facts.active_models:.2g} have a request within 17"
        f" seconds on average, and {facts.active_models_p99:.0f} or fewer in 99 % of the time:"
        " a GPU for each would mostly wait."
    )
    assert "share GPUs between tokens" in answer(survey(market))
    one = survey(market.select_models([market.models[0]]))
    assert "nothing to pool" in answer(one)


def test_estimate_sets_dedicated_gpus_against_active_models(sparse: Surveyed) -> None:
    (_, dedicated, _), (_, active, why), (_, mean, bursts) = estimate(sparse.facts)
    assert int(dedicated) == sparse.facts.models
    assert int(active) == sparse.facts.active_models_p99
    assert f"{100 * sparse.facts.pooled_share:.1f} % fewer" in why
    assert float(mean) == pytest.approx(sparse.facts.active_models, rel=0.05)
    poisson = float(bursts.split()[0])
    assert poisson == pytest.approx(sparse.facts.poisson_active_models, rel=0.05)
    assert (": fewer," in bursts) == (sparse.facts.active_models < poisson)


def test_page_holds_everything_and_needs_nothing_else(sparse: Surveyed) -> None:
    page = render(sparse, command="aegaeon-rl trace", commit="abc")
    assert page.count("<svg") == len(FIGURES)
    assert not re.search(r"(src|href)=\"http", page)
    text = text_of(page)
    for part in (sparse.sha256, *sparse.lineage, "aegaeon-rl trace", "abc", "synthetic"):
        assert part in text
    assert f"{sparse.requests:,}" in text
    assert "nan" not in text.lower()


def test_page_escapes_what_the_file_says(market: Trace) -> None:
    evil = replace(market, name="<script>x</script>", lineage=("<b>",))
    page = render(survey(evil), command="<i>", commit="c")
    assert "<script>x" not in page
    assert "<b>" not in page
    assert "<i>" not in page


@pytest.mark.parametrize("figure", FIGURES)
def test_figures_can_be_drawn_of_a_single_request(
    trace_of: Callable[..., Trace], figure: str
) -> None:
    found = survey(trace_of([(0.0, 0, 1, 1)]))
    assert getattr(trace_plots, figure)(found).startswith("<svg")


@pytest.mark.parametrize("figure", FIGURES)
def test_figures_have_plain_numbers(sparse: Surveyed, market: Trace, figure: str) -> None:
    for found in (sparse, survey(market)):
        assert "mathdefault" not in getattr(trace_plots, figure)(found)


def test_figures_are_the_same_each_time(sparse: Surveyed) -> None:
    for figure in FIGURES:
        draw = getattr(trace_plots, figure)
        assert draw(sparse) == draw(sparse)


@pytest.mark.parametrize(
    ("span_s", "unit"), [(100, "minutes"), (7200, "hours"), (86_400, "hours"), (3e5, "days")]
)
def test_time_axis_has_a_unit_of_its_size(span_s: float, unit: str) -> None:
    assert trace_plots.in_units(span_s)[1] == unit


def test_length_curve_ends_at_the_longest(sparse: Surveyed) -> None:
    tokens, share = trace_plots._thinned(sparse.output)
    assert tokens[-1] == sparse.output.ranked()[0][-1]
    assert share[-1] == 1.0
    assert np.all(np.diff(share) > 0)
