"""A run from start to choice: candidates, ties, resumption, and what it tells."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from aegaeon_rl.policies.learned import FILE
from aegaeon_rl.policies.registry import make_policy
from aegaeon_rl.training.session import (
    CURVE,
    Job,
    Listener,
    Point,
    best,
    chosen,
    read_curve,
    train,
)
from aegaeon_rl.training.trainer import Checkpoint
from envs.scenario import ScenarioSpec
from runtime.emulator.run import run
from runtime.errors import UserError

MakeJob = Callable[..., Job]


class Ear:
    """Keeps what a run tells; interrupts it at a decision where asked."""

    def __init__(self, stop_at: int | None = None) -> None:
        self.decisions, self.stop_at = 0, stop_at
        self.points: list[Point] = []

    def count(self, decisions: int) -> None:
        self.decisions += decisions
        if self.decisions == self.stop_at:
            raise KeyboardInterrupt

    def listener(self) -> Listener:
        return Listener(self.count, self.points.append)


def checkpoint(folder: Path, number: int) -> Checkpoint:
    return Checkpoint(number, folder / "checkpoints" / f"{number:04d}")


@pytest.fixture(scope="module")
def done(
    make_job: MakeJob, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Job, list[Point], Ear]:
    """An uninterrupted run."""
    job, ear = make_job(tmp_path_factory.mktemp("done")), Ear()
    return job, train(job, ear.listener()), ear


def test_training_on_a_pool_that_asks_for_interrupts_is_refused(done: Any) -> None:
    job = done[0]
    asking = replace(job, pool=replace(job.pool, interrupt_slack_s=1.0))
    with pytest.raises(UserError, match=r"pool\.interrupt_slack_s=1 of pool .*: expected 0"):
        asking.scenario()


def test_start_and_every_checkpoint_are_candidates(done: Any) -> None:
    job, points, ear = done
    assert [(point.number, point.decisions) for point in points] == [
        (number, number * job.spec.segment) for number in range(4)
    ]
    assert all(0 < p.low <= p.attainment <= p.high < 1 for p in points)
    assert len({p.attainment for p in points}) > 1  # training changed what is done
    assert ear.points == points
    assert ear.decisions == 3 * job.spec.segment
    assert pq.read_table(job.folder / CURVE).to_pylist() == [p._asdict() for p in points]


def test_chosen_policy_is_left_and_not_below_its_start(done: Any, same_weights: Any) -> None:
    job, points, _ = done
    number = max(range(4), key=lambda n: points[n].attainment)
    assert same_weights(job.folder, checkpoint(job.folder, number).folder)
    assert points[number].attainment >= points[0].attainment
    policy = make_policy(str(job.folder))
    results = run(job.parts.validation, job.pool, policy, job.slo).results
    share = results["on_time_tokens"].sum() / results["due_tokens"].sum()
    assert points[number].attainment == pytest.approx(share)


@pytest.mark.parametrize(
    ("attainments", "number"),
    [
        ((0.5,), 0),
        ((0.5, 0.4, 0.3), 0),
        ((0.5, 0.5, 0.5), 0),
        ((0.5, 0.6, 0.6), 1),
        ((0.5, 0.4, 0.6), 2),
    ],
)
def test_choice_is_the_best_and_the_earlier_of_equals(
    done: Any, same_weights: Any, attainments: tuple[float, ...], number: int
) -> None:
    job = done[0]
    points = [Point(n, 100 * n, a, a, a) for n, a in enumerate(attainments)]
    policy = chosen(job, points)
    assert best(points) == points[number]
    assert policy.name == "learned"
    assert same_weights(policy.weights, checkpoint(job.folder, number).policy().weights)


@pytest.mark.parametrize("stop_at", [4, 128, 200, 384])
def test_interrupted_run_ends_as_the_uninterrupted_one(
    done: Any, make_job: MakeJob, tmp_path: Path, same_weights: Any, stop_at: int
) -> None:
    job = make_job(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        train(job, Ear(stop_at).listener())
    assert not (tmp_path / FILE).exists()
    ear = Ear()
    points = train(job, ear.listener(), resume=True)
    assert points == ear.points == done[1]
    assert ear.decisions == 384  # with those of the checkpoint it went on from
    assert same_weights(tmp_path, done[0].folder)
    assert same_weights(checkpoint(tmp_path, 3).folder, checkpoint(done[0].folder, 3).folder)


@pytest.mark.parametrize("kept", [0, 1, 3])
def test_points_lost_with_the_curve_are_found_again(
    done: Any, make_job: MakeJob, tmp_path: Path, quiet: Listener, kept: int
) -> None:
    """A break between a checkpoint and its validation, or a curve that was deleted."""
    job = make_job(tmp_path)
    train(job, quiet)
    curve = pq.read_table(tmp_path / CURVE)
    (tmp_path / CURVE).unlink()
    if kept:
        pq.write_table(curve.slice(0, kept), tmp_path / CURVE)
    assert train(job, quiet, resume=True) == done[1]
    assert pq.read_table(tmp_path / CURVE).equals(curve)


def test_points_behind_the_last_checkpoint_are_dropped(
    done: Any, make_job: MakeJob, tmp_path: Path, quiet: Listener
) -> None:
    job = make_job(tmp_path)
    train(job, quiet)
    for path in checkpoint(tmp_path, 3).folder.iterdir():
        path.unlink()
    ear = Ear()
    assert train(job, ear.listener(), resume=True) == done[1]
    assert ear.decisions == 384


def test_parts_are_learned_on_judged_on_and_held_out(make_job: MakeJob, tmp_path: Path) -> None:
    job = make_job(tmp_path)
    assert job.scenario().trace(0) is job.parts.train
    plan = job.plan(job.parts.test, (1.0, 2.0), "index")
    assert plan.trace is job.parts.test
    assert (plan.spec.loads, plan.spec.baseline, plan.seed) == ((1.0, 2.0), "index", 3)
    assert job.evaluation.baseline is None
    with pytest.raises(UserError, match=r"its 1\d\d s are shorter than warm_s"):
        make_job(tmp_path, longest_s=200.0).scenario()


def test_damaged_curve_is_one_line(tmp_path: Path) -> None:
    assert read_curve(tmp_path) == []
    (tmp_path / CURVE).write_bytes(b"PAR1 no table")
    with pytest.raises(UserError, match=r"curve\.parquet: not a training curve: ") as caught:
        read_curve(tmp_path)
    assert "\n" not in str(caught.value)
    pq.write_table(pa.table({"x": [1]}), tmp_path / CURVE)
    with pytest.raises(UserError, match=r"curve\.parquet: not a training curve: "):
        read_curve(tmp_path)


def test_named_scenario_adds_pools_slos_noise_and_failures(
    make_job: MakeJob, tmp_path: Path
) -> None:
    plain = make_job(tmp_path).scenario()
    changes = {"scenario": "mixed", "load_scale": (0.2, 0.4), "curriculum_bins": 2}
    job = make_job(tmp_path, **changes)
    mixed, named = job.scenario(), ScenarioSpec.from_json("mixed")
    assert mixed.traces[0] is job.parts.train
    assert mixed.pools == (job.pool, *named.pools)
    assert mixed.slos == (job.slo, *named.slos)
    assert (mixed.noise, mixed.speed, mixed.mtbf_s) == (named.noise, named.speed, named.mtbf_s)
    assert (mixed.load_scale, mixed.load_bins, plain.load_bins) == ((0.2, 0.4), 2, 1)
    with pytest.raises(UserError, match=r"^scenario=mixd: did you mean 'mixed'"):
        make_job(tmp_path, scenario="mixd").scenario()
