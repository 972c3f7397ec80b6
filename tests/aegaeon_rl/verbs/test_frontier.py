"""`frontier` from the command line: what it writes, resumes, refuses."""

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from aegaeon_rl.cli import run
from traces.market import MarketSpec, generate
from traces.stream import of_trace
from traces.writing import write

SMALL = ["frontier", "pool=h100x4", "policies=[fcfs,index]", "frontier.rate=0.5",
         "frontier.duration_s=40", "frontier.warm_s=5", "frontier.seeds=3", "frontier.least=4",
         "frontier.most=24", "frontier.draws=100"]  # fmt: skip


def cli(*arguments: str) -> int:
    return run([*arguments])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("frontier") / "run"
    assert cli(*SMALL, "frontier.target=0.9", f"run.dir={folder}") == 0
    return folder


def summary(folder: Path) -> Any:
    return json.loads((folder / "summary.json").read_text())


def test_results_carry_the_contract(folder: Path) -> None:
    content = summary(folder)
    assert content["verb"] == "frontier"
    assert [row["policy"] for row in content["results"]] == ["fcfs", "index"]
    for row in content["results"]:
        assert row["gpus"] == 4
        assert row["rate"] == 0.5
        assert row["models"] > 0
        assert row["ci_low"] <= row["ci_high"]
        assert {"offered_requests_s", "backlog_slope", "request_lost", "worst_model"} <= set(row)
        assert row["bound_models"] > 0


def test_resume_runs_nothing_twice_and_takes_more_policies(folder: Path) -> None:
    before = (folder / "cells.jsonl").read_text()
    again = [a.replace("[fcfs,index]", "[fcfs,index,least_slack]") for a in SMALL]
    assert cli(*again, "frontier.target=0.9", "resume=true", f"run.dir={folder}") == 0
    after = (folder / "cells.jsonl").read_text()
    assert after.startswith(before)
    assert all("least_slack" in line for line in after[len(before) :].splitlines())


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ([], "holds cells of a frontier: resume=true, or another run.dir"),
        (["resume=true", "slo.ttft_s=3"], "resume=true: slo.ttft_s differ from"),
    ],
)
def test_a_run_is_not_mixed_with_another(
    folder: Path, capsys: pytest.CaptureFixture[str], more: list[str], message: str
) -> None:
    assert cli(*SMALL, f"run.dir={folder}", *more) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ("frontier.target=1.5", "frontier.target=1.5: expected between 0 and 1"),
        ("frontier.rate=0", "frontier.rate=0.0: expected at least"),
        ("frontier.find=mdels", "frontier.find='mdels': did you mean 'models'?"),
        ("policies=[index,index]", "policies: 'index' is listed twice"),
        ("trace.path=nope.parquet", "nope.parquet"),
    ],
)
def test_a_mistake_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], more: str, message: str
) -> None:
    assert cli("frontier", more, f"run.dir={tmp_path / 'run'}") == 2
    err = capsys.readouterr().err
    assert message in err
    assert err.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_own_trace_gives_a_plan(tmp_path: Path) -> None:
    trace = generate(MarketSpec(name="m", models=6, duration_s=60.0, rate_rps=2.0, seed=1))
    write(of_trace(trace), tmp_path / "own.parquet")
    out = tmp_path / "run"
    code = cli("frontier", f"trace.path={tmp_path / 'own.parquet'}", "pool=h100x4",
               "policies=[vllm_sleep,index]", "frontier.target=0.9", f"run.dir={out}")  # fmt: skip
    assert code == 0
    content = summary(out)
    assert [r["policy"] for r in content["results"]] == ["dedicated", "vllm_sleep", "index"]
    assert content["find"] == "gpus"
    lines = list(csv.DictReader((out / "plan.csv").read_text().splitlines()))
    assert sum(float(line["gpus"]) for line in lines) == pytest.approx(
        content["plan"]["gpus"], 1e-2
    )


def test_load_of_own_trace_is_a_multiple_of_its_rate(tmp_path: Path) -> None:
    trace = generate(MarketSpec(name="m", models=6, duration_s=60.0, rate_rps=2.0, seed=1))
    write(of_trace(trace), tmp_path / "own.parquet")
    out = tmp_path / "run"
    code = cli("frontier", f"trace.path={tmp_path / 'own.parquet'}", "pool=h100x4",
               "policies=[index]", "frontier.find=load", "frontier.most=400",
               f"run.dir={out}")  # fmt: skip
    assert code == 0
    row = summary(out)["results"][0]
    assert row["rate"] == pytest.approx(row["load"] * trace.rate_rps, rel=0.05)
