"""`tune` end to end: what it leaves, what it refuses, and how it resumes."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from aegaeon_rl.policies.registry import make_policy

Cli = Callable[..., Any]
TINY = (
    "pool=h100x4",
    "pool.instances_per_node=2",
    "tune.policies_at_once=4",
    "tune.trials=8",
    "tune.steady=[24x0.1]",
    "tune.steady_s=100",
    "tune.warm_s=20",
)


@pytest.mark.parametrize("kind", ["index", "aegaeon_tuned"])
def test_run_leaves_a_policy_with_its_provenance(kind: str, cli: Cli, tmp_path: Path) -> None:
    ended = cli("tune", *TINY, f"policy={kind}", "run.dir=run")
    assert ended.code == 0, ended.err
    run = tmp_path / "run"
    content = json.loads((run / "summary.json").read_text())
    assert (content["verb"], content["trials"]) == ("tune", 8)
    assert [row["policy"] for row in content["results"]] == ["start", "tuned"]
    stated = json.loads((run / "policy.json").read_text())["provenance"]
    assert stated["cells"] == ["h100x4 24x0.1 seed 1000"]
    assert stated["objective_after"] >= stated["objective_before"]
    assert {row["cell"] for row in stated["validation"]} == {"h100x4 24x0.1 seed 2000"}
    assert stated["trials"] == 8
    assert pq.read_table(run / "results.parquet").num_rows == 9
    assert "Held-out workloads" in (run / "report.html").read_text()
    assert make_policy(str(run / "policy.json")).name.endswith("policy.json")


def test_a_resumed_run_is_the_uninterrupted_one(cli: Cli, tmp_path: Path) -> None:
    assert cli("tune", *TINY, "run.dir=whole").code == 0
    assert cli("tune", *TINY, "tune.trials=4", "run.dir=part").code == 0
    ended = cli("tune", *TINY, "run.dir=part", "resume=true")
    assert ended.code == 0, ended.err
    whole, part = (
        json.loads((tmp_path / name / "policy.json").read_text())["parameters"]
        for name in ("whole", "part")
    )
    assert whole == part


def test_windows_of_a_trace_are_cells(cli: Cli, tmp_path: Path) -> None:
    keys = ("tune.workload=trace", "evaluate.windows=2", "evaluate.loads=[1.0]")
    windows = ("evaluate.window_s=60", "evaluate.warm_s=5", "tune.trials=4")
    ended = cli("tune", *TINY, *keys, *windows, "run.dir=run")
    assert ended.code == 0, ended.err
    content = json.loads((tmp_path / "run" / "policy.json").read_text())
    assert len(content["provenance"]["cells"]) == 2


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        (["policy=fcfs"], "policy=fcfs: "),
        (["tune.steady=[24]"], "tune.steady: '24': expected MODELSxRATE"),
        (["tune.pools=[h100]"], "tune.pools=h100: "),
        (["tune.start=nowhere.json"], "nowhere.json: not a policy: No such file"),
        (["resume=true", "run.dir=run"], "resume=true: no results.parquet in run.dir=run"),
    ],
)
def test_a_users_mistake_is_one_line(keys: list[str], said: str, cli: Cli, tmp_path: Path) -> None:
    ended = cli("tune", *TINY, *keys)
    assert ended.code == 2
    assert said in ended.err
    assert ended.err.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_a_run_is_not_overwritten_nor_resumed_as_another(cli: Cli) -> None:
    assert cli("tune", *TINY, "tune.trials=4", "run.dir=run").code == 0
    again = cli("tune", *TINY, "tune.trials=4", "run.dir=run")
    assert "run.dir=run holds a tuning run: resume=true, or another run.dir" in again.err
    other = cli("tune", *TINY, "tune.sigma=0.1", "run.dir=run", "resume=true")
    assert (other.code, "tune.sigma differ" in other.err) == (2, True)
