"""`bench`: what it reports, by name; how fast this machine is, is not tested."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

COUNTS = ["gpus", "models", "threads", "pools", "decisions", "train_decisions", "repeat", "runs"]
TINY = ("gpus=2", "models=4", "rate_rps=2", "duration_s=150", "seed=4")


def results(folder: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    content = json.loads((folder / "summary.json").read_text())
    return content, content["results"]


@pytest.mark.parametrize("threads", [1, 2])
def test_emulator_reports_a_row_per_policy(
    cli: Callable[..., Any], tmp_path: Path, threads: int
) -> None:
    ended = cli("bench", *TINY, f"threads={threads}", "run.dir=run")
    assert ended.code == 0, ended.err
    content, rows = results(tmp_path / "run")
    assert content["verb"] == "bench"
    assert content["bench"] == "emulator"
    assert content["pool"]["gpus"] == 2
    assert [row["policy"] for row in rows] == ["index", "aegaeon"]
    for row in rows:
        for name in ("requests_s", "tokens_s", "decisions_s", "peak_rss_bytes"):
            assert row[name] > 0
        assert row["compile_s"] >= 0
        assert row["tokens_s"] > row["requests_s"]
        assert (row["threads"], row["gpus"], row["models"]) == (threads, 2, 4)
        assert f"policy={row['policy']}" in ended.out
    assert ended.out.splitlines()[-1] == "run"


def test_environment_reports_steps_and_training(cli: Callable[..., Any], tmp_path: Path) -> None:
    keys = ("pools=4", "threads=2", "decisions=200", "train_decisions=200", "peers=false")
    ended = cli("bench", "bench=env", *TINY, *keys, "run.dir=run")
    assert ended.code == 0, ended.err
    content, (row,) = results(tmp_path / "run")
    assert content["bench"] == "env"
    speeds = ("decisions_s", "decisions_cpu_s", "train_decisions_s", "train_decisions_cpu_s")
    for name in (*speeds, "peak_rss_bytes"):
        assert row[name] > 0
    assert (row["policy"], row["pools"], row["threads"]) == (None, 4, 2)
    assert (row["gpus"], row["models"]) == (2, 4)


@pytest.mark.long
def test_environment_is_measured_beside_sb3s_own(cli: Callable[..., Any], tmp_path: Path) -> None:
    keys = ("pools=4", "decisions=200", "train_decisions=200")
    ended = cli("bench", "bench=env", *TINY, *keys, "run.dir=run")
    assert ended.code == 0, ended.err
    (row,) = results(tmp_path / "run")[1]
    assert row["decisions_s"] > 0
    assert row["dummy_decisions_s"] > 0
    assert row["subproc_decisions_s"] > 0


def test_gpus_are_those_of_the_pool_in_equal_nodes(cli: Callable[..., Any], tmp_path: Path) -> None:
    assert cli("bench", *TINY, "gpus=9", "policies=[fcfs]", "run.dir=run").code == 0
    content, (row,) = results(tmp_path / "run")
    assert row["gpus"] == content["pool"]["gpus"] == 10


def test_a_trace_is_benched_repeated_or_streamed(cli: Callable[..., Any], tmp_path: Path) -> None:
    """Both do the work of the same requests, and as well."""
    found = {}
    ways = {"once": [], "twice": ["repeat=2", "period_s=700"], "stream": ["stream=true"]}
    for name, way in ways.items():
        keys = [*way, "workload=trace", "trace.duration_s=600", "policies=[index]", "gpus=8"]
        assert cli("bench", *keys, f"run.dir={name}").code == 0
        found[name] = results(tmp_path / name)[1][0]
    assert found["once"]["requests"] * 2 == found["twice"]["requests"]
    assert found["once"]["requests"] == found["stream"]["requests"]
    assert found["once"]["token_attainment"] == found["stream"]["token_attainment"] > 0.9


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        *(([f"{name}=0"], f"{name}=0: expected at least 1") for name in COUNTS),
        (["bench=env", "pools=1000000000"], "pools=1000000000: expected at most 65536"),
        (["seed=-1"], "seed=-1: expected 0 or more"),
        (["policies=[indx]"], "policies='indx'"),
        (["gpus=1"], "policy aegaeon: pool h100x16:1 has 1 instance, expected 2 or more"),
        (["bench=env", "duration_s=50"], "are shorter than warm_s + longest_s"),
        (["duration_s=0"], "duration_s=0.0: expected more than 0"),
        (["stream=true", "threads=2"], "stream=true: expected repeat=1, threads=1"),
        (["stream=true", "policies=[muxserve]"], "policies=muxserve: it must know the trace"),
        (["workload=trase"], "workload='trase'"),
        (["bench=engin"], "bench='engin'"),
    ],
)
def test_a_refused_call_leaves_no_file(
    cli: Callable[..., Any], tmp_path: Path, arguments: list[str], message: str
) -> None:
    ended = cli("bench", *TINY, *arguments)
    assert ended.code == 2
    assert message in ended.err
    assert len(ended.err.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_engine_is_measured_beside_copies_and_generate(
    cli: Callable[..., Any], tmp_path: Path
) -> None:
    keys = ("model=tiny", "threads=1", "tokens=3", "prompt_tokens=4", "runs=1")
    ended = cli("bench", *TINY, "bench=engine", *(f"engine.{key}" for key in keys), "run.dir=run")
    assert ended.code == 0, ended.err
    content, (row,) = results(tmp_path / "run")
    assert content["bench"] == "engine"
    for name in ("switch_over_copy", "copy_gb_s", "switch_gb_s", "decode_tokens_s_b8"):
        assert row[name] > 0
    assert {"decode_over_generate_b1", "decode_over_generate_b8"} <= set(row)
    refused = cli("bench", *TINY, "bench=engine", "engine.model=tny", "run.dir=other")
    assert refused.code == 2
    assert "tiny" in refused.err
