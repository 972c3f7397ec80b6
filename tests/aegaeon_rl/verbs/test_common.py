"""What the verbs share: the run folder, the command line told, the pool with its profile."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from aegaeon_rl.config import build
from aegaeon_rl.verbs.common import Common, RunSection, chosen_folder, command, run_folder
from runtime.core import ModelSlo, PoolSpec, SloSpec
from runtime.errors import UserError
from traces.source import TraceSource


@pytest.fixture
def common() -> Callable[..., Common]:
    pool = PoolSpec(name="p", profile="h100", checkpoints=("Qwen2.5-7B",))

    def make(**changes: Any) -> Common:
        return Common(**({"trace": TraceSource(), "pool": pool, "slo": SloSpec()} | changes))

    return make


def test_seeds_are_not_negative(common: Any) -> None:
    with pytest.raises(UserError, match=r"^seed=-1: expected 0 or more$"):
        common(seed=-1)


def test_profile_replaces_the_pools_own(common: Any) -> None:
    assert common().profiled_pool().profile == "h100"
    assert common(profile="h200").profiled_pool().profile == "h200"
    with pytest.raises(UserError, match=r"^profile=h2000: did you mean 'h200'\? known: "):
        common(profile="h2000").profiled_pool()


def test_an_slo_of_its_own_needs_a_model_of_the_trace(common: Any) -> None:
    trace = common().opened_trace()
    known = SloSpec(models={trace.models[0]: ModelSlo(tbt_s=1.0)})
    assert common(slo=known).opened_trace().sha256 == trace.sha256
    with pytest.raises(UserError, match=r"^slo\.models\.nope: no such model; known: "):
        common(slo=SloSpec(models={"nope": ModelSlo()})).opened_trace()


def test_run_folder_holds_the_configuration(common: Any, tmp_path: Path) -> None:
    config = common(seed=5)
    folder = run_folder(tmp_path / "a" / "b", config)
    assert [p.name for p in folder.iterdir()] == ["config.yaml"]
    assert build(Common, OmegaConf.load(folder / "config.yaml")) == config


def test_folder_is_the_one_asked_for_or_a_fresh_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert chosen_folder("evaluate", RunSection(dir="x")) == Path("x")
    taken = []
    for _ in range(12):  # within a second or two: names never collide
        folder = chosen_folder("evaluate", RunSection())
        assert folder.parent == Path("runs/evaluate")
        folder.mkdir(parents=True)
        taken.append(folder)
    assert len(set(taken)) == 12


@pytest.mark.parametrize(
    ("summary", "is_refused"),
    [
        ('{"verb": "train"}', True),
        ('{"verb": "evaluate"}', False),
        ("[]", False),
        ("{}", False),
        ("not JSON", False),
    ],
)
def test_folder_of_another_verbs_run_is_refused(
    tmp_path: Path, summary: str, is_refused: bool
) -> None:
    (tmp_path / "summary.json").write_text(summary)
    section = RunSection(dir=str(tmp_path))
    if not is_refused:
        assert chosen_folder("evaluate", section) == tmp_path
        return
    with pytest.raises(UserError, match=r"holds a run of train: expected another run\.dir$"):
        chosen_folder("evaluate", section)


def test_command_is_told_as_a_shell_takes_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        sys, "argv", ["aegaeon-rl evaluate", "policies=[a,b]", "trace.where='w=1'", "seed=1"]
    )
    told = command()
    assert told == ("""aegaeon-rl evaluate 'policies=[a,b]' 'trace.where='"'"'w=1'"'"'' seed=1""")
