"""What the verbs share: configuration sections, the run folder, progress on the terminal."""

import json
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
)
from rich.table import Table

from aegaeon_rl.config import as_yaml
from aegaeon_rl.evaluation.compare import Comparison
from aegaeon_rl.evaluation.record import open_folder, write_text
from aegaeon_rl.evaluation.report import cell_text, difference_text, verdict
from runtime.core import PoolSpec, SloSpec
from runtime.emulator.profile import load_profile
from runtime.errors import UserError
from traces import Trace
from traces.source import TraceSource, open_trace

console = Console(highlight=False, markup=False, width=None if sys.stdout.isatty() else 120)
SHOWN = (  # metric, heading, kind: what fits a terminal
    ("token_attainment", "on time", "share"),
    ("request_lost", "lost", "share"),
    ("worst_model", "worst", "share"),
    ("ttft_p99_s", "TTFT p99", "seconds"),
    ("stall_p99_s", "stall p99", "seconds"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class RunSection:
    dir: str | None = None  # default: runs/VERB/TIME


@dataclass(frozen=True, slots=True, kw_only=True)
class Common:
    """The keys every verb on a trace and a pool has; `profile` replaces the pool's own."""

    trace: TraceSource
    pool: PoolSpec
    slo: SloSpec
    profile: str | None = None
    seed: int = 0
    run: RunSection = RunSection()

    def __post_init__(self) -> None:
        if self.seed < 0:
            raise UserError(f"seed={self.seed}: expected 0 or more")

    def opened_trace(self) -> Trace:
        """Raises UserError for a trace that cannot be read, or an SLO of a model not in it."""
        trace = open_trace(self.trace)
        self.slo.check_models(trace.models)
        return trace

    def profiled_pool(self) -> PoolSpec:
        """Raises UserError for a profile that does not exist."""
        pool = self.pool if self.profile is None else replace(self.pool, profile=self.profile)
        load_profile(pool.profile)
        return pool


def run_folder(folder: Path, config: Any) -> Path:
    """The run's folder, made, with config.yaml in it."""
    write_text(open_folder(folder) / "config.yaml", as_yaml(config))
    return folder


def chosen_folder(verb: str, section: RunSection) -> Path:
    """`run.dir`, or a fresh one. Raises UserError where another verb's run lies in it."""
    if not section.dir:
        return fresh_folder(verb)
    folder = Path(section.dir)
    held = verb_of(folder)
    if held not in (None, verb):
        raise UserError(f"run.dir={folder} holds a run of {held}: expected another run.dir")
    return folder


def verb_of(folder: Path) -> str | None:
    """Whose run a folder holds, as its summary.json says."""
    try:
        content = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return str(content["verb"]) if isinstance(content, dict) and "verb" in content else None


def fresh_folder(verb: str) -> Path:
    """runs/VERB/TIME, with a number behind it where two runs start within a second."""
    base = Path("runs") / verb / datetime.now().strftime("%Y%m%d-%H%M%S")
    folder, again = base, 1
    while folder.exists():
        again += 1
        folder = base.with_name(f"{base.name}-{again}")
    return folder


def command() -> str:
    """The command line that started this run."""
    return " ".join(["aegaeon-rl", *sys.argv[0].split()[1:], *map(shlex.quote, sys.argv[1:])])


def shared_overrides() -> list[str]:
    """This run's overrides that another verb on the same trace and pool takes too."""
    shared = ("trace.", "pool", "profile=", "slo.", "seed=", "evaluate.")
    return [shlex.quote(a) for a in sys.argv[1:] if a.startswith(shared)]


@contextmanager
def progress(text: str, total: int) -> Iterator[Any]:
    """A bar on the terminal; yields `advance(text)`."""
    columns = (TextColumn("{task.description:28}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, TimeElapsedColumn(), console=console) as bar:
        task = bar.add_task(text, total=total)
        yield lambda step: bar.update(task, advance=1, description=f"{text} {step}")
        bar.update(task, description=text)


@contextmanager
def counter(text: str) -> Iterator[Any]:
    """A line that counts runs: how many a bisection takes is not known before."""
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=console) as bar:
        task = bar.add_task(text)

        def advance(step: str) -> None:
            bar.advance(task)
            done = int(bar.tasks[0].completed)
            bar.update(task, description=f"{text}: {done} runs, {step}")

        yield advance


def print_comparison(comparison: Comparison) -> None:
    table = Table(box=None, pad_edge=False)
    table.add_column("policy")
    for _, heading, _ in SHOWN:
        table.add_column(heading, justify="right")
    table.add_column(f"points to {comparison.row(comparison.baseline).cell.label}", no_wrap=True)
    table.add_column("verdict")
    for row in comparison.rows:
        values = [cell_text(row.cell.metrics[key], kind) for key, _, kind in SHOWN]
        points = difference_text(row).replace(" points", "")
        table.add_row(row.cell.label, *values, points, verdict(row))
    console.print(table)
