"""The evolution strategy: what a member is worth, exact resumption, and that it climbs."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from aegaeon_rl.policies.heuristics import fcfs
from aegaeon_rl.policies.learned import initial_weights
from aegaeon_rl.training.curriculum import play
from aegaeon_rl.training.evolution import STATE, Evolution, flat, unflat, worth
from aegaeon_rl.training.session import Job, Listener, train
from envs.episode import draw
from runtime.errors import UserError

TINY = {"method": "es", "decisions": 3000, "population": 4, "episodes": 2, "hidden": 4}
MakeJob = Callable[..., Job]


def test_numbers_survive_the_way_there_and_back() -> None:
    start = initial_weights(fcfs(), (0.1, 0.4), 4, seed=1)
    there = unflat(flat(start), start)
    assert all(np.array_equal(a, b) for a, b in zip(start, there, strict=True))
    moved = unflat(flat(start) + 1.0, start)
    assert np.array_equal(moved.quotas_s, start.quotas_s)
    assert np.allclose(moved.base, start.base + 1.0)


def test_worth_ranks_by_missed_deadlines_and_is_nothing_among_equals() -> None:
    assert not worth(np.full((4, 3), 0.2)).any()
    found = worth(np.array([[0.1, 0.5], [0.2, 0.6], [0.3, 0.7], [0.9, 0.9]]))
    assert list(np.argsort(-found)) == [0, 1, 2, 3]
    assert np.abs(found).max() <= 2


def test_interrupted_evolution_ends_as_the_uninterrupted_one(
    make_job: MakeJob, quiet: Listener, tmp_path: Path, same_weights: Any
) -> None:
    whole = make_job(tmp_path / "whole", **TINY)
    points = train(whole, quiet)
    assert len(points) == 4
    broken = make_job(tmp_path / "broken", **TINY)

    def stop(made: int) -> None:
        counted.append(made)
        if sum(counted) > 1500:
            raise KeyboardInterrupt

    counted: list[int] = []
    with pytest.raises(KeyboardInterrupt):
        train(broken, Listener(stop, lambda _: None))
    assert train(make_job(tmp_path / "broken", threads=2, **TINY), quiet, resume=True) == points
    assert same_weights(tmp_path / "whole", tmp_path / "broken")
    last = [tmp_path / name / "checkpoints" / "0003" for name in ("whole", "broken")]
    assert same_weights(*last)


def test_evolution_misses_fewer_deadlines_than_its_poor_start(
    make_job: MakeJob, tmp_path: Path
) -> None:
    job = make_job(tmp_path, **TINY | {"start": "fcfs", "decisions": 60_000, "checkpoints": 1})
    evolution, scenario = Evolution(job.scenario(), job.spec, 0, tmp_path), job.scenario()
    start = evolution.save().policy()
    learned = evolution.advance(lambda _: None).policy()
    rng = np.random.default_rng(99)
    episodes = [draw(scenario, rng) for _ in range(12)]
    missed = [sum(play(scenario, e, p).missed for e in episodes) for p in (start, learned)]
    assert missed[1] < missed[0]


def test_state_of_another_network_or_none_is_one_line(make_job: MakeJob, tmp_path: Path) -> None:
    job = make_job(tmp_path, **TINY)
    checkpoint = Evolution(job.scenario(), job.spec, 0, tmp_path).save()
    other = make_job(tmp_path, **TINY | {"hidden": 5})
    with pytest.raises(UserError, match="not this network's"):
        Evolution(other.scenario(), other.spec, 0, tmp_path).restore(checkpoint)
    (checkpoint.folder / STATE).write_bytes(b"no arrays")
    with pytest.raises(UserError, match="not an evolution's state"):
        Evolution(job.scenario(), job.spec, 0, tmp_path).restore(checkpoint)
