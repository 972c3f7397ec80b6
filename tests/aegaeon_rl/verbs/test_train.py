"""`train` end to end: what it leaves, what it refuses, and how it resumes."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from traces.market import MarketSpec, generate
from traces.writing import write

Cli = Callable[..., Any]
TINY = (
    "trace.path=market.parquet",
    "pool.instances_per_node=2",
    "train.decisions=2048",
    "train.pools=8",
    "train.steps=32",
    "train.checkpoints=2",
    "train.hidden=8",
    "train.learning_rate=0.05",
    "train.warm_s=2",
    "train.shortest_s=2",
    "train.longest_s=5",
    "evaluate.loads=[1.0]",
    "evaluate.draws=100",
    "evaluate.gantt_s=5",
)


@pytest.fixture(autouse=True)
def market(tmp_path: Path) -> Path:
    """A market that keeps two GPUs late now and then, alone in the folder."""
    spec = MarketSpec(name="small", models=16, duration_s=240.0, rate_rps=8.0, seed=9)
    write(generate(spec), tmp_path / "market.parquet")
    return tmp_path / "market.parquet"


def weights(folder: Path) -> dict[str, np.ndarray]:
    with np.load(folder / "weights.npz") as data:
        return {name: data[name] for name in data.files}


def same_weights(a: Path, b: Path) -> bool:
    first, second = weights(a), weights(b)
    return first.keys() == second.keys() and all(np.array_equal(first[n], second[n]) for n in first)


def test_run_leaves_weights_verdict_and_report(cli: Cli, tmp_path: Path) -> None:
    ended = cli("train", *TINY, "run.dir=run", "seed=1")
    assert ended.code == 0, ended.err
    run = tmp_path / "run"
    content = json.loads((run / "summary.json").read_text())
    assert (content["verb"], content["seed"]) == ("train", 1)
    assert content["baseline"] == "index"
    assert content["trace"]["requests"] < 1000  # the held-out part
    rows = {row["policy"]: row for row in content["results"]}
    assert list(rows) == ["aegaeon", "index", "learned"]
    assert rows["index"]["diff"] is None
    assert rows["learned"]["ci_low"] <= rows["learned"]["diff"] <= rows["learned"]["ci_high"]
    page = (run / "report.html").read_text()
    assert "<h2>Training</h2>" in page
    assert "2,048 decisions on the train part of the trace" in page
    assert {"config.yaml", "curve.parquet", "results.parquet"} <= {p.name for p in run.iterdir()}
    assert list((run / "tensorboard").glob("events.out.tfevents.*"))
    assert not same_weights(run / "checkpoints" / "0000", run / "checkpoints" / "0002")
    for line in ("validation: start: index", "validation: checkpoint 2", "Held-out verdict: "):
        assert line in ended.out
    assert f"Held-out verdict: learned against index: {100 * rows['learned']['diff']:+.2f}" in (
        ended.out
    )
    assert ended.out.splitlines()[-2:] == ["run/report.html", "run"]

    again = cli("evaluate", *TINY[:2], "policies=[index,run]", "evaluate.sizing=false", "run.dir=e")
    assert again.code == 0, again.err
    judged = json.loads((tmp_path / "e" / "summary.json").read_text())
    assert [row["policy"] for row in judged["results"]] == ["index", "run"]


def test_a_run_goes_on_only_when_asked_and_unchanged(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Broken off between the files of the second checkpoint; then as if it had not been."""
    short = (*TINY, "policies=[]", "train.decisions=512")
    assert cli("train", *short, "run.dir=whole").code == 0
    written: list[Path] = []

    def stop(path: Path, text: str) -> None:
        if len(written) == 2:
            raise KeyboardInterrupt
        written.append(path)
        path.write_text(text)

    with monkeypatch.context() as patch:
        patch.setattr("aegaeon_rl.training.trainer.write_text", stop)
        ended = cli("train", *short, "run.dir=run")
    assert (ended.code, ended.err.strip()) == (130, "aegaeon-rl train: interrupted")
    assert [path.parent.name for path in written] == ["0000", "0001"]
    assert not (tmp_path / "run" / "weights.npz").exists()

    for arguments, message in (
        ([], "run.dir=run holds a training run: resume=true, or another run.dir"),
        (["resume=true", "seed=5", "train.clip=0.2"], "resume=true: seed, train.clip differ from"),
        (["resume=true", "evaluate.windows=0"], "resume=true: evaluate.windows differ from"),
        (["resume=true", "pool=h100x8"], "pool.name differ from run/config.yaml"),
    ):
        refused = cli("train", *short, "run.dir=run", *arguments)
        assert refused.code == 2
        assert message in refused.err
        assert len(refused.err.splitlines()) == 1
    assert not (tmp_path / "run" / "weights.npz").exists()

    told = ("policies=[fcfs]", "evaluate.loads=[1.0,2.0]")  # what the verdict alone needs is free
    resumed = cli("train", *short, "run.dir=run", "resume=true", *told)
    assert resumed.code == 0, resumed.err
    for number in ("checkpoints/0000", "checkpoints/0001", "checkpoints/0002", "."):
        assert same_weights(tmp_path / "run" / number, tmp_path / "whole" / number)
    rows = json.loads((tmp_path / "run" / "summary.json").read_text())["results"]
    assert [row["policy"] for row in rows] == ["fcfs", "index", "learned"]


@pytest.mark.parametrize(
    ("arguments", "policies"),
    [
        (["train.start=learned"], ["aegaeon", "learned", "trained"]),
        (["policies=[learned,index]"], ["learned", "index", "trained"]),
        (["policies=[fcfs]", "train.start=fcfs", "seed=5000"], ["fcfs", "learned"]),
    ],
)
def test_trained_policy_is_told_from_its_start_and_others(
    cli: Cli, tmp_path: Path, arguments: list[str], policies: list[str]
) -> None:
    ended = cli("train", *TINY, "run.dir=run", *arguments, "train.decisions=512")
    assert ended.code == 0, ended.err
    content = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert [row["policy"] for row in content["results"]] == policies
    assert content["baseline"] == policies[-2]
    assert f"Held-out verdict: {policies[-1]} against {policies[-2]}: " in ended.out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["resume=true"], "resume=true: no checkpoint in run.dir=run: expected a training run"),
        (["train.decisions=0"], "train.decisions=0: expected at least 1"),
        (["train.start=aegaeon"], "train.start=aegaeon: expected an index or"),
        (["train.start=indx"], "'indx'"),
        (["policies=[aegaeo]"], "policies='aegaeo'"),
        (["policies=[fcfs,fcfs]"], "policies: 'fcfs' is listed twice"),
        (["pool.instances_per_node=1"], "policy aegaeon: pool h100x4 has 1 instance"),
        (["train.longest_s=100"], "are shorter than warm_s + longest_s"),
        (["train.train_share=0.9999", "train.validation_share=5e-5"], "in the validation part"),
        (["profile=h101"], "h101"),
        (["train.epoch=3"], "train.epoch: unknown key"),
        (
            ["trace.path=aegaeon_sosp25_workloads.parquet"],
            "split sosp25 allows aegaeon_sosp25_workloads for test only: expected no use for train",
        ),
    ],
)
def test_a_refused_run_leaves_no_file(
    cli: Cli, market: Path, tmp_path: Path, arguments: list[str], message: str
) -> None:
    ended = cli("train", *TINY, "run.dir=run", *arguments)
    assert ended.code == 2
    assert message in ended.err
    assert len(ended.err.splitlines()) == 1
    assert list(tmp_path.iterdir()) == [market]


SERVEGEN = (
    Path(__file__).parents[3] / "../shared/data/traces/servegen_tail98_days0-8.parquet"
).resolve()


@pytest.mark.long
@pytest.mark.skipif(not SERVEGEN.is_file(), reason=f"needs {SERVEGEN.name} beside the project")
def test_a_million_decisions_do_no_harm_on_held_out_windows(cli: Cli, tmp_path: Path) -> None:
    whole = ("evaluate.windows=0", "evaluate.loads=[1.0]")  # at night there is no window with work
    ended = cli("train", f"trace.path={SERVEGEN}", "policies=[]", "run.dir=run", *whole)
    assert ended.code == 0, ended.err
    rows = json.loads((tmp_path / "run" / "summary.json").read_text())["results"]
    learned = next(row for row in rows if row["policy"] == "learned")
    assert learned["diff"] > -0.01
