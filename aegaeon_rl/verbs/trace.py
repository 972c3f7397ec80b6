"""`trace`: describe a trace, convert it, fetch a public one, generate a market, compose others."""

from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

import yaml
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TransferSpeedColumn,
)

from aegaeon_rl.evaluation.record import (
    commit,
    open_folder,
    summary,
    write_rows,
    write_summary,
    write_text,
)
from aegaeon_rl.evaluation.trace_page import render
from aegaeon_rl.verbs.common import RunSection, chosen_folder, command, console, run_folder
from runtime.errors import UserError, nearest
from traces import write
from traces.compose import compose
from traces.fetch import fetch
from traces.market import MarketSpec, market_stream
from traces.source import TraceSource, open_stream
from traces.statistics import Survey, Surveyed
from traces.stream import Chunk, TraceStream
from traces.writing import WRITERS


class Action(StrEnum):
    DESCRIBE = "describe"
    IMPORT = "import"  # read, validate, cut, scale, and write as `out`
    GENERATE = "generate"  # a market of models, written as `out`
    COMPOSE = "compose"  # `steps`, or those of the file `recipe`, written as `out`
    FETCH = "fetch"  # a public set `trace.name` into the cache; written as `out` where one is given


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    action: Action = Action.DESCRIBE
    trace: TraceSource = field(default_factory=TraceSource)
    market: MarketSpec = field(default_factory=MarketSpec)
    steps: tuple[str, ...] = ()  # of a composition, see traces.compose
    recipe: str | None = None  # a YAML file: a list of steps
    out: str | None = None  # .parquet, .csv or .jsonl
    seed: int = 0
    run: RunSection = field(default_factory=RunSection)


def main(config: Config) -> None:
    refuse_unused(config)
    out = checked_out(config)
    if config.action is Action.FETCH:
        fetched(config.trace)
    stream = made(config)
    next(stream.chunks())  # what is not valid at once leaves no file
    found = surveyed(stream, out)
    folder = run_folder(chosen_folder("trace", config.run), config)
    rows: list[dict[str, Any]] = [{"policy": None, **found.facts._asdict()}]
    write_rows(folder / "results.parquet", rows)
    write_summary(folder / "summary.json", summary("trace", config.seed, found, None, None, rows))
    write_text(folder / "report.html", render(found, command=command(), commit=commit()))
    if out is not None:
        console.print(out, soft_wrap=True)
    console.print(facts_lines(found))
    console.print(folder, soft_wrap=True)


def made(config: Config) -> TraceStream:
    if config.action is Action.GENERATE:
        return market_stream(config.market)
    if config.action is Action.COMPOSE:
        given = None if config.trace == TraceSource() else open_stream(config.trace)
        return compose(chosen_steps(config), given)
    return open_stream(config.trace)


def chosen_steps(config: Config) -> tuple[str, ...]:
    """The steps of a composition. Raises UserError for a recipe that is no list of lines."""
    if config.recipe is None:
        return config.steps
    if config.steps:
        raise UserError(f"recipe={config.recipe}: expected steps or a recipe, not both")
    try:
        lines = yaml.safe_load(Path(config.recipe).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"recipe={config.recipe}: {' '.join(str(error).split())}") from None
    if not isinstance(lines, list) or not all(isinstance(line, str) for line in lines):
        raise UserError(f"recipe={config.recipe}: expected a list of steps, as '- thin 0.5'")
    return tuple(lines)


def surveyed(stream: TraceStream, out: Path | None) -> Surveyed:
    """One pass: written to `out`, if any, and described, with a count on the terminal."""
    survey = Survey(stream)
    columns = (TextColumn("{task.description}"), TextColumn("{task.completed:,.0f} requests"))
    with Progress(*columns, TimeElapsedColumn(), console=console, transient=True) as bar:
        task = bar.add_task("reading" if out is None else "writing", total=None)

        def watch(chunk: Chunk) -> None:
            survey.add(chunk)
            bar.update(task, advance=chunk.requests)

        if out is None:
            for chunk in stream.chunks():
                watch(chunk)
        else:
            open_folder(out.parent, "out")
            write(stream, out, watch)
    return survey.end()


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


def refuse_unused(config: Config) -> None:
    """Raises UserError for a key that the action would not look at."""
    action = f"action={config.action}"
    for key, value in (("steps", config.steps), ("recipe", config.recipe)):
        if value and config.action is not Action.COMPOSE:
            raise UserError(f"{key}: {action} has no steps; did you mean action=compose?")
    if config.action is Action.GENERATE and config.trace != TraceSource():
        raise UserError(f"trace: {action} reads no trace; expected keys of market alone")


def checked_out(config: Config) -> Path | None:
    """The file to write, if any. Raises UserError before anything is written."""
    if config.action is Action.DESCRIBE and config.out is not None:
        raise UserError(
            f"out={config.out}: action=describe writes no trace; did you mean action=import?"
        )
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


def facts_lines(found: Surveyed) -> str:
    """The facts that decide whether pooling pays."""
    facts = found.facts
    return "\n".join(
        (
            f"{found.name} ({found.kind}): {facts.requests:,} requests of {facts.models} models in"
            f" {facts.span_s:,.0f} s, {facts.rate_rps:.2f} requests/s",
            f"  popularity   Zipf {facts.zipf:.2f}; the top tenth of models gets"
            f" {100 * facts.top10_share:.0f} % of requests",
            f"  burstiness   CV of gaps {facts.cv:.1f} (median model);"
            f" busiest minute {facts.peak_over_mean:.1f} times the mean",
            f"  active       {facts.active_models:.1f} models within 17 s on average, 95th"
            f" percentile {facts.active_models_p95:.0f};"
            f" independent Poisson models: {facts.poisson_active_models:.1f}",
            f"  pooling      {facts.dedicated_gpus} GPUs if each model has one;"
            f" {facts.active_models_p99:.0f} models or fewer are active in 99 % of the time",
            f"  lengths      prompt median {facts.prompt_p50:.0f}, p99 {facts.prompt_p99:.0f};"
            f" output median {facts.output_p50:.0f}, p99 {facts.output_p99:.0f} tokens",
        )
    )
