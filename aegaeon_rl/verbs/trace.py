"""`trace`: describe a trace, convert it, fetch a public one, or generate a market."""

from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

from aegaeon_rl.evaluation.record import open_folder, summary, write_rows, write_summary
from aegaeon_rl.verbs.common import RunSection, chosen_folder, console, run_folder
from runtime.errors import UserError, nearest
from traces import Trace, TraceFacts, describe, write
from traces.fetch import fetch
from traces.market import MarketSpec, generate
from traces.source import TraceSource, open_trace
from traces.write import WRITERS


class Action(StrEnum):
    DESCRIBE = "describe"
    IMPORT = "import"  # read, validate, cut, scale, and write as `out`
    GENERATE = "generate"  # a market of models, written as `out`
    FETCH = "fetch"  # a public set `trace.name` into the cache; written as `out` where one is given


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    action: Action = Action.DESCRIBE
    trace: TraceSource = field(default_factory=TraceSource)
    market: MarketSpec = field(default_factory=MarketSpec)
    out: str | None = None  # .parquet, .csv or .jsonl
    seed: int = 0
    run: RunSection = field(default_factory=RunSection)


def main(config: Config) -> None:
    out = checked_out(config)
    if config.action is Action.FETCH:
        fetched(config.trace)
    trace = made(config)
    facts = describe(trace)
    folder = run_folder(chosen_folder("trace", config.run), config)
    if out is not None:
        open_folder(out.parent)
        write(trace, out)
        console.print(out, soft_wrap=True)
    rows: list[dict[str, Any]] = [{"policy": None, **facts._asdict()}]
    write_rows(folder / "results.parquet", rows)
    write_summary(folder / "summary.json", summary("trace", config.seed, trace, None, None, rows))
    console.print(facts_lines(trace, facts))
    console.print(folder, soft_wrap=True)


def made(config: Config) -> Trace:
    if config.action is Action.GENERATE:
        return generate(config.market)
    return open_trace(config.trace)


def fetched(source: TraceSource) -> None:
    """Download the public set, with a bar. Raises UserError where that fails."""
    if source.path is not None:
        raise UserError(f"trace.path={source.path}: action=fetch takes trace.name alone")
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn())
    with Progress(*columns, TransferSpeedColumn(), console=console) as bar:
        task = bar.add_task(f"fetching {source.name}", total=None, visible=False)
        path = fetch(
            source.name,
            lambda text: bar.console.print(text, soft_wrap=True),
            lambda done, total: bar.update(task, completed=done, total=total, visible=True),
        )
    console.print(path, soft_wrap=True)


def checked_out(config: Config) -> Path | None:
    """The file to write, if any. Raises UserError before anything is written."""
    if config.action is Action.DESCRIBE:
        return None
    if config.out is None and config.action is Action.FETCH:
        return None
    if config.out is None:
        raise UserError(f"out=null: action={config.action} needs a file to write, as out=x.parquet")
    path = Path(config.out)
    if path.suffix.lower() not in WRITERS:
        raise UserError(
            f"out={path}: cannot write {path.suffix!r}; {nearest(path.suffix, WRITERS)}"
        )
    return path


def facts_lines(trace: Trace, facts: TraceFacts) -> str:
    """The facts that decide whether pooling pays."""
    return "\n".join(
        (
            f"{trace.name} ({trace.kind}): {facts.requests:,} requests of {facts.models} models in"
            f" {facts.span_s:,.0f} s, {facts.rate_rps:.2f} requests/s",
            f"  popularity   Zipf {facts.zipf:.2f}; the top tenth of models gets"
            f" {100 * facts.top10_share:.0f} % of requests",
            f"  burstiness   CV of gaps {facts.cv:.1f} (median model);"
            f" busiest minute {facts.peak_over_mean:.1f} times the mean",
            f"  active       {facts.active_models:.1f} models within 17 s on average, 95th"
            f" percentile {facts.active_models_p95:.0f};"
            f" independent Poisson models: {facts.poisson_active_models:.1f}",
            f"  lengths      prompt median {facts.prompt_p50:.0f}, p99 {facts.prompt_p99:.0f};"
            f" output median {facts.output_p50:.0f}, p99 {facts.output_p99:.0f} tokens",
        )
    )
