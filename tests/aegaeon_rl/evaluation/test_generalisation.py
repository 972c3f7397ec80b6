"""The matrix: every policy on every workload, paired with the baseline; what it leaves."""

import json
from pathlib import Path

import pytest

from aegaeon_rl.evaluation.generalisation import heat_map, main
from traces.market import MarketSpec, generate
from traces.writing import write


@pytest.fixture
def market(tmp_path: Path) -> Path:
    spec = MarketSpec(name="small", models=24, duration_s=300.0, rate_rps=12.0, seed=5)
    write(generate(spec), tmp_path / "market.parquet")
    return tmp_path / "market.parquet"


def test_each_policy_meets_the_baseline_on_each_workload(market: Path, tmp_path: Path) -> None:
    on = [f"{market}:h100x4:1", f"{market}:h100x8:2.5"]
    arguments = ["--policies", "fcfs", "least_slack", "--on", *on, "--window-s", "20"]
    assert main([str(tmp_path / "m"), *arguments, "--warm-s", "2", "--windows", "3"]) == 0
    content = json.loads((tmp_path / "m" / "summary.json").read_text())
    rows = content["results"]
    assert (content["verb"], content["trace"]) == ("generalisation", None)
    assert [(row["workload"], row["policy"]) for row in rows] == [
        (workload, policy)
        for workload in ("market:h100x4:1", "market:h100x8:2.5")
        for policy in ("fcfs", "least_slack")
    ]
    for row in rows:
        assert row["diff"] == pytest.approx(row["token_attainment"] - row["baseline_attainment"])
        assert row["ci_low"] <= row["diff"] <= row["ci_high"]
    assert (tmp_path / "m" / "matrix.svg").read_text().startswith("<svg")


def test_heat_map_puts_each_difference_in_its_place() -> None:
    rows = [
        {"workload": w, "policy": p, "baseline": "index", "diff": d}
        for w, p, d in (("a", "x", 0.011), ("a", "y", -0.022), ("b", "x", 0.033), ("b", "y", 0.0))
    ]
    drawn = heat_map(rows)
    assert all(text in drawn for text in ("+1.10", "-2.20", "+3.30", "+0.00", "against index"))


@pytest.mark.parametrize(
    ("on", "message"),
    [
        ("market.parquet:h100x4:fast", "expected TRACE:POOL:LOAD"),
        ("market.parquet:h100x4:-1", "load -1: expected more than 0"),
        ("market.parquet:h100x5:1", "h100x4"),
    ],
)
def test_a_workload_that_is_none_is_one_line(
    market: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], on: str, message: str
) -> None:
    path = str(market.parent / on)
    assert main([str(tmp_path / "m"), "--policies", "fcfs", "--on", path]) == 2
    told = capsys.readouterr().err
    assert message in told
    assert len(told.splitlines()) == 1
    assert not (tmp_path / "m").exists()
