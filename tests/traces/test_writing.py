"""`write`: what is written reads back the same, whole or not at all."""

from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from traces import Trace, TraceError, TraceKind, read, write

FORMATS = ("parquet", "csv", "jsonl")
METADATA = ("name", "kind", "licence")


def columns_of(trace: Trace) -> dict[str, object]:
    """Everything but metadata, as plain lists."""
    values = {f.name: getattr(trace, f.name) for f in fields(Trace)}
    for name in (*METADATA, "lineage"):
        del values[name]
    blocks = values.pop("prefix_blocks")
    lists = None if blocks is None else blocks.to_arrow().to_pylist()
    plain = {k: v.tolist() if isinstance(v, np.ndarray) else v for k, v in values.items()}
    return plain | {"prefix_blocks": lists}


def block_tokens(trace: Trace) -> int | None:
    return None if trace.prefix_blocks is None else trace.prefix_blocks.block_tokens


@given(trace=st.from_type(Trace))
@pytest.mark.parametrize("kind", FORMATS)
@settings(max_examples=60, deadline=None)
def test_write_then_read_gives_every_column_back(
    tmp_path_factory: pytest.TempPathFactory, kind: str, trace: Trace
) -> None:
    path = tmp_path_factory.getbasetemp() / f"round.{kind}"
    write(trace, path)
    again = read(path)
    assert columns_of(again) == columns_of(trace)
    assert again.sha256 == trace.sha256


@given(trace=st.from_type(Trace))
@settings(max_examples=60, deadline=None)
def test_write_keeps_the_metadata_in_parquet(
    tmp_path_factory: pytest.TempPathFactory, trace: Trace
) -> None:
    path = tmp_path_factory.getbasetemp() / "meta.parquet"
    write(trace, path)
    again = read(path)
    assert [getattr(again, f) for f in METADATA] == [getattr(trace, f) for f in METADATA]
    assert again.lineage == (*trace.lineage, "read meta.parquet")
    assert block_tokens(again) == block_tokens(trace)


@pytest.fixture
def trace() -> Trace:
    one = np.ones(1, np.int32)
    return Trace(
        name="t",
        kind=TraceKind.LOG,
        models=("a",),
        model=one - 1,
        arrival_s=np.zeros(1),
        prompt_tokens=one,
        output_tokens=one,
    )


def test_write_takes_an_ending_in_capitals(tmp_path: Path, trace: Trace) -> None:
    write(trace, tmp_path / "T.CSV")
    assert read(tmp_path / "T.CSV").sha256 == trace.sha256


@pytest.mark.parametrize("kind", FORMATS)
def test_write_replaces_an_older_file_at_once(tmp_path: Path, trace: Trace, kind: str) -> None:
    path = tmp_path / f"t.{kind}"
    path.write_text("old")
    with path.open() as reader:
        write(trace, path)
        assert reader.read() == "old"
    assert read(path).requests == 1
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("t.json", "t.json: cannot write '.json'; did you mean '.jsonl'? known: .csv, .jsonl"),
        ("no/t.csv", "no/t.csv: cannot be written: "),
        ("no/t.parquet", "no/t.parquet: cannot be written: "),
        ("no/t.jsonl", "no/t.jsonl: cannot be written: No such file or directory"),
    ],
)
def test_write_refuses_in_one_line_and_leaves_nothing(
    tmp_path: Path, trace: Trace, name: str, expected: str
) -> None:
    with pytest.raises(TraceError) as caught:
        write(trace, tmp_path / name)
    assert str(caught.value).startswith(f"{tmp_path}/{expected}")
    assert str(caught.value).isprintable()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", FORMATS)
def test_write_leaves_nothing_half_written(tmp_path: Path, trace: Trace, kind: str) -> None:
    (tmp_path / f"t.{kind}").mkdir()  # the last step, the rename, fails
    with pytest.raises(TraceError, match="cannot be written: Is a directory"):
        write(trace, tmp_path / f"t.{kind}")
    assert list(tmp_path.iterdir()) == [tmp_path / f"t.{kind}"]
