"""`tune`: a policy's parameters by CMA-ES over paired workloads; policy.json and its provenance."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from aegaeon_rl.config import differing_keys
from aegaeon_rl.evaluation.record import commit, summary, write_rows, write_summary, write_text
from aegaeon_rl.evaluation.spec import EvaluationSpec
from aegaeon_rl.policies.aegaeon import AegaeonParameters
from aegaeon_rl.policies.heuristics import index_untuned
from aegaeon_rl.policies.learned import SPEC
from aegaeon_rl.policies.tuned import (
    KINDS,
    SCHEMA,
    IndexParameters,
    Parameters,
    load_parameters,
    policy_of,
)
from aegaeon_rl.tuning.objective import score
from aegaeon_rl.tuning.report import render
from aegaeon_rl.tuning.search import Search, Trial, best_of, search_for
from aegaeon_rl.tuning.spaces import space_of
from aegaeon_rl.tuning.spec import TuneSpec, Workload
from aegaeon_rl.tuning.workloads import Cell, steady_cells, trace_cells
from aegaeon_rl.verbs.common import (
    Common,
    chosen_folder,
    command,
    console,
    progress,
    run_folder,
)
from envs.named import named
from runtime.core import PoolSpec
from runtime.errors import UserError, nearest
from runtime.plain import from_plain, plain
from traces.parts import open_parts

TRIALS, FILE = "results.parquet", "policy.json"
SHARES = (0.6, 0.2)  # of a trace: tuned on, validated on; the rest is the test part


@dataclass(frozen=True, slots=True, kw_only=True)
class Config(Common):
    policy: str = "index"
    tune: TuneSpec = field(default_factory=TuneSpec)
    evaluate: EvaluationSpec = field(default_factory=EvaluationSpec)
    resume: bool = False  # go on in run.dir from its last generation

    def start(self) -> Parameters:
        """Raises UserError for a policy that has no parameters, or a start of another kind."""
        if self.policy not in KINDS:
            raise UserError(f"policy={self.policy}: {nearest(self.policy, KINDS)}")
        if self.tune.start is None:
            return untuned(self.policy)
        kind, parameters = load_parameters(Path(self.tune.start))
        if kind != self.policy:
            raise UserError(f"tune.start={self.tune.start}: of {kind}, expected {self.policy}")
        return parameters

    def pools(self) -> list[PoolSpec]:
        others = [from_plain(PoolSpec, named("pool", n, "tune.pools")) for n in self.tune.pools]
        return [self.profiled_pool(), *others]

    def cells(self) -> tuple[list[Cell], list[Cell]]:
        """What is tuned on, and what validates."""
        pools, spec = self.pools(), self.tune
        if spec.workload is Workload.STEADY:
            first = (spec.first_seed, spec.validation_seed)
            tuned, held = (steady_cells(spec, pools, self.slo, seed) for seed in first)
            return tuned, held
        parts = open_parts(self.trace, SHARES)
        tuned, held = (
            trace_cells(part, self.evaluate, pools, self.slo)
            for part in (parts.train, parts.validation)
        )
        return tuned, held


def untuned(policy: str) -> Parameters:
    if policy == "aegaeon_tuned":
        return AegaeonParameters()
    start = index_untuned()
    return IndexParameters(
        turn=start.turn,
        prefetch=start.prefetch,
        quota_s=start.quota_s,
        longest_s=start.longest_s,
    )


def main(config: Config) -> None:
    folder = chosen_folder("tune", config.run)
    start = config.start()
    tuned_on, held = config.cells()
    search = Search(
        space=space_of(start),
        cells=tuned_on,
        trials=config.tune.trials,
        population=config.tune.policies_at_once,
        sigma=config.tune.sigma,
        seed=config.seed,
    )
    known = check_folder(folder, config, search)
    run_folder(folder, config)
    trials = learn(search, known, folder)
    best = best_of(trials)
    rows = validate(start, search.parameters(best), held)
    write_results(folder, config, search, trials, rows)
    console.print(sentence(config.policy, rows))
    console.print(f"try it: aegaeon-rl evaluate 'policies=[aegaeon,{folder / FILE}]'")
    console.print(f"{folder / 'report.html'}\n{folder}", soft_wrap=True)


def check_folder(folder: Path, config: Config, search: Search) -> list[Trial]:
    """The trials to go on from. Raises UserError where a run would be overwritten, or resumed as
    another."""
    has_run = (folder / TRIALS).exists()
    if config.resume and not has_run:
        raise UserError(f"resume=true: no {TRIALS} in run.dir={folder}: expected a tuning run")
    if has_run and not config.resume:
        raise UserError(f"run.dir={folder} holds a tuning run: resume=true, or another run.dir")
    if not has_run:
        return []
    if changed := differing_keys(folder / "config.yaml", config, ("resume", "run")):
        if changed := [key for key in changed if key != "tune.trials"]:
            raise UserError(f"resume=true: {', '.join(changed)} differ from {folder}/config.yaml")
    return read_trials(folder / TRIALS, search)


def read_trials(path: Path, search: Search) -> list[Trial]:
    """Raises UserError for a file that is damaged or of another search."""
    try:
        rows = pq.read_table(path).to_pylist()
        trials = [Trial(row["trial"], tuple(row["point"]), tuple(row["scores"])) for row in rows]
    except (pa.ArrowException, OSError, KeyError, TypeError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{path}: not the trials of a tuning run: {reason[:200]}") from None
    sizes = {(len(trial.point), len(trial.scores)) for trial in trials}
    if sizes != {(search.space.dimensions, len(search.cells))}:
        raise UserError(f"{path}: its trials have other parameters or cells: expected this run's")
    return trials


def learn(search: Search, known: Sequence[Trial], folder: Path) -> list[Trial]:
    generations = -(-search.trials // search.population)
    with progress("tune", 1 + generations) as advance:

        def tell(trials: list[Trial]) -> None:
            keep_trials(folder, search, trials)
            advance(f"best {best_of(trials).score:.4f}")

        for _ in range(0, len(known), search.population):
            advance("resumed")
        return search_for(search, known, tell)


def keep_trials(folder: Path, search: Search, trials: Sequence[Trial]) -> None:
    rows = [
        {
            "trial": trial.number,
            "score": trial.score,
            "point": list(trial.point),
            "scores": list(trial.scores),
            "parameters": json.dumps(plain(search.parameters(trial))),
        }
        for trial in trials
    ]
    write_rows(folder / TRIALS, rows)


def validate(start: Parameters, tuned: Parameters, cells: Sequence[Cell]) -> list[dict[str, Any]]:
    """Start and result on cells that tuning has not seen: a row each, means, then by cell."""
    rows = []
    with progress("validate", 2 * len(cells)) as advance:
        for name, parameters in (("start", start), ("tuned", tuned)):
            for cell in cells:
                found = cell.play(policy_of(parameters, name))
                value = score(found, cell.slo.ttft_s)
                rows.append({"policy": name, "cell": cell.name, "score": value, **found})
                advance(name)
    return rows


def means(rows: Sequence[dict[str, Any]], name: str) -> dict[str, float]:
    mine = [row for row in rows if row["policy"] == name]
    keys = [key for key in mine[0] if key not in ("policy", "cell")]
    return {key: float(np.mean([row[key] for row in mine])) for key in keys}


def sentence(policy: str, rows: Sequence[dict[str, Any]]) -> str:
    before, after = means(rows, "start"), means(rows, "tuned")
    return (
        f"{policy} on held-out workloads: score {before['score']:.4f} -> {after['score']:.4f},"
        f" tokens on time {100 * before['token_attainment']:.1f} ->"
        f" {100 * after['token_attainment']:.1f} %, requests lost"
        f" {100 * before['request_lost']:.1f} -> {100 * after['request_lost']:.1f} %."
    )


def write_results(
    folder: Path,
    config: Config,
    search: Search,
    trials: Sequence[Trial],
    rows: list[dict[str, Any]],
) -> None:
    best = best_of(trials)
    results = [{"policy": name, **means(rows, name)} for name in ("start", "tuned")]
    content = summary(
        "tune", config.seed, search.cells[0].trace, search.cells[0].pool, config.slo, results
    )
    content["command"], content["cells"], content["trials"] = command(), rows, len(trials) - 1
    policy = {
        "schema": SCHEMA,
        "policy": config.policy,
        "spec": SPEC,
        "parameters": plain(search.parameters(best)),
        "provenance": {
            "command": command(),
            "commit": commit(),
            "seed": config.seed,
            "trials": len(trials) - 1,
            "best_trial": best.number,
            "cells": [cell.name for cell in search.cells],
            "objective_before": trials[0].score,
            "objective_after": best.score,
            "validation": [
                {key: row[key] for key in ("policy", "cell", "score", "token_attainment")}
                for row in rows
            ],
        },
    }
    write_text(folder / FILE, json.dumps(policy, indent=1) + "\n")
    page = render(
        policy=config.policy,
        answer=sentence(config.policy, rows),
        trials=trials,
        cells=rows,
        parameters=plain(search.parameters(best)),
        command=command(),
        commit=commit(),
    )
    write_text(folder / "report.html", page)
    write_summary(folder / "summary.json", content)
