"""`evaluate`: policies on one trace, paired: summary, results, report, exports on request."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aegaeon_rl.evaluation.compare import Cell, Comparison, Plan, check, compare
from aegaeon_rl.evaluation.export import EXPORTS, exported, write_exports
from aegaeon_rl.evaluation.record import commit, summary, write_rows, write_summary, write_text
from aegaeon_rl.evaluation.report import Section, answer, render, sizing_sentence, verdict
from aegaeon_rl.evaluation.sizing import Sizing, size
from aegaeon_rl.evaluation.spec import EvaluationSpec
from aegaeon_rl.policies.registry import make_policy
from aegaeon_rl.verbs.common import (
    Common,
    chosen_folder,
    command,
    console,
    print_comparison,
    progress,
    run_folder,
)
from runtime.protocol import Policy


@dataclass(frozen=True, slots=True, kw_only=True)
class Config(Common):
    policies: tuple[str, ...] = ("aegaeon", "serverlessllm", "index")
    evaluate: EvaluationSpec = field(default_factory=EvaluationSpec)


def main(config: Config) -> None:
    folder = chosen_folder("evaluate", config.run)
    policies = [make_policy(name) for name in config.policies]
    plan = Plan(
        trace=config.opened_trace(),
        pool=config.profiled_pool(),
        slo=config.slo,
        spec=config.evaluate,
        seed=config.seed,
    )
    exported(plan, policies, check(plan, policies))
    run_folder(folder, config)
    with progress("evaluate", len(plan.loads) * len(policies)) as advance:
        comparison = compare(plan, policies, progress=lambda cell: advance(cell.policy))
    sizing = None
    if plan.spec.sizing:
        best = comparison.best.cell.policy
        with console.status(f"sizing dedicated and pooled GPUs with {best}"):
            sizing = size(plan, next(p for p in policies if p.name == best))
    write_comparison(folder, "evaluate", comparison, policies, sizing)
    print_comparison(comparison)
    console.print(answer(comparison))
    if sizing:
        console.print(sizing_sentence(sizing))
    console.print(f"{folder / 'report.html'}\n{folder}", soft_wrap=True)


def write_comparison(
    folder: Path,
    verb: str,
    comparison: Comparison,
    policies: Sequence[Policy],
    sizing: Sizing | None,
    sections: Sequence[Section] = (),
) -> None:
    """The three files of a comparison, and the exports where the plan asks for them."""
    plan = comparison.plan
    rows = [row_facts(comparison, cell) for cell in comparison.cells]
    content = summary(
        verb, plan.seed, plan.trace, plan.pool, plan.slo, [r for r in rows if r["load"] == 1.0]
    )
    content["answer"] = answer(comparison)
    content["baseline"] = comparison.baseline
    content["sizing"] = sizing and {**_fields(sizing), "saved": sizing.saved}
    content["loads"] = rows
    content["command"] = command()
    page = render(
        comparison, policies, command=command(), commit=commit(), sizing=sizing, sections=sections
    )
    write_rows(folder / "results.parquet", rows)
    write_text(folder / "report.html", page)
    write_summary(folder / "summary.json", content)
    if plan.spec.exports:
        with console.status("exports"):
            write_exports(folder, plan, exported(plan, policies, comparison.best.cell.policy))
        console.print(f"{folder / EXPORTS[-1]}: open it in ui.perfetto.dev", soft_wrap=True)


def _fields(sizing: Sizing) -> dict[str, Any]:
    return {name: getattr(sizing, name) for name in Sizing.__slots__}


def row_facts(comparison: Comparison, cell: Cell) -> dict[str, Any]:
    """A row of `results`: metrics, interval, and at load 1 the difference to the baseline."""
    row = next((r for r in comparison.rows if r.cell is cell), None)
    difference = row.difference if row else None
    return {
        "policy": cell.policy,
        "is_oracle": cell.is_oracle,
        "load": cell.load,
        **cell.metrics,
        "attainment_low": cell.attainment.low,
        "attainment_high": cell.attainment.high,
        "diff": difference.value if difference else None,
        "ci_low": difference.low if difference else None,
        "ci_high": difference.high if difference else None,
        "verdict": verdict(row) if row and difference else None,
    }
