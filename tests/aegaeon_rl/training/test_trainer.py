"""Segments resume to the bit, whatever broke off; what a checkpoint's file may hold."""

import pickle
from collections.abc import Callable
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from aegaeon_rl.policies.heuristics import index
from aegaeon_rl.policies.learned import FILE
from aegaeon_rl.training.session import Job
from aegaeon_rl.training.spec import TrainSpec
from aegaeon_rl.training.trainer import (
    POSITION,
    STATE,
    Checkpoint,
    Trainer,
    checkpoints,
    read_curriculum,
    read_state,
    starting_weights,
)
from runtime.emulator.run import run
from runtime.errors import UserError

MakeTrainer = Callable[..., Trainer]


def nothing(_: int) -> None:
    pass


def critic_of(trainer: Trainer) -> list[np.ndarray]:
    layers = (trainer.network.critic, trainer.model.policy.value_net)
    return [p.detach().numpy().copy() for layer in layers for p in layer.parameters()]


def tensors(value: Any) -> list[Any]:
    """The leaves of a state, in order."""
    if isinstance(value, dict):
        return [leaf for key in value for leaf in (key, *tensors(value[key]))]
    if isinstance(value, list | tuple):
        return [leaf for entry in value for leaf in tensors(entry)]
    return [value.numpy().tobytes() if isinstance(value, torch.Tensor) else value]


def same_state(a: Path, b: Path) -> bool:
    return tensors(read_state(a / STATE)) == tensors(read_state(b / STATE))


@pytest.fixture(scope="module")
def whole(make_trainer: MakeTrainer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of three segments in one go."""
    folder = tmp_path_factory.mktemp("whole")
    trainer = make_trainer(folder)
    trainer.save()
    for _ in range(3):
        trainer.advance(nothing)
    return folder


def test_start_is_the_index(make_trainer: MakeTrainer, make_job: Any, tmp_path: Path) -> None:
    job: Job = make_job(tmp_path)
    trace = job.parts.train.window(0, 100)  # later two scores tie but for the last bit
    policies = (
        replace(index(), quota_s=0.1, longest_s=0.0),
        make_trainer(tmp_path).save().policy(),
    )
    first, second = (run(trace, job.pool, p, job.slo, journal=True) for p in policies)
    assert first.journal.tobytes() == second.journal.tobytes()


def test_first_segment_moves_the_critic_alone(
    make_trainer: MakeTrainer, tmp_path: Path, same_weights: Any
) -> None:
    trainer = make_trainer(tmp_path)
    start, critic = trainer.network.weights(), critic_of(trainer)
    trainer.advance(nothing)
    assert same_weights(trainer.network.weights(), start)
    assert not all(np.array_equal(a, b) for a, b in zip(critic, critic_of(trainer), strict=True))
    trainer.advance(nothing)
    trained = trainer.network.weights()._asdict()
    for name, array in start._asdict().items():
        is_fixed = name in ("base", "quotas_s")
        assert np.array_equal(array, trained[name]) == is_fixed, name


def test_segments_play_episodes_of_their_own(
    make_trainer: MakeTrainer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer, seeds = make_trainer(tmp_path), list[int]()
    seed = trainer.pools.seed
    monkeypatch.setattr(trainer.pools, "seed", lambda value: (seeds.append(value), seed(value))[1])
    for _ in range(3):
        trainer.advance(nothing)
    assert len(seeds) == 3
    assert min(abs(a - b) for a, b in combinations(seeds, 2)) > trainer.spec.pools


def test_all_learn_at_once_where_so_asked(
    make_trainer: MakeTrainer, tmp_path: Path, same_weights: Any
) -> None:
    trainer = make_trainer(tmp_path, warm_critic=False)
    start = trainer.network.weights()
    trainer.advance(nothing)
    assert not same_weights(trainer.network.weights(), start)


def test_progress_counts_every_decision(make_trainer: MakeTrainer, tmp_path: Path) -> None:
    trainer, told = make_trainer(tmp_path), list[int]()
    trainer.advance(told.append)
    assert sum(told) == trainer.spec.segment == trainer.model.num_timesteps == 128
    assert list((tmp_path / "tensorboard").glob("events.out.tfevents.*"))


@pytest.mark.parametrize("stop", [0, 1, 2])
def test_resumed_run_ends_as_the_uninterrupted_one(
    whole: Path, make_trainer: MakeTrainer, tmp_path: Path, same_weights: Any, stop: int
) -> None:
    trainer = make_trainer(tmp_path)
    trainer.save()
    for _ in range(stop):
        trainer.advance(nothing)
    torch.manual_seed(99)  # neither what others drew nor where the break fell matters
    np.random.seed(99)
    resumed = make_trainer(tmp_path)
    resumed.restore(checkpoints(tmp_path)[-1])
    while resumed.done < 3:
        resumed.advance(nothing)
    for number in range(4):
        ours, theirs = (f / "checkpoints" / f"{number:04d}" for f in (tmp_path, whole))
        assert same_weights(ours, theirs)
        assert same_state(ours, theirs)


def test_seed_decides_the_run(
    whole: Path, make_trainer: MakeTrainer, tmp_path: Path, same_weights: Any
) -> None:
    for seed, is_same in ((3, True), (4, False), (2**40, False)):
        trainer = make_trainer(tmp_path / str(seed), seed)
        trainer.advance(nothing)
        folder = trainer.advance(nothing).folder
        assert same_weights(folder, whole / "checkpoints" / "0002") == is_same


def test_grouped_run_compares_pools_of_the_same_episodes_and_resumes(
    make_trainer: MakeTrainer, tmp_path: Path
) -> None:
    changes = {"group": 2, "warm_critic": False, "steps": 64}
    whole = make_trainer(tmp_path / "whole", **changes)
    folders = [whole.advance(nothing).folder for _ in range(2)]
    buffer = whole.model.rollout_buffer
    compared = buffer.advantages != buffer.returns - buffer.values
    assert 0.2 < compared.mean() < 1
    sims = whole.pools.venv.vector.pools.sims
    arrivals = [sim.arrivals.time_ns.tobytes() for sim in sims]
    assert len(set(arrivals)) > 1
    assert (buffer.episode[0, 0::2] == buffer.episode[0, 1::2]).all()
    first = make_trainer(tmp_path / "broken", **changes)
    first.advance(nothing)
    resumed = make_trainer(tmp_path / "broken", **changes)
    resumed.restore(checkpoints(tmp_path / "broken")[-1])
    assert same_state(resumed.advance(nothing).folder, folders[1])


@pytest.mark.parametrize("left", [(), (FILE,), (FILE, STATE), (FILE, f".{STATE}.part")])
def test_unfinished_checkpoint_is_passed_over_and_made_anew(
    whole: Path, make_trainer: MakeTrainer, tmp_path: Path, same_weights: Any, left: Any
) -> None:
    trainer = make_trainer(tmp_path)
    trainer.save()
    last = trainer.advance(nothing)
    broken = tmp_path / "checkpoints" / "0002"
    broken.mkdir()
    for name in left:
        (broken / name).write_bytes(b"half")
    found = checkpoints(tmp_path)
    assert [c.number for c in found] == [0, 1]
    assert found[-1] == last
    resumed = make_trainer(tmp_path)
    resumed.restore(found[-1])
    resumed.advance(nothing)
    assert [c.number for c in checkpoints(tmp_path)] == [0, 1, 2]
    assert same_weights(broken, whole / "checkpoints" / "0002")


@pytest.mark.parametrize("broken", ["weights.npz", STATE, POSITION])
def test_checkpoint_counts_only_when_its_last_file_is_written(
    make_trainer: MakeTrainer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    names = {"weights.npz": "save_weights", STATE: "torch.save", POSITION: "write_text"}
    trainer = make_trainer(tmp_path)
    trainer.save()
    trainer.done = 1
    monkeypatch.setattr(f"aegaeon_rl.training.trainer.{names[broken]}", stop)
    with pytest.raises(KeyboardInterrupt):
        trainer.save()
    assert [c.number for c in checkpoints(tmp_path)] == [0]


class Trap:
    """Unpickled, it would make a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


def state_files(folder: Path) -> dict[str, Callable[[Path], object]]:
    whole_state = {"policy": 0, "optimizer": 0, "decisions": 0, "updates": 0, "segments": 0}
    return {
        "trap": lambda path: torch.save(Trap(folder / "sprung"), path),
        "trap inside": lambda path: torch.save(
            whole_state | {"policy": Trap(folder / "sprung")}, path
        ),
        "pickle": lambda path: path.write_bytes(pickle.dumps(Trap(folder / "sprung"))),
        "noise": lambda path: path.write_bytes(b"\x80noise"),
        "nothing": lambda path: path.write_bytes(b""),
        "absent": lambda path: path.unlink(),
        "cut": lambda path: path.write_bytes(path.read_bytes()[:500]),
        "a list": lambda path: torch.save([1], path),
        "a part": lambda path: torch.save({"policy": {}}, path),
    }


@pytest.mark.parametrize("content", list(state_files(Path())))
def test_state_that_is_none_is_one_line_and_nothing_of_it_runs(
    make_trainer: MakeTrainer, tmp_path: Path, content: str
) -> None:
    trainer = make_trainer(tmp_path)
    checkpoint = trainer.save()
    state_files(tmp_path)[content](checkpoint.folder / STATE)
    with pytest.raises(UserError) as caught:
        trainer.restore(checkpoint)
    assert str(caught.value).startswith(f"{checkpoint.folder / STATE}: not a training state;")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "sprung").exists()


def test_state_of_another_network_is_refused(make_trainer: MakeTrainer, tmp_path: Path) -> None:
    checkpoint = make_trainer(tmp_path, hidden=16).save()
    with pytest.raises(UserError, match=r"not this network's: .*size mismatch") as caught:
        make_trainer(tmp_path).restore(checkpoint)
    assert "\n" not in str(caught.value)


def test_start_may_be_an_index_or_trained_weights(
    whole: Path, make_trainer: MakeTrainer, tmp_path: Path, same_weights: Any
) -> None:
    trained = whole / "checkpoints" / "0003"
    assert same_weights(starting_weights(TrainSpec(start=str(trained)), 0), trained)
    assert len(starting_weights(TrainSpec(start="fcfs", hidden=5), 0).b1) == 5
    trainer = make_trainer(tmp_path, start=str(trained))
    assert same_weights(trainer.network.weights(), trained)
    for start, message in (("aegaeon", "expected an index or"), ("no_such", "no_such")):
        with pytest.raises(UserError, match=message):
            starting_weights(TrainSpec(start=start), 0)


def test_checkpoints_are_listed_oldest_first(whole: Path) -> None:
    expected = [Checkpoint(n, whole / "checkpoints" / f"{n:04d}") for n in range(4)]
    assert checkpoints(whole) == expected
    assert [c.policy().name for c in expected] == [f"checkpoint {n}" for n in range(4)]


@pytest.mark.parametrize("content", ["", "{", "[1]", "{}", '{"number": null}', '{"number": "x"}'])
def test_damaged_position_is_one_line(tmp_path: Path, content: str) -> None:
    position = tmp_path / "checkpoints" / "0001" / POSITION
    position.parent.mkdir(parents=True)
    position.write_text(content)
    with pytest.raises(UserError) as caught:
        checkpoints(tmp_path)
    assert str(caught.value).startswith(f"{position}: not a checkpoint's position: ")
    assert "\n" not in str(caught.value)


def test_curriculum_resumes_exactly_and_draws_by_the_gap(
    make_trainer: MakeTrainer, tmp_path: Path, same_weights: Any
) -> None:
    """Three load bins; the state is in each checkpoint, and a resumed run equals the whole one."""
    changes: dict[str, Any] = {"curriculum_bins": 3, "curriculum_episodes": 2, "warm_critic": False}
    whole = make_trainer(tmp_path / "whole", **changes)
    assert whole.scenario.levels == 3
    made = [whole.advance(nothing) for _ in range(3)]
    assert [read_curriculum(one.folder / POSITION).rounds for one in made] == [0, 1, 2]
    assert whole.batch.vector.pools.scenario.level_weights == whole.curriculum.weights()
    again = make_trainer(tmp_path / "again", **changes)
    again.restore(made[1])
    assert again.curriculum.rounds == 1
    last = again.advance(nothing)
    assert again.curriculum == whole.curriculum
    assert same_weights(last.folder, made[2].folder)


def test_without_a_curriculum_levels_stay_as_they_were(
    make_trainer: MakeTrainer, tmp_path: Path
) -> None:
    trainer = make_trainer(tmp_path)
    trainer.advance(nothing), trainer.advance(nothing)
    assert trainer.curriculum.rounds == 0
    assert trainer.batch.vector.pools.scenario.level_weights == ()
