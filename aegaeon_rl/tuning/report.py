"""The page of a tuning run: the verdict on held-out workloads, the search, the parameters."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import jinja2
import matplotlib
import numpy as np
from matplotlib.figure import Figure

from aegaeon_rl.evaluation.plots import PALETTE, STYLE, svg
from aegaeon_rl.evaluation.report import cell_text
from aegaeon_rl.tuning.search import Trial

COLUMNS = (  # metric, heading, kind
    ("token_attainment", "tokens on time", "share"),
    ("request_lost", "requests lost", "share"),
    ("worst_model", "worst models", "share"),
    ("ttft_p99_s", "TTFT p99", "seconds"),
    ("stall_p99_s", "stall p99", "seconds"),
)


def curve(trials: Sequence[Trial]) -> str:
    """Score of each trial and of the best so far."""
    scores = np.array([trial.score for trial in trials])
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(10, 3.2), layout="constrained")
        axes = figure.subplots()
        axes.scatter(range(len(scores)), scores, s=8, color="#bbbbbb", label="trial")
        axes.plot(np.maximum.accumulate(scores), color=PALETTE[0], label="best so far")
        axes.axhline(scores[0], color="#666666", linestyle="--", linewidth=1, label="start")
        axes.set(xlabel="trials", ylabel="score", ylim=(scores[0] - 0.3, None))
        figure.legend(loc="outside right center")
        return svg(figure)


def render(
    *,
    policy: str,
    answer: str,
    trials: Sequence[Trial],
    cells: Sequence[Mapping[str, Any]],
    parameters: Mapping[str, Any],
    command: str,
    commit: str,
) -> str:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("aegaeon_rl.evaluation"), autoescape=True, trim_blocks=True
    )
    rows = [
        [row["cell"], row["policy"], *(cell_text(row[key], kind) for key, _, kind in COLUMNS)]
        for row in cells
    ]
    return environment.get_template("tune.html.j2").render(
        policy=policy,
        answer=answer,
        figure=curve(trials),
        headings=["workload", "policy", *(heading for _, heading, _ in COLUMNS)],
        rows=rows,
        parameters=json.dumps(parameters, indent=1),
        command=command,
        commit=commit,
    )
