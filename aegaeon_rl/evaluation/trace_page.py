"""`report.html` of a trace: one file that opens offline, the pooling estimate first."""

from typing import Any

import jinja2
import numpy as np

from aegaeon_rl.evaluation import trace_plots
from aegaeon_rl.evaluation.report import counted, percent
from traces.statistics import Surveyed, TraceFacts

LEVELS = (0.05, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99, 1.0)


def answer(found: Surveyed) -> str:
    """What decides whether pooling pays, in one sentence."""
    facts = found.facts
    if facts.models == 1:
        return f"{found.name} is one model: there is nothing to pool."
    start = (
        f"Of {facts.models} models in {found.name}, {facts.active_models:.2g} have a request within"
        " 17 seconds on average"
    )
    if facts.active_models_p99 < facts.models / 2:
        return (
            f"{start}, and {facts.active_models_p99:.0f} or fewer in 99 % of the time: a GPU for"
            " each would mostly wait."
        )
    return (
        f"{start}, and at times {facts.active_models_max:.0f}: many are busy at once, so a pool has"
        " to share GPUs between tokens."
    )


def estimate(facts: TraceFacts) -> list[tuple[str, str, str]]:
    """The pooling estimate: models or GPUs, how they are shared, and why so many."""
    at_once = max(1.0, facts.active_models_p99)
    is_fewer = facts.active_models < facts.poisson_active_models
    return [
        ("dedicated", f"{facts.dedicated_gpus}", "one GPU for each model, busy or not"),
        (
            "active at once",
            f"{at_once:.0f}",
            "models with a request within 17 s, in 99 % of such windows: with a GPU for each of"
            f" them, {percent(facts.pooled_share)} fewer GPUs, if a switch cost nothing",
        ),
        (
            "active on average",
            _number(facts.active_models),
            f"{_number(facts.poisson_active_models)} if every model came at random at its own rate,"
            f" M(1 - e^(-rate x 17 s)): {'fewer' if is_fewer else 'more'}, for they come in"
            " bursts and with the hour",
        ),
    ]


def table(found: Surveyed) -> list[tuple[str, str, str]]:
    """Facts: heading, value, meaning."""
    f = found.facts
    return [
        ("requests", f"{f.requests:,}", f"{f.rate_rps:.3g}/s over {_duration(f.span_s)}"),
        ("models", f"{f.models:,}", "with a request"),
        ("peak over mean", f"{f.peak_over_mean:.1f}", "busiest minute over the mean one"),
        ("popularity", f"{f.zipf:.2f}", "Zipf exponent, most likely of its requests"),
        ("top tenth of models", percent(f.top10_share), "of all requests"),
        ("CV of gaps", _number(f.cv), "of the median model; 1 is Poisson"),
        ("CV within 10 minutes", _number(f.cv_within), "median over models and windows"),
        ("dispersion", _number(f.dispersion), "variance over mean of requests a minute"),
        ("dispersion of a model", _number(f.dispersion_model), "median; 1 is Poisson"),
        ("active models", _number(f.active_models), "with a request within 17 s, mean"),
        ("95th, 99th percentile", f"{f.active_models_p95:.0f}, {f.active_models_p99:.0f}",
         f"at most {f.active_models_max:.0f}"),
        ("prompt and output", _number(f.length_correlation), "correlation of their logarithms"),
    ]  # fmt: skip


def length_table(found: Surveyed) -> list[tuple[str, list[str]]]:
    levels = np.array(LEVELS)
    return [
        (name, [f"{value:,.0f}" for value in values.quantiles(levels)])
        for name, values in (("prompt tokens", found.prompt), ("output tokens", found.output))
    ]


def render(found: Surveyed, *, command: str, commit: str) -> str:
    """The page of a whole trace."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("aegaeon_rl.evaluation"), autoescape=True, trim_blocks=True
    )
    figures: dict[str, Any] = {
        name: getattr(trace_plots, name)(found)
        for name in ("over_time", "popularity", "burstiness", "activity", "lengths")
    }
    return environment.get_template("trace.html.j2").render(
        found=found,
        answer=answer(found),
        summary=f"{counted(found.facts.models, 'model')}, {found.requests:,} requests in"
        f" {_duration(found.span_s)}; kind: {found.kind}; licence: {found.licence}.",
        estimate=estimate(found.facts),
        facts=table(found),
        levels=[f"{100 * level:g} %" for level in LEVELS],
        lengths=length_table(found),
        figures=figures,
        command=command,
        commit=commit,
    )


def _number(value: float) -> str:
    if value != value:
        return "n/a"
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def _duration(seconds: float) -> str:
    for unit_s, unit in ((86_400, "days"), (3600, "hours"), (60, "minutes")):
        if seconds >= 2 * unit_s:
            return f"{seconds / unit_s:.3g} {unit}"
    return f"{seconds:.3g} s"
