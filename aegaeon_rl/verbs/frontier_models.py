"""`frontier` along models: the crossings, their ratios to the baseline, the headline."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from aegaeon_rl.evaluation.compare import Plan, label_of
from aegaeon_rl.evaluation.export import record_window
from aegaeon_rl.evaluation.plots import gantt
from aegaeon_rl.evaluation.record import summary, write_rows, write_summary, write_text
from aegaeon_rl.evaluation.report import Section, cell_text, percent
from aegaeon_rl.evaluation.sizing import can_run
from aegaeon_rl.evaluation.spec import EvaluationSpec
from aegaeon_rl.frontier.cells import CellStore
from aegaeon_rl.frontier.models import (
    Crossing,
    Question,
    Ratio,
    crossings_of,
    curve_rows,
    quoted,
    ratios,
    row_of,
)
from aegaeon_rl.frontier.report import protocol, render
from aegaeon_rl.frontier.steady import steady_trace
from aegaeon_rl.verbs.common import command, console, counter, run_folder
from aegaeon_rl.verbs.frontier_config import Config
from runtime.core import SloSpec
from runtime.protocol import Oracle, Policy
from runtime.timeline.bars import bars

SHOWN = (
    ("offered_requests_s", "req/s", "count"),
    ("backlog_slope", "backlog/s", "number"),
    ("request_lost", "lost", "share"),
    ("worst_model", "worst", "share"),
    ("ttft_p99_s", "TTFT p99", "seconds"),
    ("stall_p99_s", "stall p99", "seconds"),
    ("gpu_busy", "busy", "share"),
)


def models_main(config: Config, folder: Path, policies: list[Policy]) -> None:
    pools = config.pools()
    for pool in pools:
        for policy in policies:
            policy.configure(pool)
    run_folder(folder, config)
    store = CellStore(folder, resume=config.resume)
    groups: list[list[Crossing]] = []
    found: list[Ratio] = []
    with counter("frontier") as advance:
        question = Question(
            spec=config.frontier, pools=pools, slo=config.slo, seed=config.seed, store=store,
            listen=advance,
        )  # fmt: skip
        for group in crossings_of(question, policies):
            groups.append(group)
            before = len(found)
            found += ratios(question, group)
            print_group(group, found[before:])
    rows = [row_of(c) for group in groups for c in group]
    content = summary("frontier", config.seed, None, pools[0], config.slo, rows)
    content["command"] = command()
    content["find"] = str(config.find)
    content["ratios"] = [ratio_row(r) for r in found]
    content["quoted"] = [ratio_row(r) for r in quoted(found)]
    content["curves"] = unique([row for group in groups for c in group for row in curve_rows(c)])
    write_rows(folder / "results.parquet", rows)
    write_summary(folder / "summary.json", content)
    answers = [ratio_text(r) for r in quoted(found)]
    spec = config.frontier
    notes = protocol(content, spec.seeds, spec.warm_s, spec.duration_s)
    write_text(
        folder / "report.html",
        render(content, answers, notes, excerpt(groups[0], policies, config.slo, config.seed)),
    )
    for line in answers:
        console.print(line)
    console.print(f"{folder / 'report.html'}\n{folder}", soft_wrap=True)


GANTT_S = 30.0


def excerpt(
    group: Sequence[Crossing], policies: Sequence[Policy], slo: SloSpec, seed: int
) -> Section | None:
    """What the instances do under each policy with the models of the first one's crossing."""
    first = group[0]
    if first.best is None:
        return None
    able = [p for p in policies if can_run(p, first.pool)]
    workload, models = first.workload, first.best.size
    plan = Plan(
        trace=steady_trace(workload, models, seed),
        pool=first.pool,
        slo=slo,
        spec=EvaluationSpec(windows=0),
    )
    window_s = (workload.warm_s, min(workload.warm_s + GANTT_S, workload.span_s))
    turns = {
        label_of(p.name, isinstance(p, Oracle)): bars(record_window(plan, p, *window_s).timeline)
        for p in able
    }
    figure = gantt(turns, first.pool.instances, models, window_s, first.pool.tp)
    text = (
        f"{models} models on {first.pool.name}, {workload.label}, the {GANTT_S:g} s after the"
        f" warm-up of seed {seed}: a row an instance, a colour a model, pale while its weights"
        " load; white: it waits. The shares in each title say where the time goes."
    )
    return Section(title=f"Why: {first.policy}'s load under each policy", text=text, figure=figure)


def unique(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Sizes tried for several targets, once, in order."""
    keys = ("pool", "process", "rate", "policy", "models")
    by_key = {tuple(row[k] for k in keys): row for row in rows}
    return [by_key[key] for key in sorted(by_key)]


def ratio_row(ratio: Ratio) -> dict[str, Any]:
    return {
        "policy": ratio.policy,
        "baseline": ratio.baseline,
        "pool": ratio.pool,
        "process": ratio.workload.process.value,
        "rate": ratio.workload.rate,
        "target": ratio.target,
        "ratio": ratio.plain.value,
        "ci_low": ratio.plain.low,
        "ci_high": ratio.plain.high,
        "sides_held": ratio.sides_held,
        "ratio_beside": ratio.beside,
    }


def ratio_text(ratio: Ratio) -> str:
    """The headline's sentence for one policy, workload and target."""
    plain = f"{ratio.plain.value:.2f} [{ratio.plain.low:.2f}, {ratio.plain.high:.2f}]"
    start = (
        f"{ratio.policy} / {ratio.baseline}, {ratio.workload.label}, {percent(ratio.target)}:"
        f" {plain} x the models ({ratio.pool})"
    )
    if ratio.sides_held:
        return f"{start}; lost requests, worst models and TTFT p99 no worse"
    return f"{start}; {ratio.beside:.2f} x with lost, worst and TTFT p99 no worse"


def print_group(group: list[Crossing], found: list[Ratio]) -> None:
    first = group[0]
    bound = f"; bound {first.bound.value:.0f} ({first.bound.by})" if first.bound else ""
    console.print(
        f"\n{first.pool.name}, {first.workload.label}, {percent(first.target)} of tokens on time"
        f"{bound}"
    )
    table = Table(box=None, pad_edge=False)
    for heading in ("policy", "models", "95 %", "of bound", *(h for _, h, _ in SHOWN), "ratio"):
        table.add_column(heading, justify="left" if heading == "policy" else "right")
    over = {r.policy: f"{r.plain.value:.2f}" for r in found}
    for c in group:
        values = [shown(c, key, kind) for key, _, kind in SHOWN]
        name = f"{c.policy} (oracle)" if c.is_oracle else c.policy
        share = percent(c.share_of_bound) if c.bound else ""
        interval = f"{c.at.low:.0f}-{c.at.high:.0f}"
        table.add_row(name, str(c.models), interval, share, *values, over.get(c.policy, ""))
    console.print(table)


def shown(crossing: Crossing, key: str, kind: str) -> str:
    if crossing.best is None:
        return "n/a"
    value = crossing.best.mean(key)
    return f"{value:.3f}" if kind == "number" else cell_text(value, kind)
