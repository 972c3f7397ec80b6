"""Trained on x, tested on y: policies against a baseline on each of several workloads.

    python -m aegaeon_rl.evaluation.generalisation FOLDER --policies RUN.. --on TRACE:POOL:LOAD..

A workload is the part of a trace that is kept for tests, played LOAD times as fast on a ready
pool, so shifts of arrivals, of the pool's size and of its links are columns of the same matrix.
FOLDER gets summary.json and matrix.svg. Letters: P policies, W workloads.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from aegaeon_rl.evaluation.compare import Comparison, Plan, compare
from aegaeon_rl.evaluation.plots import STYLE, svg
from aegaeon_rl.evaluation.record import open_folder, summary, write_summary, write_text
from aegaeon_rl.evaluation.spec import EvaluationSpec
from aegaeon_rl.policies.registry import make_policy
from envs.named import named
from runtime.core import PoolSpec, SloSpec
from runtime.errors import UserError
from runtime.plain import from_plain
from runtime.protocol import Policy
from traces.parts import open_part
from traces.source import TraceSource
from traces.splits import Part

SHOWN_POINTS = 3.0  # differences beyond this have the strongest colour


def plan_of(text: str, spec: EvaluationSpec, part: Part, seed: int) -> Plan:
    """From TRACE:POOL:LOAD. Raises UserError."""
    path, _, rest = text.partition(":")
    pool, _, load = rest.partition(":")
    try:
        factor = float(load)
    except ValueError:
        raise UserError(
            f"--on {text}: expected TRACE:POOL:LOAD, as day.parquet:h100x4:1.5"
        ) from None
    if not 0 < factor < 1e6:
        raise UserError(f"--on {text}: load {load}: expected more than 0")
    made: PoolSpec = from_plain(PoolSpec, named("pool", pool, "--on"), "pool")
    trace = open_part(TraceSource(path=path), part).scale_rate(factor)
    return Plan(trace=trace, pool=made, slo=SloSpec(), spec=spec, seed=seed)


def label_of(text: str) -> str:
    """A workload's name: that of the file, the pool and the load."""
    path, _, rest = text.partition(":")
    return f"{Path(path).stem}:{rest}"


def rows_of(name: str, comparison: Comparison) -> list[dict[str, Any]]:
    """One of each policy but the baseline; differences are shares, paired by window."""
    index = comparison.row(comparison.baseline).cell.metrics["token_attainment"]
    return [
        {
            "workload": name,
            "policy": row.cell.policy,
            "baseline": comparison.baseline,
            "baseline_attainment": index,
            "token_attainment": row.cell.metrics["token_attainment"],
            "diff": row.difference.value,
            "ci_low": row.difference.low,
            "ci_high": row.difference.high,
            "verdict": row.difference.verdict,
            "windows": len(comparison.plan.windows),
        }
        for row in comparison.rows
        if row.difference is not None
    ]


def heat_map(rows: Sequence[dict[str, Any]]) -> str:
    """Differences to the baseline in points, policies [P] down, workloads [W] across."""
    policies = list(dict.fromkeys(row["policy"] for row in rows))
    workloads = list(dict.fromkeys(row["workload"] for row in rows))
    points = np.full((len(policies), len(workloads)), np.nan)
    for row in rows:
        points[policies.index(row["policy"]), workloads.index(row["workload"])] = 100 * row["diff"]
    with matplotlib.rc_context(STYLE):
        size = (4 + 1.6 * len(workloads), 3 + 0.5 * len(policies))
        figure = Figure(figsize=size, layout="constrained")
        axes = figure.subplots()
        axes.imshow(points, cmap="RdBu", vmin=-SHOWN_POINTS, vmax=SHOWN_POINTS, aspect="auto")
        axes.grid(visible=False)
        axes.set_xticks(range(len(workloads)), workloads, rotation=20, ha="right")
        axes.set_yticks(range(len(policies)), policies)
        for (i, j), value in np.ndenumerate(points):
            axes.text(j, i, f"{value:+.2f}", ha="center", va="center")
        axes.set_title(f"points of tokens on time against {rows[0]['baseline']}")
        return svg(figure)


def write_matrix(
    folder: Path, plans: dict[str, Plan], policies: Sequence[Policy], seed: int
) -> list[dict[str, Any]]:
    """Play all, and keep what came out. Raises UserError as `compare` does."""
    rows = [row for name, plan in plans.items() for row in rows_of(name, compare(plan, policies))]
    open_folder(folder)
    write_text(folder / "matrix.svg", heat_map(rows))
    write_summary(
        folder / "summary.json", summary("generalisation", seed, None, None, SloSpec(), rows)
    )
    return rows


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="generalisation", description=(__doc__ or "")[:76])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--policies", nargs="+", required=True, help="names or run folders")
    parser.add_argument("--on", nargs="+", required=True, metavar="TRACE:POOL:LOAD")
    parser.add_argument("--baseline", default="index")
    parser.add_argument("--part", default="test", choices=[part.value for part in Part])
    parser.add_argument("--windows", type=int, default=8)
    parser.add_argument("--window-s", type=float, default=600.0)
    parser.add_argument("--warm-s", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args(arguments)
    try:
        spec = EvaluationSpec(
            windows=asked.windows,
            window_s=asked.window_s,
            warm_s=asked.warm_s,
            loads=(1.0,),
            baseline=asked.baseline,
        )
        policies = [make_policy(name, "--policies") for name in (asked.baseline, *asked.policies)]
        part = Part(asked.part)
        plans = {label_of(on): plan_of(on, spec, part, asked.seed) for on in asked.on}
        rows = write_matrix(asked.folder, plans, policies, asked.seed)
    except UserError as error:
        print(f"generalisation: {error}", file=sys.stderr)
        return 2
    for row in rows:
        interval = f"[{100 * row['ci_low']:+.2f}, {100 * row['ci_high']:+.2f}]"
        print(f"{row['workload']:40} {row['policy']:20} {100 * row['diff']:+.2f} {interval}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
