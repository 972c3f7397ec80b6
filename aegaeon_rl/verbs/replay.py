"""`replay`: a trace as open-loop load on an OpenAI endpoint: summary, a row a request, report."""

import asyncio
import gc
import os
from dataclasses import dataclass, field

import uvloop
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from aegaeon_rl.evaluation.record import commit, summary, write_rows, write_summary, write_text
from aegaeon_rl.replay import page
from aegaeon_rl.replay.accounting import accounted, count, gaps_s, measured, rows
from aegaeon_rl.replay.endpoint import count_words, dealt, find_dialect, served_models
from aegaeon_rl.replay.load import Job, Load, Outcome, Status, allow_connections
from aegaeon_rl.replay.spec import ReplaySpec
from aegaeon_rl.replay.wire import Door
from aegaeon_rl.verbs.common import RunSection, chosen_folder, command, console, run_folder
from runtime.core import SloSpec
from runtime.errors import UserError
from traces import Trace
from traces.source import TraceSource, open_trace


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    trace: TraceSource
    slo: SloSpec
    replay: ReplaySpec = field(default_factory=ReplaySpec)
    seed: int = 0  # of the prompts
    run: RunSection = field(default_factory=RunSection)

    def __post_init__(self) -> None:
        if self.seed < 0:
            raise UserError(f"seed={self.seed}: expected 0 or more")


def main(config: Config) -> None:
    folder = chosen_folder("replay", config.run)
    trace = open_trace(config.trace)
    config.slo.check_models(trace.models)
    allow_connections(trace.requests)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        door = Door(config.replay.url, key_of(config.replay))
        with console.status(f"asking {config.replay.url}"):
            job = runner.run(prepared(config, trace, door))
        run_folder(folder, config)
        console.print(f"{config.replay.url}{job.dialect}", soft_wrap=True)
        load = runner.run(loaded(job, door))
    results, gaps = accounted(load, config.slo), gaps_s(load)
    row = {"policy": None, "endpoint": config.replay.url, **measured(load, results, gaps)}
    content = summary("replay", config.seed, trace, None, config.slo, [row])
    content["replay"] = {
        "dialect": str(job.dialect),
        "models": dict(zip(trace.models, job.targets, strict=True)),
        "interrupted": load.is_interrupted,
        "gave_up": load.has_given_up,
        "statuses": {status.value: count(load.outcomes, status) for status in Status},
        "reasons": page.reasons(load.outcomes),
    }
    content["answer"] = page.answer(load, row)
    content["command"] = command()
    write_rows(folder / "results.parquet", rows(load, results))
    told = page.render(load, results, gaps, row, config.slo, command=command(), commit=commit())
    write_text(folder / "report.html", told)
    write_summary(folder / "summary.json", content)
    console.print(content["answer"])
    for line in page.warnings(load, row):
        console.print(line)
    console.print(f"{folder / 'report.html'}\n{folder}", soft_wrap=True)
    if load.is_interrupted:
        raise KeyboardInterrupt


def key_of(spec: ReplaySpec) -> str | None:
    """Raises UserError where the variable is not set."""
    if spec.key_env is None:
        return None
    key = os.environ.get(spec.key_env, "")
    if not key or not key.isascii() or not key.isprintable():
        raise UserError(
            f"replay.key_env={spec.key_env}: expected an environment variable that holds a key"
        )
    return key


async def prepared(config: Config, trace: Trace, door: Door) -> Job:
    """What the endpoint has and takes. Raises UserError."""
    targets = dealt(config.replay.models, trace.models, await served_models(door))
    dialect = await find_dialect(door, config.replay, targets[0])
    used = list(dict.fromkeys(targets))
    return Job(
        trace=trace,
        spec=config.replay,
        dialect=dialect,
        targets=targets,
        counts=await count_words(door, config.replay, dialect, used),
        seed=config.seed,
    )


async def loaded(job: Job, door: Door) -> Load:
    """The load, with a bar: requests ended, under way, not served."""
    columns = (TextColumn("replay"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, TextColumn("{task.description}"), console=console) as bar:
        task = bar.add_task("", total=job.trace.requests)
        ended = {"ok": 0, "bad": 0}

        def watch(outcome: Outcome) -> None:
            ended["ok" if outcome.status is Status.DONE else "bad"] += 1

        async def show() -> None:
            while True:
                text = f"{len(load.in_flight)} under way" + (
                    f", {ended['bad']} not served" if ended["bad"] else ""
                )
                bar.update(task, completed=sum(ended.values()), description=text)
                await asyncio.sleep(0.25)

        bar.refresh()  # the first drawing is slow: not beside the load
        gc.collect()
        gc.freeze()
        load = Load(job, door, watch)
        shown = asyncio.create_task(show())
        try:
            await load.run()
        finally:
            shown.cancel()
            gc.unfreeze()
        bar.update(task, completed=sum(ended.values()), description="")
    return load
