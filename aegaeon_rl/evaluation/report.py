"""`report.html`: one file that opens offline, answer first."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jinja2

from aegaeon_rl.evaluation import plots
from aegaeon_rl.evaluation.compare import Comparison, Plan, Row, label_of, window_trace
from aegaeon_rl.evaluation.export import record_window
from aegaeon_rl.evaluation.metrics import model_attainment
from aegaeon_rl.evaluation.sizing import Sizing
from runtime.emulator.profile import load_profile
from runtime.protocol import Oracle, Policy
from runtime.timeline.bars import Bar, bars

TABLE = (  # metric, heading, kind
    ("token_attainment", "tokens on time", "share"),
    ("qos", "qos", "share"),
    ("request_ok", "requests ok", "share"),
    ("request_lost", "requests lost", "share"),
    ("worst_model", "worst models", "share"),
    ("goodput_tokens_s", "goodput tok/s", "count"),
    ("ttft_p50_s", "TTFT p50", "seconds"),
    ("ttft_p99_s", "TTFT p99", "seconds"),
    ("tbt_p99_s", "TBT p99", "seconds"),
    ("stall_p99_s", "stall p99", "seconds"),
    ("switches", "switches", "count"),
    ("switch_share", "switching", "share"),
    ("gpu_busy", "GPU busy", "share"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Section:
    """An extra part of a report: a title, a text, a figure as SVG."""

    title: str
    text: str
    figure: str


def percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def counted(n: int, noun: str) -> str:
    return f"{n} {noun}" if n == 1 else f"{n} {noun}s"


def cell_text(value: float, kind: str) -> str:
    if value != value or value == float("inf"):
        return "never" if value == float("inf") else "n/a"
    if kind == "share":
        return percent(value)
    return f"{value:.2f} s" if kind == "seconds" else f"{value:,.0f}"


def difference_text(row: Row) -> str:
    """Points against the baseline, with the interval."""
    if row.difference is None:
        return "baseline"
    value, low, high = (100 * bound for bound in row.difference)
    if low != low:
        return f"{value:+.1f} points"
    return f"{value:+.1f} points [{low:+.1f}, {high:+.1f}]"


def answer(comparison: Comparison) -> str:
    """The result in one sentence."""
    best, baseline = comparison.challenger, comparison.row(comparison.baseline)
    trace, pool = comparison.plan.trace, comparison.plan.pool
    where = f"On {trace.name} and {counted(pool.gpus, 'GPU')} ({pool.name})"
    reached = percent(best.cell.metrics["token_attainment"])
    if best.difference is None:
        return f"{where}, {best.cell.label} emits {reached} of all tokens on time."
    other = f"{baseline.cell.label} {percent(baseline.cell.metrics['token_attainment'])}"
    return (
        f"{where}, {best.cell.label} emits {reached} of all tokens on time, {other}:"
        f" {difference_text(best)}, {verdict(best)}."
    )


def verdict(row: Row) -> str:
    """Plain words; without an interval nothing is claimed."""
    if row.difference is None:
        return ""
    has_interval = row.difference.low == row.difference.low
    return row.difference.verdict if has_interval else "too little time to tell"


def sizing_sentence(sizing: Sizing) -> str:
    target = f"{100 * sizing.target:g} % of tokens on time"
    if sizing.rate_rps is not None:
        target += f" at {sizing.rate_rps:.2f} requests/s"
    if sizing.dedicated_share < sizing.target:
        return (
            f"{target} is out of reach: with a GPU for each model, and more for those that gain by"
            f" it, dedicated serving reaches {100 * sizing.dedicated_share:.2f} %."
        )
    if sizing.pooled is None:
        return (
            f"To keep {target}, dedicated serving needs {sizing.dedicated} GPUs;"
            f" a pool of as many under {sizing.policy} reaches {100 * sizing.pooled_share:.2f} %."
        )
    return (
        f"To keep {target}: dedicated {sizing.dedicated} GPUs -> pooled {sizing.pooled}"
        f" under {sizing.policy}, {percent(sizing.saved)} fewer."
    )


def assumptions(comparison: Comparison) -> list[str]:
    """What a reader must know before believing a number."""
    plan = comparison.plan
    trace, spec, pool = plan.trace, plan.spec, plan.pool
    profile = load_profile(pool.profile)
    windows = (
        f"{counted(len(plan.windows), 'window')} of {spec.window_s:g} s"
        f" ({percent(plan.covered)} of its span), the first {spec.warm_s:g} s of each not counted"
        if plan.covered < 1 or len(plan.windows) > 1
        else f"run whole ({trace.span_s:.0f} s) from an empty pool, which is a transient"
    )
    units = counted(len(plan.windows), "window")
    if plan.block_s is not None:
        units = f"{plan.block_s:.3g} s blocks"
    deals = f" and {spec.seeds} deals of model sizes" if spec.seeds > 1 else ""
    measured = "measured" if profile.kind == "measured" else f"{profile.kind}, not measured"
    sizes = sorted(set(pool.checkpoints))
    exceptions = plan.slo.models or {}
    own = f" ({counted(len(exceptions), 'model')} with an SLO of its own)" if exceptions else ""
    groups = f", {pool.tp} GPUs an instance" if pool.tp > 1 else ""
    return [
        f"Trace: {trace.name} ({trace.kind}), {trace.requests:,} requests of"
        f" {len(trace.models)} models at {trace.rate_rps:.2f} requests/s; {windows}.",
        f"Step times: profile {profile.name} ({profile.gpu}), {measured}: {profile.source}.",
        f"Pool: {counted(pool.gpus, 'GPU')} on {counted(pool.nodes, 'node')}{groups},"
        f" {counted(pool.weight_slots, 'weight slot')}, {pool.h2d_bytes_s / 1e9:g} GB/s host to"
        f" device; models are dealt {counted(len(sizes), 'checkpoint')}: {', '.join(sizes)}.",
        f"SLO: first token within {plan.slo.ttft_s:g} s, then one every {plan.slo.tbt_s * 1e3:g}"
        f" ms{own}; token i is on time if it appears by arrival + TTFT + i * TBT.",
        f"Intervals: {100 * spec.confidence:g} %, paired bootstrap over {units}{deals},"
        f" {spec.draws} draws. Emulated, not run on GPUs.",
    ]


def gantt_window_s(plan: Plan) -> tuple[float, float]:
    """`gantt_s` of the first window, after its warm-up; the middle of a trace that is run whole."""
    window = plan.windows[0]
    _, span_s = window_trace(plan.trace, window, 1.0)
    start_s = window.warm_s or max(0.0, min(span_s / 2, span_s - plan.spec.gantt_s))
    return start_s, min(start_s + plan.spec.gantt_s, span_s)


def turns_of(comparison: Comparison, policies: Sequence[Policy]) -> dict[str, list[Bar]]:
    """What each policy's Gantt shows."""
    plan = comparison.plan
    window_s = gantt_window_s(plan)
    return {
        label_of(p.name, isinstance(p, Oracle)): bars(record_window(plan, p, *window_s).timeline)
        for p in policies
    }


def worst_table(comparison: Comparison, count: int = 5) -> list[dict[str, Any]]:
    """The models that fare worst under the best policy, under all policies."""
    cells = [row.cell for row in comparison.rows]
    results = comparison.best.cell.sample.results
    present = sorted({int(m) for m in results["model"]})
    shares = {
        cell.policy: dict(zip(present, model_attainment(cell.sample.results), strict=True))
        for cell in cells
    }
    best = shares[comparison.best.cell.policy]
    worst = sorted(present, key=lambda m: (best[m], m))[:count]
    return [
        {
            "model": comparison.plan.trace.models[m],
            "requests": int((results["model"] == m).sum()),
            "shares": [percent(shares[cell.policy][m]) for cell in cells],
        }
        for m in worst
    ]


def render(
    comparison: Comparison,
    policies: Sequence[Policy],
    *,
    command: str,
    commit: str,
    sizing: Sizing | None = None,
    sections: Sequence[Section] = (),
) -> str:
    """The page; `sections` follow the answer's table."""
    cells = [row.cell for row in comparison.rows]
    plan = comparison.plan
    facts: list[tuple[str, list[str]]] = [
        (
            f"against {comparison.row(comparison.baseline).cell.label}",
            [difference_text(row) for row in comparison.rows],
        ),
        ("verdict", [verdict(row) for row in comparison.rows]),
    ]
    for key, heading, kind in TABLE:
        facts.append((heading, [cell_text(cell.metrics[key], kind) for cell in cells]))
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("aegaeon_rl.evaluation"), autoescape=True, trim_blocks=True
    )
    return environment.get_template("report.html.j2").render(
        answer=answer(comparison),
        sizing=sizing and sizing_sentence(sizing),
        assumptions=assumptions(comparison),
        policies=[cell.label for cell in cells],
        best=comparison.best.cell.label,
        facts=facts,
        colours=plots.colours([cell.label for cell in cells]),
        sections=sections,
        load_figure=plots.attainment_by_load(comparison),
        distribution_figure=plots.distributions(cells),
        model_figure=plots.worst_models(cells),
        worst=worst_table(comparison),
        jain=[f"{cell.metrics['fairness_jain']:.3f}" for cell in cells],
        gantt_figure=plots.gantt(
            turns_of(comparison, policies),
            plan.pool.instances,
            len(plan.trace.models),
            gantt_window_s(plan),
            plan.pool.tp,
        ),
        gantt_s=plan.spec.gantt_s,
        gantt_row="GPU" if plan.pool.tp == 1 else f"instance of {plan.pool.tp} GPUs",
        command=command,
        commit=commit,
    )
