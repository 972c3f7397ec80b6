"""`frontier` along load and GPUs: a trace's own, with plan.csv, and the rebuilt market of 1,192."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from aegaeon_rl.evaluation.compare import Plan, check, window_trace
from aegaeon_rl.evaluation.record import summary, write_rows, write_summary, write_text
from aegaeon_rl.evaluation.report import cell_text, counted, percent
from aegaeon_rl.evaluation.sizing import gpus_near
from aegaeon_rl.frontier.axis import LoadAxis
from aegaeon_rl.frontier.cells import CellStore
from aegaeon_rl.frontier.cost import Prices
from aegaeon_rl.frontier.gpus import (
    Ways,
    at_target,
    axis_of,
    bound_gpus,
    demands_of,
    rows_of,
    way_of,
    ways_of,
)
from aegaeon_rl.frontier.market import ASSUMPTIONS, GPUS, PAPER_POOLED, Half, halves
from aegaeon_rl.frontier.models import METRICS
from aegaeon_rl.frontier.plan import ServingPlan, as_csv, plan_sentence, serving_plan
from aegaeon_rl.frontier.report import render
from aegaeon_rl.frontier.search import Ladder
from aegaeon_rl.verbs.common import command, console, counter, run_folder
from aegaeon_rl.verbs.frontier_config import Config
from runtime.emulator.profile import load_profile
from runtime.protocol import Policy


def load_main(config: Config, folder: Path, policies: list[Policy]) -> None:
    """The largest multiple of the trace's rate that the pool holds."""
    plan = config.plan()
    check(plan, policies)
    run_folder(folder, config)
    store = CellStore(folder, resume=config.resume)
    axis = LoadAxis(
        trace=plan.trace, pool=plan.pool, slo=plan.slo, windows=plan.windows,
        most=config.frontier.most,
    )  # fmt: skip
    with counter("frontier") as advance:
        rows = [
            load_row(at_target(plan, target), Ladder(axis, policy, store, advance))
            for target in config.frontier.all_targets
            for policy in policies
        ]
    answers = [load_text(row, plan) for row in rows]
    for line in answers:
        console.print(line)
    finish(config, folder, plan, rows, None, answers)


def gpus_main(config: Config, folder: Path, policies: list[Policy]) -> None:
    """The fewest GPUs for the trace, and plan.csv for the highest target."""
    plan = config.plan()
    check_windows(plan)
    config.prices.of(load_profile(plan.pool.profile).gpu)
    run_folder(folder, config)
    store = CellStore(folder, resume=config.resume)
    rows: list[dict[str, Any]] = []
    with counter("frontier") as advance:
        for target in sorted(config.frontier.all_targets):
            ways = ways_of(at_target(plan, target), policies, store, advance)
            print_ways(ways, config.prices)
            rows += rows_of(ways, config.prices)
        best = next((p for p in policies if p.name == ways.best.name), policies[-1])
        serving = serving_plan(ways, best, config.prices, advance)
    write_text(folder / "plan.csv", as_csv(serving.lines))
    console.print(plan_sentence(serving))
    sentences = [saving_text(ways), plan_sentence(serving)]
    finish(config, folder, plan, rows, {"plan": plan_facts(serving)}, sentences)


def market_main(config: Config, folder: Path, policies: list[Policy]) -> None:
    """The rebuilt market of 1,192 dedicated GPUs: two pools, added."""
    spec = config.frontier
    config.prices.of(load_profile(config.profiled_pool().profile).gpu)
    run_folder(folder, config)
    store = CellStore(folder, resume=config.resume)
    parts = halves(config.profiled_pool(), spec.warm_s + spec.duration_s, config.seed)
    rows: list[dict[str, Any]] = []
    with counter("frontier") as advance:
        for policy in policies:
            rows.append(market_row(config, parts, policy, store, advance))
            console.print(market_text(rows[-1]))
    for line in ASSUMPTIONS:
        console.print(f"- {line}", soft_wrap=True)
    plan = config.plan_of(parts[0].trace, parts[0].pool)
    more = {"assumptions": list(ASSUMPTIONS)}
    finish(config, folder, plan, rows, more, [market_text(row) for row in rows])


def check_windows(plan: Plan) -> None:
    """Raises UserError for a window in which no request counts."""
    for window in plan.windows:
        window_trace(plan.trace, window, 1.0)


def finish(
    config: Config,
    folder: Path,
    plan: Plan,
    rows: list[dict[str, Any]],
    more: Mapping[str, Any] | None = None,
    answers: Sequence[str] = (),
) -> None:
    content = summary("frontier", config.seed, plan.trace, plan.pool, config.slo, rows)
    content |= {"command": command(), "find": str(config.find), **(more or {})}
    content["prices"] = {"source": config.prices.source, "date": config.prices.date}
    write_rows(folder / "results.parquet", rows)
    write_summary(folder / "summary.json", content)
    notes = [*gpu_notes(plan, config), *(more or {}).get("assumptions", [])]
    write_text(folder / "report.html", render(content, list(answers), notes))
    console.print(f"{folder / 'report.html'}\n{folder}", soft_wrap=True)


def gpu_notes(plan: Plan, config: Config) -> list[str]:
    slo, prices = plan.slo, config.prices
    return [
        f"{counted(len(plan.windows), 'window')} of {plan.trace.name}; TTFT {slo.ttft_s:g} s, TBT"
        f" {1e3 * slo.tbt_s:g} ms; profile {plan.pool.profile}. Emulated, not run on GPUs.",
        "Dedicated: one GPU (or group) a model, more where the target asks for it. Intervals:"
        " bootstrap over windows. Bound: least compute and link time on average.",
        "autoscaled, vllm_sleep: whole batches, oldest request first, weights at 1 and 21 GB/s.",
        f"Prices: {prices.source} ({prices.date}).",
    ]


def load_row(plan: Plan, ladder: Ladder) -> dict[str, Any]:
    way = way_of(ladder, plan)
    metrics = way.facts.metrics if way.facts else {}
    load = way.facts.size / 100 if way.facts else None
    return {
        "policy": way.name,
        "pool": plan.pool.name,
        "target": plan.spec.target,
        "models": len(plan.trace.models),
        "gpus": plan.pool.gpus,
        "rate": load and load * plan.trace.rate_rps,
        "load": load,
        "ci_low": way.at.low / 100,
        "ci_high": way.at.high / 100,
        **{name: metrics.get(name) for name in METRICS},
    }


def load_text(row: Mapping[str, Any], plan: Plan) -> str:
    start = f"{row['policy']}, {percent(row['target'])} of tokens on time on {plan.pool.name}:"
    if row["load"] is None:
        return f"{start} not at the least load tried"
    return (
        f"{start} {row['load']:.2f} [{row['ci_low']:.2f}, {row['ci_high']:.2f}] times the trace's"
        f" rate ({row['rate']:.2f} requests/s)"
    )


def print_ways(ways: Ways, prices: Prices) -> None:
    plan = ways.plan
    console.print(
        f"\n{plan.trace.name}: {len(plan.trace.models)} models, {percent(plan.spec.target)} of"
        f" tokens on time on {plan.pool.name}; no schedule needs fewer than"
        f" {ways.bound_gpus:.1f} GPUs on average"
    )
    table = Table(box=None, pad_edge=False)
    headings = (
        "way",
        "GPUs",
        "95 %",
        "saved",
        "USD/h",
        "USD/M tokens",
        "lost",
        "worst",
        "TTFT p99",
    )
    for heading in headings:
        table.add_column(heading, justify="left" if heading == "way" else "right")
    for row in rows_of(ways, prices):
        table.add_row(*way_texts(row))
    console.print(table)
    console.print(saving_text(ways))
    console.print(f"prices: {prices.source} ({prices.date})")


def saving_text(ways: Ways) -> str:
    """The answer: dedicated GPUs, pooled GPUs, what that saves."""
    held, best = ways.dedicated.gpus, ways.best
    if best is ways.dedicated or best.gpus is None:
        return f"nothing holds the target with fewer GPUs than dedicated ({held or 'out of reach'})"
    saved = f": {percent(1 - best.gpus / held)} saved" if held else ""
    return f"dedicated {held or 'never'} GPUs -> pooled {best.gpus} under {best.name}{saved}"


def way_texts(row: Mapping[str, Any]) -> list[str]:
    def text(key: str, form: str) -> str:
        return "" if row[key] is None or row[key] != row[key] else form.format(row[key])

    interval = f"{row['ci_low']:.0f}-{row['ci_high']:.0f}" if row["ci_low"] == row["ci_low"] else ""
    return [
        row["policy"],
        text("gpus", "{}") or f"never ({percent(row['token_attainment'])})",
        interval,
        text("saved", "{:.1%}"),
        text("usd_hour", "{:,.2f}"),
        text("usd_million_tokens", "{:,.2f}"),
        text("request_lost", "{:.1%}"),
        text("worst_model", "{:.1%}"),
        "" if row["ttft_p99_s"] is None else cell_text(row["ttft_p99_s"], "seconds"),
    ]


def plan_facts(serving: ServingPlan) -> dict[str, Any]:
    return {
        "policy": serving.policy,
        "gpus": serving.gpus,
        "pool_gpus": serving.pool_gpus,
        "dedicated_gpus": serving.dedicated_gpus,
        "dedicated_models": len(serving.dedicated),
        "spare_gpus": serving.spare_gpus,
        "host_gb_node": serving.host_gb_node,
        "usd_hour": serving.usd_hour,
    }


def market_row(
    config: Config,
    parts: tuple[Half, Half],
    policy: Policy,
    store: CellStore,
    advance: Callable[[str], None],
) -> dict[str, Any]:
    """GPUs of both pools under one policy; None where either misses the target."""
    ways, bounds = [], []
    for half in parts:
        plan = config.plan_of(half.trace, half.pool)
        axis = axis_of(plan, gpus_near(half.dedicated_gpus, half.pool.tp))
        ways.append(way_of(Ladder(axis, policy, store, advance), plan))
        bounds.append(bound_gpus(plan, list(demands_of(plan))))
    held = [way.gpus for way in ways if way.gpus is not None]
    gpus = sum(held) if len(held) == len(ways) else None
    price = config.prices.of(load_profile(parts[0].pool.profile).gpu)
    return {
        "policy": ways[0].name,
        "pool": config.pool.name,
        "target": config.frontier.all_targets[0],
        "models": sum(len(half.replicas) for half in parts),
        "parts": sum(len(half.trace.models) for half in parts),
        "gpus": gpus,
        "gpus_single": ways[0].gpus,
        "gpus_groups": ways[1].gpus,
        "rate": sum(half.trace.rate_rps for half in parts),
        "ci_low": sum(way.at.low for way in ways),
        "ci_high": sum(way.at.high for way in ways),
        "dedicated_gpus": GPUS,
        "saved": None if gpus is None else 1 - gpus / GPUS,
        "bound_gpus": sum(bounds),
        "usd_hour": None if gpus is None else gpus * price,
        "busy_single": ways[0].facts.mean("gpu_busy") if ways[0].facts else None,
        "busy_groups": ways[1].facts.mean("gpu_busy") if ways[1].facts else None,
        "share_single": ways[0].share,
        "share_groups": ways[1].share,
    }


def market_text(row: Mapping[str, Any]) -> str:
    if row["gpus"] is None:
        return (
            f"{row['policy']}: the target is out of reach even with as many GPUs"
            f" (single {percent(row['share_single'])}, groups {percent(row['share_groups'])})"
        )
    return (
        f"{row['policy']}: {GPUS:,} dedicated -> {row['gpus']} pooled"
        f" ({row['gpus_single']} single + {row['gpus_groups']} in groups of four),"
        f" {percent(row['saved'])} saved, busy {percent(row['busy_single'])} and"
        f" {percent(row['busy_groups'])}; bound {row['bound_gpus']:.0f}, the paper {PAPER_POOLED}"
    )
