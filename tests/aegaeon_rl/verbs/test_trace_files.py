"""`trace action=import` of files of any bytes: a trace, or one line, exit code 2 and no file."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from traces import read

ROW = {"created": 1755640777, "model": "m", "usage": {"prompt_tokens": 3, "completion_tokens": 4}}
AZURE = "TIMESTAMP,ContextTokens,GeneratedTokens\n"
BAD = {
    "nothing.csv": b"",
    "noise.parquet": bytes(range(256)) * 4,
    "cut.parquet": b"PAR1\x15\x04\x15\x00",
    "noise.csv": bytes(range(256)),
    "noise.jsonl": bytes(range(256)),
    "noise.log": bytes(range(256)),
    "late.csv": (AZURE + "2024-05-10,1,2\n" * 3000 + "2024-05-10,1,x\n").encode(),
    "mixed.csv": (AZURE + "2024-05-10,1,2\n2024-05-10T00:00:00Z,1,2\n").encode(),
    "latin.csv": (AZURE + "2024-05-10,1,2\n2024-05-10,\xe9,2\n").encode("latin-1"),
    "wide.csv": (AZURE + "2024-05-10,1,2,3\n").encode(),
    "list.jsonl": b"[1]\n",
    "negative.jsonl": json.dumps(ROW | {"created": -5}).encode(),
    "model.jsonl": json.dumps(ROW | {"model": 7}).encode(),
    "nested.jsonl": json.dumps(
        ROW | {"usage": {"prompt_tokens": {}, "completion_tokens": 1}}
    ).encode(),
    "unknown.jsonl": b'{"a": 1}\n',
}


@pytest.mark.parametrize("name", BAD)
def test_import_of_a_bad_file_is_one_line_and_leaves_nothing(
    cli: Callable[..., Any], tmp_path: Path, name: str
) -> None:
    (tmp_path / name).write_bytes(BAD[name])
    ended = cli("trace", "action=import", f"trace.path={name}", "out=made/x.parquet", "run.dir=run")
    assert ended.code == 2, ended.err
    assert ended.err.startswith(f"aegaeon-rl trace: {name}: ")
    assert len(ended.err.splitlines()) == 1
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_import_of_a_gateways_log_takes_map_and_zone(
    cli: Callable[..., Any], tmp_path: Path
) -> None:
    rows = [ROW | {"at": f"2025-03-30 0{h}:00:00", "team": f"t{h}"} for h in (3, 1)]
    (tmp_path / "log.jsonl").write_text("\n".join(map(json.dumps, rows)))
    keys = ("arrival_s=at", "timezone=Europe/Berlin", "client=team")
    named = [f"trace.map.{key}" for key in keys]
    ended = cli("trace", "action=import", "trace.path=log.jsonl", *named, "out=x.parquet")
    assert ended.code == 0, ended.err
    trace = read(tmp_path / "x.parquet")
    assert trace.arrival_s.tolist() == [0, 3600]
    assert trace.client is not None
    assert trace.client.tolist() == ["t1", "t3"]
    assert "starts at 2025-03-30T00:00:00Z" in trace.lineage


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("trace.map.unit=hours", "trace.map.unit='hours': "),
        ("trace.map.modle=m", "trace.map.modle: unknown key; did you mean 'trace.map.model'"),
        ("trace.format=azur", "trace.format=azur: did you mean 'azure'?"),
        ("trace.map.timezone=Mars", "trace.map.timezone=Mars: expected a name like Europe/Berlin"),
        ("trace.map.model=m", "log.csv: trace.map.model=m: no such column"),
    ],
)
def test_wrong_map_is_named(
    cli: Callable[..., Any], tmp_path: Path, argument: str, message: str
) -> None:
    (tmp_path / "log.csv").write_text(AZURE + "2024-05-10,1,2\n")
    ended = cli("trace", "trace.path=log.csv", argument)
    assert (ended.code, len(ended.err.splitlines())) == (2, 1)
    assert message in ended.err
