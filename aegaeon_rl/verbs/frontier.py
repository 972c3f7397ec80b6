"""`frontier`: the most models a pool holds, or the fewest GPUs that hold a trace, by policy."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from aegaeon_rl.config import differing_keys
from aegaeon_rl.evaluation.record import summary, write_rows, write_summary
from aegaeon_rl.evaluation.report import cell_text, percent
from aegaeon_rl.evaluation.spec import EvaluationSpec
from aegaeon_rl.frontier.cells import FILE, CellStore
from aegaeon_rl.frontier.cost import Prices
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
from aegaeon_rl.frontier.spec import Find, FrontierSpec
from aegaeon_rl.policies.registry import make_policy
from aegaeon_rl.verbs.common import Common, chosen_folder, command, console, run_folder
from runtime.core import PoolSpec
from runtime.emulator.profile import load_profile
from runtime.errors import UserError
from runtime.protocol import Policy

SHOWN = (
    ("offered_requests_s", "req/s", "count"),
    ("backlog_slope", "backlog/s", "number"),
    ("request_lost", "lost", "share"),
    ("worst_model", "worst", "share"),
    ("ttft_p99_s", "TTFT p99", "seconds"),
    ("stall_p99_s", "stall p99", "seconds"),
    ("gpu_busy", "busy", "share"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Config(Common):
    frontier: FrontierSpec = field(default_factory=FrontierSpec)
    evaluate: EvaluationSpec = field(default_factory=EvaluationSpec)
    prices: Prices = field(default_factory=Prices)
    policies: tuple[str, ...] = ("aegaeon", "index")
    resume: bool = False

    @property
    def find(self) -> Find:
        if self.frontier.find is not None:
            return self.frontier.find
        return Find.GPUS if self.trace.path else Find.MODELS

    def pools(self) -> tuple[PoolSpec, ...]:
        """Those of `frontier.pools`, else the verb's own."""
        if not self.frontier.pools:
            return (self.profiled_pool(),)
        for pool in self.frontier.pools.values():
            load_profile(pool.profile)
        return tuple(self.frontier.pools.values())


def main(config: Config) -> None:
    folder = chosen_folder("frontier", config.run)
    policies = chosen_policies(config.policies)
    check_resume(folder, config)
    if config.find is Find.MODELS:
        models_main(config, folder, policies)
    else:
        raise UserError(f"frontier.find={config.find}: not yet")


def chosen_policies(names: tuple[str, ...]) -> list[Policy]:
    """Raises UserError for none, or one twice."""
    if not names:
        raise UserError("policies=[]: expected at least one policy")
    for name in names:
        if names.count(name) > 1:
            raise UserError(f"policies: {name!r} is listed twice: expected different policies")
    return [make_policy(name) for name in names]


def check_resume(folder: Path, config: Config) -> None:
    """Raises UserError where cells would be mixed with those of another question."""
    if not config.resume:
        if (folder / FILE).exists():
            raise UserError(
                f"run.dir={folder} holds cells of a frontier: resume=true, or another run.dir"
            )
        return
    if not (folder / FILE).exists():
        raise UserError(f"resume=true: no {FILE} in run.dir={folder}: expected a frontier run")
    changed = differing_keys(
        folder / "config.yaml", config, ("resume", "run", "policies", "prices")
    )
    free = ("frontier.target", "frontier.rate", "frontier.process", "frontier.draws",
            "frontier.confidence", "frontier.bounds", "frontier.least", "frontier.most",
            "frontier.seeds")  # fmt: skip
    if kept := [key for key in changed if not key.startswith(free)]:
        raise UserError(f"resume=true: {', '.join(kept)} differ from {folder}/config.yaml")


@contextmanager
def cells_shown(text: str) -> Iterator[Any]:
    """A line that counts runs: how many a bisection takes is not known before."""
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=console) as bar:
        task = bar.add_task(text)

        def advance(step: str) -> None:
            bar.advance(task)
            done = int(bar.tasks[0].completed)
            bar.update(task, description=f"{text}: {done} runs, {step}")

        yield advance


def models_main(config: Config, folder: Path, policies: list[Policy]) -> None:
    pools = config.pools()
    for pool in pools:
        for policy in policies:
            policy.configure(pool)
    run_folder(folder, config)
    store = CellStore(folder, resume=config.resume)
    groups: list[list[Crossing]] = []
    found: list[Ratio] = []
    with cells_shown("frontier") as advance:
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
    for line in map(ratio_text, quoted(found)):
        console.print(line)
    console.print(f"{folder}", soft_wrap=True)


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
