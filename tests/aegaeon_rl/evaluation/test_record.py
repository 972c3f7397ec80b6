"""The run folder: contract keys, JSON without NaN, files that appear whole or not at all."""

import json
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from aegaeon_rl.evaluation import record
from aegaeon_rl.evaluation.record import (
    open_folder,
    summary,
    write_rows,
    write_summary,
    write_text,
    written_aside,
)
from runtime.core import ModelSlo, PoolSpec, SloSpec
from runtime.errors import UserError
from traces import Trace

KEYS = {"schema", "verb", "seed", "commit", "trace", "pool", "slo", "profile", "results"}


def strict_json(text: str) -> Any:
    """JSON as the standard has it, without NaN and Infinity."""

    def refuse(token: str) -> None:
        raise ValueError(token)

    return json.loads(text, parse_constant=refuse)


def test_summary_has_every_key_of_the_contract(
    tmp_path: Path, market: Trace, pool: PoolSpec
) -> None:
    rows = [{"policy": "index", "token_attainment": np.float64(0.5), "ttft_p99_s": float("inf")}]
    write_summary(tmp_path / "summary.json", summary("evaluate", 3, market, pool, SloSpec(), rows))
    content = strict_json((tmp_path / "summary.json").read_text())
    assert set(content) == KEYS
    assert (content["schema"], content["verb"], content["seed"]) == (record.SCHEMA, "evaluate", 3)
    facts = content["trace"]
    assert facts["sha256"] == market.sha256
    assert (facts["name"], facts["kind"]) == ("market", "synthetic")
    assert (facts["requests"], facts["models"]) == (market.requests, len(market.models))
    assert [content["pool"][key] for key in ("name", "gpus", "tp")] == ["pair", 2, 1]
    assert content["slo"] == {"ttft_s": 10.0, "tbt_s": 0.1}
    assert (content["profile"]["name"], content["profile"]["kind"]) == ("h100", "derived")
    assert content["results"] == [{"policy": "index", "token_attainment": 0.5, "ttft_p99_s": None}]


def test_summary_states_the_slo_of_models_with_their_own(market: Trace, pool: PoolSpec) -> None:
    slo = SloSpec(models={"a": ModelSlo(ttft_s=1.0)})
    assert summary("evaluate", 0, market, pool, slo, [])["slo"] == {
        "ttft_s": 10.0, "tbt_s": 0.1, "models": {"a": {"ttft_s": 1.0, "tbt_s": 0.1}},
    }  # fmt: skip


def test_summary_of_a_verb_without_a_pool_keeps_the_keys() -> None:
    content = summary("bench", 0, None, None, None, [])
    assert set(content) == KEYS
    assert [content[key] for key in ("trace", "pool", "slo", "profile")] == [None] * 4


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), np.float64("nan")])
def test_json_holds_no_token_that_is_not_json(tmp_path: Path, value: float) -> None:
    path = tmp_path / "summary.json"
    write_summary(path, {"a": [value, (value, 1.5)], "b": {"c": value}, "d": "NaN", "e": True})
    assert strict_json(path.read_text()) == {
        "a": [None, [None, 1.5]], "b": {"c": None}, "d": "NaN", "e": True,
    }  # fmt: skip


@pytest.mark.parametrize("existing", [None, "before"])
def test_a_failed_write_leaves_what_was_there(tmp_path: Path, existing: str | None) -> None:
    path = tmp_path / "file.txt"
    if existing:
        path.write_text(existing)

    def fail() -> None:
        with written_aside(path) as aside:
            aside.write_text("half of the te")
            raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        fail()
    assert [p.name for p in tmp_path.iterdir()] == ([path.name] if existing else [])
    assert not existing or path.read_text() == existing


def test_rows_that_are_no_table_leave_no_file(tmp_path: Path) -> None:
    with pytest.raises(Exception, match=r"[Cc]ould not convert"):
        write_rows(tmp_path / "rows.parquet", [{"a": 1}, {"a": object()}])
    assert list(tmp_path.iterdir()) == []


def test_a_file_is_never_seen_half_written(tmp_path: Path) -> None:
    path = tmp_path / "file.txt"
    write_text(path, "before")
    with written_aside(path) as aside:
        aside.write_text("after, in part")
        assert path.read_text() == "before"
        aside.write_text("after")
    assert path.read_text() == "after"


def test_text_of_a_name_that_is_not_utf8_is_escaped(tmp_path: Path) -> None:
    write_text(tmp_path / "f", "trace caf\udce9 \u00e9")
    assert (tmp_path / "f").read_text(encoding="utf-8") == "trace caf\\udce9 \u00e9"


def test_rows_come_back_from_parquet(tmp_path: Path) -> None:
    rows = [
        {"policy": "a", "diff": None, "x": 1.5},
        {"policy": "b", "diff": 0.5, "x": float("inf")},
    ]
    write_rows(tmp_path / "rows.parquet", rows)
    assert pq.read_table(tmp_path / "rows.parquet").to_pylist() == rows


def test_open_folder_makes_it_and_leaves_nothing_in_it(tmp_path: Path) -> None:
    folder = open_folder(tmp_path / "a" / "b")
    assert folder.is_dir()
    assert open_folder(folder) == folder
    assert list(folder.iterdir()) == []


def test_open_folder_names_what_is_in_the_way(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for path in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(UserError, match=r"^run\.dir=.*: expected a folder to write$"):
            open_folder(path)
        with pytest.raises(UserError, match=r"^out=.*: expected a folder to write$"):
            open_folder(path, "out")


@pytest.fixture
def git(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """What git answers, by its first argument; nothing: it fails."""
    answers: dict[str, str] = {}

    def run(command: list[str], **_: Any) -> Any:
        if command[1] not in answers:
            raise subprocess.CalledProcessError(128, command)
        return subprocess.CompletedProcess(command, 0, stdout=answers[command[1]].encode())

    monkeypatch.setattr(record.subprocess, "run", run)
    return answers


def test_commit_says_where_the_code_is_not_committed(git: dict[str, str]) -> None:
    git.update({"status": "", "rev-parse": "abc123\n"})
    assert record.commit() == "abc123"
    git["status"] = " M file.py\n"
    assert record.commit() == "abc123-dirty"
    git.clear()
    assert record.commit().startswith("version ")
