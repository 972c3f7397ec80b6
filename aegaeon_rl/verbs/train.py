"""`train`: a policy for a trace and a pool; weights.npz, the curve, and the held-out verdict."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from aegaeon_rl.config import differing_keys
from aegaeon_rl.evaluation.compare import Comparison, Plan, check, compare
from aegaeon_rl.evaluation.export import exported
from aegaeon_rl.evaluation.plots import training_curve
from aegaeon_rl.evaluation.report import Section, answer, percent, verdict
from aegaeon_rl.evaluation.spec import EvaluationSpec
from aegaeon_rl.policies.index import Index
from aegaeon_rl.policies.learned import Learned, Weights
from aegaeon_rl.policies.registry import make_policy
from aegaeon_rl.training.session import Job, Listener, Point, best, chosen, train
from aegaeon_rl.training.spec import TrainSpec
from aegaeon_rl.training.trainer import checkpoints, starting_weights
from aegaeon_rl.verbs.common import (
    Common,
    chosen_folder,
    console,
    print_comparison,
    progress,
    run_folder,
    shared_overrides,
)
from aegaeon_rl.verbs.evaluate import write_comparison
from runtime.errors import UserError
from runtime.protocol import Policy
from traces.parts import Parts, open_parts
from traces.splits import Part

METHOD_NAMES = {"ppo": "MaskablePPO", "es": "Evolution strategy"}
VERDICT_ONLY = (
    *("evaluate.loads", "evaluate.baseline", "evaluate.gantt_s"),
    *("evaluate.exports", "evaluate.export_policy", "evaluate.export_s"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Config(Common):
    train: TrainSpec = field(default_factory=TrainSpec)
    evaluate: EvaluationSpec = field(default_factory=EvaluationSpec)
    policies: tuple[str, ...] = ("aegaeon",)  # compared on the held-out part, beside the start
    resume: bool = False  # go on in run.dir from its last checkpoint

    def opened_parts(self, faster: float = 1.0) -> Parts:
        """Raises UserError for a trace that may not be learned from, or an SLO of no model."""
        source = replace(self.trace, rate_scale=faster * self.trace.rate_scale)
        parts = open_parts(source, self.train.shares)
        self.slo.check_models(name for part in Part for name in parts.of(part).models)
        return parts


def main(config: Config) -> None:
    folder = chosen_folder("train", config.run)
    others = [make_policy(name) for name in config.policies]
    job = Job(
        parts=config.opened_parts(),
        pool=config.profiled_pool(),
        slo=config.slo,
        spec=config.train,
        evaluation=config.evaluate,
        seed=config.seed,
        folder=folder,
    )
    check_folder(folder, config)
    check_job(job, others)
    run_folder(folder, config)
    points = learn(job, resume=config.resume)
    comparison, policies = judge(job, points, others)
    write_comparison(folder, "train", comparison, policies, None, [curve_section(job, points)])
    print_comparison(comparison)
    console.print(answer(comparison))
    console.print(verdict_sentence(comparison))
    again = " ".join(["aegaeon-rl evaluate", *shared_overrides()])
    console.print(f"try it: {again} 'policies=[index,{folder}]'", soft_wrap=True)
    console.print(f"{folder / 'report.html'}\n{folder}", soft_wrap=True)


def check_folder(folder: Path, config: Config) -> None:
    """Raises UserError where a run would be overwritten, or resumed as another."""
    has_run = bool(checkpoints(folder))
    if config.resume and not has_run:
        raise UserError(f"resume=true: no checkpoint in run.dir={folder}: expected a training run")
    if has_run and not config.resume:
        raise UserError(f"run.dir={folder} holds a training run: resume=true, or another run.dir")
    if config.resume:
        ignored = ("resume", "run", "policies")
        changed = differing_keys(folder / "config.yaml", config, ignored)
        if changed := [key for key in changed if key not in VERDICT_ONLY]:
            raise UserError(f"resume=true: {', '.join(changed)} differ from {folder}/config.yaml")


def check_job(job: Job, others: Sequence[Policy]) -> None:
    """Raises UserError for what training, or the verdict after it, would stumble over."""
    job.scenario()
    plan, policies = contest(job, others, starting_weights(job.spec, job.seed))
    check(job.plan(job.parts.validation, (1.0,)), policies[-1:])
    check(plan, policies)
    exported(plan, policies, policies[-1].name)


class Speed(ProgressColumn):
    def render(self, task: Task) -> Text:
        return Text(f"{task.speed or 0:,.0f} decisions/s")


def learn(job: Job, *, resume: bool = False) -> list[Point]:
    """Train, telling of progress and of each checkpoint's validation."""
    spec = job.spec
    columns = (TextColumn("{task.description:12}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, Speed(), TimeRemainingColumn(), console=console) as bar:
        task = bar.add_task("train", total=spec.segment * spec.checkpoints)
        start: list[Point] = []

        def tell(point: Point) -> None:
            start.append(point)
            gain = 100 * (point.attainment - start[0].attainment)
            name = f"start: {spec.start}" if point.number == 0 else f"checkpoint {point.number}"
            line = f"{name:16}{point.decisions:>10,} decisions  {percent(point.attainment)} on time"
            if point.number:
                line += f"  ({gain:+.2f} points to the start)"
            bar.console.print(f"validation: {line}")

        def count(decisions: int) -> None:
            bar.update(task, advance=decisions)

        return train(job, Listener(count, tell), resume=resume)


def judge(
    job: Job, points: Sequence[Point], others: Sequence[Policy]
) -> tuple[Comparison, list[Policy]]:
    """The chosen policy and its start (the baseline) with `others`, on the held-out part."""
    plan, policies = contest(job, others, chosen(job, points).weights)
    with progress("held out", len(plan.loads) * len(policies)) as advance:
        return compare(plan, policies, progress=lambda cell: advance(cell.policy)), policies


def contest(job: Job, others: Sequence[Policy], weights: Weights) -> tuple[Plan, list[Policy]]:
    """The held-out part and who meets on it; last what was trained, `learned` by name unless
    another is. The start takes turns as short as the network's shortest, so that a gain is learned
    and not one of shorter turns."""
    start = make_policy(job.spec.start)
    if isinstance(start, Index):
        start = replace(start, quota_s=job.spec.quotas_s[0], longest_s=0.0)
    policies = [*(policy for policy in others if policy.name != start.name), start]
    is_taken = "learned" in [policy.name for policy in policies]
    policies.append(Learned(name="trained" if is_taken else "learned", weights=weights))
    return job.plan(job.parts.test, job.evaluation.loads, start.name), policies


def verdict_sentence(comparison: Comparison) -> str:
    """What was trained (the last row) against its start, plainly."""
    row = comparison.rows[-1]
    assert row.difference is not None
    value, low, high = (100 * bound for bound in row.difference)
    interval = f"[{low:+.2f}, {high:+.2f}]" if low == low else "(too little time for an interval)"
    return (
        f"Held-out verdict: {row.cell.policy} against {comparison.baseline}: {value:+.2f} points"
        f" {interval}: {verdict(row)}."
    )


def curve_section(job: Job, points: Sequence[Point]) -> Section:
    spec, at = job.spec, best(points)
    which = "the start itself" if at.number == 0 else f"checkpoint {at.number}"
    text = (
        f"{METHOD_NAMES[job.spec.method]}, {points[-1].decisions:,} decisions on the train part of"
        f" the trace; each checkpoint's greedy policy on the validation part ({job.parts.rule})."
        f" The choice fell on {which}; everything else on this page is the test part, which neither"
        " has seen."
    )
    return Section(title="Training", text=text, figure=training_curve(points, spec.start))
