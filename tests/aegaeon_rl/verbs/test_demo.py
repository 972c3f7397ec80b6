"""`demo` end to end on a small market."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from traces.market import MarketSpec, generate
from traces.writing import write

TINY = (
    "trace.path=market.parquet",
    "train.decisions=512",
    "train.pools=8",
    "train.steps=32",
    "train.checkpoints=2",
    "train.hidden=8",
    "train.warm_s=2",
    "train.shortest_s=2",
    "train.longest_s=5",
    "evaluate.loads=[1.0]",
    "evaluate.draws=100",
    "evaluate.gantt_s=5",
    "harder=2",
    "run.dir=run",
)


@pytest.fixture(autouse=True)
def market(tmp_path: Path) -> Path:
    """A market alone in the folder."""
    spec = MarketSpec(name="small", models=8, duration_s=200.0, rate_rps=4.0, seed=9)
    write(generate(spec), tmp_path / "market.parquet")
    return tmp_path / "market.parquet"


def test_demo_sizes_compares_learns_and_judges(cli: Callable[..., Any], tmp_path: Path) -> None:
    ended = cli("demo", *TINY)
    assert ended.code == 0, ended.err
    content = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert content["verb"] == "demo"
    sizing = content["sizing"]
    assert sizing["dedicated"] >= content["trace"]["models"] > sizing["pooled"] == 1
    assert content["pool"]["gpus"] == 1
    policies = [row["policy"] for row in content["results"]]  # aegaeon cannot run on one GPU
    assert policies == ["serverlessllm", "fcfs", "collate", "index", "learned"]
    assert content["baseline"] == "index"
    stages = ("The trace, and what", "The baselines on", "Learning where it is hard", "The verdict")
    found = [ended.out.index(stage) for stage in stages]
    assert found == sorted(found)
    assert "at 2 times the rate" in ended.out
    assert f"dedicated {sizing['dedicated']} GPUs -> pooled {sizing['pooled']}" in ended.out
    assert "<h2>Training</h2>" in (tmp_path / "run" / "report.html").read_text()
    assert (tmp_path / "run" / "weights.npz").is_file()
    assert ended.out.splitlines()[-2:] == ["run/report.html", "run"]
    assert "run.dir=run holds a training run" in cli("demo", *TINY).err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["harder=0"], "harder=0.0: expected more than 0"),
        (["policies=[indx]"], "policies='indx'"),
        (["policies=[fcfs,fcfs]"], "policies: 'fcfs' is listed twice"),
        (["train.start=aegaeon"], "train.start=aegaeon: expected an index or"),
        (["train.longest_s=100"], "are shorter than warm_s + longest_s"),
    ],
)
def test_a_refused_demo_leaves_no_file(
    cli: Callable[..., Any], market: Path, tmp_path: Path, arguments: list[str], message: str
) -> None:
    ended = cli("demo", *TINY, *arguments)
    assert ended.code == 2
    assert message in ended.err
    assert len(ended.err.splitlines()) == 1
    assert list(tmp_path.iterdir()) == [market]
