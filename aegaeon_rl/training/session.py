"""A training run from start to verdict: segments, validation, the choice, the held-out test."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from aegaeon_rl.evaluation.compare import Plan, evaluate_cell
from aegaeon_rl.evaluation.record import write_rows
from aegaeon_rl.evaluation.spec import EvaluationSpec
from aegaeon_rl.policies.learned import FILE, Learned, save_weights
from aegaeon_rl.training.evolution import Evolution
from aegaeon_rl.training.spec import TrainSpec
from aegaeon_rl.training.trainer import Checkpoint, Trainer, checkpoints
from envs.scenario import ScenarioSpec
from runtime.core import PoolSpec, SloSpec
from runtime.errors import UserError
from traces import Trace
from traces.parts import Parts

CURVE = "curve.parquet"


class Point(NamedTuple):
    """A checkpoint on the validation part; number 0 is the start, before any training."""

    number: int
    decisions: int
    attainment: float
    low: float
    high: float


class Listener(NamedTuple):
    """What a run tells while it works."""

    decisions: Callable[[int], None]
    point: Callable[[Point], None]


@dataclass(frozen=True, kw_only=True)
class Job:
    """What is trained, on what, judged how, and where it is kept."""

    parts: Parts
    pool: PoolSpec
    slo: SloSpec
    spec: TrainSpec
    evaluation: EvaluationSpec
    seed: int
    folder: Path

    def scenario(self) -> ScenarioSpec:
        """Episodes on the train part: on the job's pool and SLO, and on those of the scenario that
        `train.scenario` names, with its noise, speeds and failures. Raises UserError."""
        spec = self.spec
        others = () if spec.scenario is None else (ScenarioSpec.from_json(spec.scenario),)
        pools = (self.pool, *(pool for other in others for pool in other.pools))
        for pool in pools:
            if pool.interrupt_slack_s > 0:
                raise UserError(
                    f"pool.interrupt_slack_s={pool.interrupt_slack_s:g} of pool {pool.name}:"
                    " expected 0, a learned policy stops no turn"
                )
        varied = {name: getattr(o, name) for o in others for name in ("noise", "speed", "mtbf_s")}
        return ScenarioSpec(
            traces=(self.parts.train,),
            pools=pools,
            slos=(self.slo, *(slo for other in others for slo in other.slos)),
            warm_s=spec.warm_s,
            shortest_s=spec.shortest_s,
            longest_s=spec.longest_s,
            load_scale=spec.load_scale,
            load_bins=max(1, spec.curriculum_bins),
            **varied,
        )

    def plan(self, part: Trace, loads: tuple[float, ...], baseline: str | None = None) -> Plan:
        evaluation = replace(self.evaluation, loads=loads, baseline=baseline)
        return Plan(trace=part, pool=self.pool, slo=self.slo, spec=evaluation, seed=self.seed)


def train(job: Job, listener: Listener, *, resume: bool = False) -> list[Point]:
    """Train to the end and leave the best checkpoint's weights in the run's folder.

    Step 0, the start, is a candidate too; ties go to the earlier. With `resume` the run goes on
    from its last complete checkpoint and ends as it would have without the break.
    """
    learner = Evolution if job.spec.method == "es" else Trainer
    trainer = learner(job.scenario(), job.spec, job.seed, job.folder)
    done = checkpoints(job.folder) if resume else []
    if done:
        trainer.restore(done[-1])
        listener.decisions(trainer.decisions)
        points = [p for p in read_curve(job.folder) if p.number <= done[-1].number]
        points += [validate(job, missed) for missed in done[len(points) :]]
    else:
        points = [validate(job, trainer.save())]
    keep_curve(job, points)
    for point in points:
        listener.point(point)
    while trainer.done < job.spec.checkpoints:
        points.append(validate(job, trainer.advance(listener.decisions)))
        listener.point(points[-1])
        keep_curve(job, points)
    save_weights(chosen(job, points).weights, job.folder / FILE)
    return points


def validate(job: Job, checkpoint: Checkpoint) -> Point:
    """The checkpoint's greedy policy on the validation part at the trace's own load."""
    cell = evaluate_cell(job.plan(job.parts.validation, (1.0,)), checkpoint.policy(), 1.0)
    number = checkpoint.number
    return Point(number, number * job.spec.segment, *cell.attainment)


def keep_curve(job: Job, points: Sequence[Point]) -> None:
    write_rows(job.folder / CURVE, [point._asdict() for point in points])


def read_curve(folder: Path) -> list[Point]:
    """The points kept so far. Raises UserError when the file is damaged."""
    path = folder / CURVE
    if not path.exists():
        return []
    try:
        return [Point(**row) for row in pq.read_table(path).to_pylist()]
    except (pa.ArrowException, OSError, TypeError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{path}: not a training curve: {reason[:200]}") from None


def best(points: Sequence[Point]) -> Point:
    return max(points, key=lambda point: (point.attainment, -point.number))


def chosen(job: Job, points: Sequence[Point]) -> Learned:
    number = best(points).number
    weights = Checkpoint(number, job.folder / "checkpoints" / f"{number:04d}").policy().weights
    return Learned(name="learned", weights=weights)
