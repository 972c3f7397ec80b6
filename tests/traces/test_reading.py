"""`read`: every bad file is one line that names file, row, column and value."""

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from traces import Trace, TraceError, TraceKind, read

FORMATS = ("parquet", "csv", "jsonl")
GOOD = {
    "arrival_s": [0.0, 1.5, 2.0],
    "model": ["b", "a", "b"],
    "prompt_tokens": [5, 6, 7],
    "output_tokens": [1, 2, 3],
}
Save = Callable[[str, bytes | str], Path]
Columns = dict[str, list[Any]]


def stored(
    folder: Path, kind: str, columns: Columns, metadata: dict[str, str] | None = None
) -> Path:
    """The columns as a file of this kind, written without the package under test."""
    path = folder / f"t.{kind}"
    rows = list(zip(*columns.values(), strict=True))
    if kind == "parquet":
        pq.write_table(pa.table(columns).replace_schema_metadata(metadata), path)
    elif kind == "csv":
        cells = [["" if value is None else str(value) for value in row] for row in rows]
        path.write_text("\n".join(",".join(line) for line in [list(columns), *cells]))
    else:
        path.write_text("\n".join(json.dumps(dict(zip(columns, row, strict=True))) for row in rows))
    return path


def refusal(path: Path, where: str | None = None) -> str:
    """The message that `read` refuses the file with."""
    with pytest.raises(TraceError) as caught:
        read(path, where)
    message = str(caught.value)
    assert message.isprintable()
    return message


@pytest.mark.parametrize("kind", FORMATS)
def test_read_gives_columns_and_models_in_order_of_appearance(tmp_path: Path, kind: str) -> None:
    more = {"session": ["x", None, "y"], "client": [None, None, "c"], "priority": [-128, 0, 127]}
    trace = read(stored(tmp_path, kind, GOOD | more))
    assert trace.models == ("b", "a")
    assert trace.model.tolist() == [0, 1, 0]
    assert trace.arrival_s.tolist() == GOOD["arrival_s"]
    assert trace.prompt_tokens.tolist() == GOOD["prompt_tokens"]
    assert trace.output_tokens.tolist() == GOOD["output_tokens"]
    assert trace.session is not None
    assert trace.session.tolist() == more["session"]
    assert trace.client is not None
    assert trace.client.tolist() == more["client"]
    assert trace.priority is not None
    assert trace.priority.tolist() == more["priority"]
    assert (trace.name, trace.kind, trace.lineage) == ("t", TraceKind.LOG, (f"read t.{kind}",))


BAD_VALUES: list[tuple[Columns, str]] = [
    ({"arrival_s": [0.0, 1.0, 1.7e9]}, "row 3, column arrival_s is 1700000000: expected a time si"),
    (
        {"arrival_s": [1.7e9, 0.0, 1.7e9]},
        "row 2, column arrival_s is 0: expected a time after",
    ),
    ({"arrival_s": [0.0, -1.0, 2.0]}, "row 2, column arrival_s is -1: expected a number"),
    ({"arrival_s": [0.0, 1.0, float("nan")]}, "row 3, column arrival_s is nan: expected a number"),
    ({"arrival_s": [0.0, 1.0, float("inf")]}, "row 3, column arrival_s is inf: expected a number"),
    ({"arrival_s": [0.0, 1.0, 4.1e9]}, "row 3, column arrival_s is 4100000000: expected a number"),
    ({"arrival_s": [None, 1.0, 2.0]}, "row 1, column arrival_s is empty: expected a value"),
    ({"model": ["a", None, "b"]}, "row 2, column model is empty: expected"),
    ({"model": ["a", "b", ""]}, "row 3, column model is empty: expected"),
    ({"prompt_tokens": [1, 0, 1]}, "row 2, column prompt_tokens is 0: expected a whole number"),
    ({"output_tokens": [1, 2, -3]}, "row 3, column output_tokens is -3: expected a whole number"),
    ({"output_tokens": [1.0, 2.5, 3.0]}, "row 2, column output_tokens is 2.5: expected a whole"),
    ({"prompt_tokens": [2**31, 2, 3]}, "row 1, column prompt_tokens is 2147483648: expected a wh"),
    ({"prompt_tokens": [1, None, 3]}, "row 2, column prompt_tokens is empty: expected a value"),
    ({"output_tokens": [1.0, float("nan"), 1.0]}, "row 2, column output_tokens is nan: expected"),
    ({"prompt_tokens": ["six", "7", "8"]}, "row 1, column prompt_tokens is 'six': expected a num"),
    ({"priority": [0, 128, 0]}, "row 2, column priority is 128: expected a whole number from -128"),
    ({"priority": [0, 0, -129]}, "row 3, column priority is -129: expected a whole number from"),
    ({"priority": [0.5, 0.0, 0.0]}, "row 1, column priority is 0.5: expected a whole number"),
    ({"priority": ["high", "low", "low"]}, "row 1, column priority is 'high': expected a number"),
]


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize(("columns", "expected"), BAD_VALUES)
def test_read_names_file_row_column_and_value(
    tmp_path: Path, kind: str, columns: Columns, expected: str
) -> None:
    path = stored(tmp_path, kind, GOOD | columns)
    assert refusal(path).startswith(f"{path}: {expected}")


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("column", GOOD)
def test_read_names_a_missing_column_and_the_nearest(
    tmp_path: Path, kind: str, column: str
) -> None:
    columns = {f"{name}s" if name == column else name: values for name, values in GOOD.items()}
    path = stored(tmp_path, kind, columns)
    assert refusal(path).startswith(
        f"{path}: no column for {column}; found: {', '.join(columns)};"
        f" name them, as trace.map.{column}={column}s"
    )


@pytest.mark.parametrize("kind", FORMATS)
def test_read_refuses_a_file_without_requests(tmp_path: Path, kind: str) -> None:
    path = stored(tmp_path, kind, {name: [] for name in GOOD})
    assert refusal(path).startswith(f"{path}: no requests: expected at least one row")


@pytest.mark.parametrize("kind", FORMATS)
def test_read_refuses_a_file_of_no_bytes(save: Save, kind: str) -> None:
    path = save(f"t.{kind}", b"")
    expected = "not a readable Parquet file" if kind == "parquet" else "no requests: expected at"
    assert refusal(path).startswith(f"{path}: {expected}")


@pytest.mark.parametrize("kept", [1, 8, 100, -1])
def test_read_refuses_a_truncated_parquet_file(tmp_path: Path, kept: int) -> None:
    path = stored(tmp_path, "parquet", GOOD)
    path.write_bytes(path.read_bytes()[:kept])
    assert refusal(path).startswith(f"{path}: not a readable Parquet file: ")


@pytest.mark.parametrize(
    ("kind", "lost", "expected"),
    [
        ("csv", 4, "row 3 has 2 values: '2.0,b': expected 4, one per column"),
        ("jsonl", 4, 'row 3 is \'{"arrival_s": 2.0, '),
    ],
)
def test_read_names_the_row_where_a_text_file_is_truncated(
    tmp_path: Path, kind: str, lost: int, expected: str
) -> None:
    path = stored(tmp_path, kind, GOOD)
    path.write_bytes(path.read_bytes()[:-lost])
    assert expected in refusal(path)


HEADER = ",".join(GOOD) + "\n"
ROW = '{"arrival_s": 0, "model": "a", "prompt_tokens": 1, "output_tokens": 1}'
BAD_TEXTS = [
    ("t.csv", HEADER + "0,a,1\n", "row 1 has 3 values: '0,a,1': expected 4"),
    ("t.csv", HEADER + "0,a,1,1,1\n", "row 1 has 5 values: '0,a,1,1,1': expected 4"),
    ("t.csv", HEADER + "0,a,1,1\n\n\n1,a,0,1\n", "row 2, column prompt_tokens is 0"),
    ("t.csv", HEADER + '0,"a\nb",1,1\n1,a,true,1\n', "row 2, column prompt_tokens is 'true'"),
    ("t.csv", HEADER + "today,a,1,1\n", "row 1, column arrival_s is 'today': expected a number"),
    ("t.csv", HEADER.encode() + b"0,a,1,1\n1,caf\xe9,1,1\n", "row 2, column model is b'\\xe9'"),
    ("t.csv", HEADER.encode() + b"\xe9,a,1,1\n", "row 1, column arrival_s is b'\\xe9'"),
    (
        "t.csv",
        HEADER.encode() + b'\n0,",,\xe9",1,1',
        "row 1, column model is b'\\xe9': expected UTF",
    ),
    ("t.csv", b"arrival_s,mod\xe9\n0,a\n", "the header has b'\\xe9': expected UTF-8 text"),
    ("t.csv", HEADER.encode("utf-16"), "the header has b'\\xff': expected UTF-8 text"),
    ("t.csv", "model," + HEADER + "a,0,a,1,1\n", "column 'model' is there 2 times"),
    ("t.jsonl", ROW + "\nnull\n", "row 2 is 'null': expected a JSON object"),
    ("t.jsonl", ROW + "\n\n[1]\n", "row 2 is '[1]': expected a JSON object"),
    ("t.jsonl", ROW + "\nrubbish\n", "row 2 is 'rubbish': Expecting value"),
    ("t.jsonl", ROW.encode() + b'\n{"model": "caf\xe9"}', "row 2, column model is 'caf\\udce9'"),
    ("t.jsonl", b'{"mod\xe9": 1}', "row 1, column mod\\udce9 is 1: expected UTF-8 text"),
    ("t.jsonl", ROW.replace('"a"', '"\\ud800"'), "row 1, column model is '\\ud800'"),
    ("t.jsonl", ROW.replace('"a"', "7"), "row 1, column model is 7: expected text"),
    ("t.jsonl", ROW.replace('"a"', '["a"]'), "row 1, column model is ['a']: expected text"),
    ("t.jsonl", ROW + "\n" + ROW.replace("0,", "true,"), "row 2, column arrival_s is True"),
    ("t.jsonl", ROW.replace("1}", "1" + "0" * 400 + "}"), "row 1, column output_tokens is inf"),
    ("t.jsonl", "[" * 200_000, "row 1 is '[[["),
    ("t.parquet", "PAR1 not at all PAR1", "not a readable Parquet file"),
    (
        "t.json",
        "{}",
        "unknown format '.json'; did you mean '.jsonl'? known: .csv, .jsonl, .log, .parquet",
    ),
    ("trace", "", "unknown format ''; known: .csv, .jsonl, .log, .parquet"),
    (
        "two\nlines.csv",
        "x\n1\n",
        "two\\nlines.csv: no column for arrival_s, model, prompt_tokens, output_tokens; found: x",
    ),
]


@pytest.mark.parametrize(("name", "data", "expected"), BAD_TEXTS)
def test_read_names_what_does_not_parse(
    save: Save, name: str, data: bytes | str, expected: str
) -> None:
    assert expected in refusal(save(name, data))


WRONG_TYPES = [
    (
        {"model": pa.array([b"a", b"b", b"a"])},
        "row 1, column model is b'a': expected text, not bin",
    ),
    ({"model": pa.array([1, 2, 1])}, "row 1, column model is 1: expected text, not int64"),
    (
        {"arrival_s": pa.array([True, False, True])},
        "row 1, column arrival_s is True: expected a num",
    ),
    (
        {"arrival_s": pa.array([None, 0, 1], pa.timestamp("s"))},
        "row 1, column arrival_s is empty: expected a value",
    ),
    ({"output_tokens": pa.array(["1"] * 3)}, "row 1, column output_tokens is '1': expected a num"),
    (
        {"session": pa.array([None, [1], [2]])},
        "row 2, column session is [1]: expected text, not li",
    ),
    ({"priority": pa.array([[0]] * 3)}, "row 1, column priority is [0]: expected a number, not li"),
]


@pytest.mark.parametrize(("columns", "expected"), WRONG_TYPES)
def test_read_names_a_wrong_type_by_its_first_value(
    tmp_path: Path, columns: Columns, expected: str
) -> None:
    path = stored(tmp_path, "parquet", GOOD | columns)
    assert refusal(path).startswith(f"{path}: {expected}")


BLOCKS = [
    (
        "csv",
        ["7 8", "9 x", ""],
        "row 2, column prefix_blocks is 'x': expected a list of whole numb",
    ),
    ("csv", ["7", "9", "1.5"], "row 3, column prefix_blocks is '1.5': expected a list of whole"),
    ("csv", ["7  8", "9", "1"], "row 1, column prefix_blocks is empty: expected a list of whole"),
    ("jsonl", [[7], [8, None], []], "row 2, column prefix_blocks is [8, None]: expected a list of"),
    ("jsonl", [[7], [8], ["a"]], "row 3, column prefix_blocks is ['a']: expected a list of whole"),
    ("jsonl", [[7], 8, []], "row 2, column prefix_blocks is 8: expected a list of whole numbers"),
    ("parquet", [[7], [8, None], [9]], "row 2, column prefix_blocks is empty: expected a list"),
    (
        "parquet",
        [[7.0], [8.5], [9.0]],
        "row 1, column prefix_blocks is 7: expected a list of whole",
    ),
    (
        "parquet",
        [7, 8, 9],
        "row 1, column prefix_blocks is 7: expected a list of numbers, not int64",
    ),
]


@pytest.mark.parametrize(("kind", "blocks", "expected"), BLOCKS)
def test_read_names_the_row_of_a_bad_list(
    tmp_path: Path, kind: str, blocks: list[Any], expected: str
) -> None:
    path = stored(tmp_path, kind, GOOD | {"prefix_blocks": blocks})
    assert refusal(path).startswith(f"{path}: {expected}")


def test_read_names_parquet_text_that_is_not_utf8(tmp_path: Path) -> None:
    latin = pa.Array.from_buffers(pa.string(), 3, pa.array([b"a", b"\xe9", b"a"]).buffers())
    path = stored(tmp_path, "parquet", GOOD | {"model": latin})
    assert refusal(path) == f"{path}: row 2, column model is b'\\xe9': expected UTF-8 text"


def test_read_refuses_a_parquet_column_that_is_there_twice(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    pq.write_table(pa.Table.from_arrays([pa.array([0])] * 5, names=[*GOOD, "model"]), path)
    assert refusal(path) == f"{path}: column 'model' is there 2 times"


def test_read_refuses_a_folder_and_a_missing_file(tmp_path: Path) -> None:
    assert refusal(tmp_path) == f"{tmp_path}: a folder: expected a file"
    assert refusal(tmp_path / "no.csv") == f"{tmp_path / 'no.csv'}: no such file"


def test_read_refuses_an_unknown_kind_in_the_metadata(tmp_path: Path) -> None:
    path = stored(tmp_path, "parquet", GOOD, {"kind": "l\nogs"})
    assert refusal(path).startswith(f"{path}: metadata kind is 'l\\nogs'; did you mean 'log'?")


@pytest.mark.parametrize(
    ("metadata", "kind"),
    [
        ({}, TraceKind.LOG),
        ({"kind": "synthetic"}, TraceKind.SYNTHETIC),
        ({"note": "semi-synthetic: drawn from fits"}, TraceKind.SEMI_SYNTHETIC),
        ({"note": "about nothing"}, TraceKind.LOG),
    ],
)
def test_read_takes_the_kind_from_the_metadata(
    tmp_path: Path, metadata: dict[str, str], kind: TraceKind
) -> None:
    assert read(stored(tmp_path, "parquet", GOOD, metadata)).kind is kind


@pytest.mark.parametrize("lineage", ["once upon a time", "3", "[" * 200_000])
def test_read_keeps_a_lineage_that_is_no_json_list_as_one_step(
    tmp_path: Path, lineage: str
) -> None:
    path = stored(tmp_path, "parquet", GOOD, {"lineage": lineage})
    assert read(path).lineage == (lineage, "read t.parquet")


@pytest.mark.parametrize(
    "model",
    [
        pa.array(["b", "a", "b"], pa.large_string()),
        pa.array(["b", "a", "b"]).dictionary_encode(),
        pa.chunked_array([["b"], ["a", "b"]]),
    ],
)
def test_read_takes_every_arrow_text(tmp_path: Path, model: Any) -> None:
    plain = read(stored(tmp_path, "parquet", GOOD))
    assert read(stored(tmp_path, "parquet", GOOD | {"model": model})).sha256 == plain.sha256


def test_read_takes_names_that_look_like_other_types(save: Save) -> None:
    names = ["7", "007", "2024-01-01", "null", "NaN", "true"]
    csv = HEADER + "".join(f"{i},{name},1,1\n" for i, name in enumerate(names))
    jsonl = "\n".join(ROW.replace('"a"', json.dumps(name)) for name in names)
    assert read(save("t.csv", csv)).models == tuple(names)
    assert read(save("t.jsonl", jsonl)).models == tuple(names)


@pytest.mark.parametrize("name", ["t.csv", "t.jsonl"])
def test_read_skips_a_byte_order_mark(save: Save, name: str) -> None:
    text = HEADER + "0,a,1,1\n" if name == "t.csv" else ROW
    assert read(save(name, b"\xef\xbb\xbf" + text.encode())).models == ("a",)


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_read_takes_compressed_texts(tmp_path: Path, kind: str) -> None:
    plain = stored(tmp_path, kind, GOOD)
    path = tmp_path / f"t.{kind}.gz"
    path.write_bytes(gzip.compress(plain.read_bytes()))
    trace = read(path)
    assert (trace.sha256, trace.name) == (read(plain).sha256, "t")
    path.write_bytes(path.read_bytes()[:-12])
    assert refusal(path).startswith(f"{path}: cannot be read: Compressed file ended before")
    path.write_bytes(plain.read_bytes())
    assert refusal(path).startswith(f"{path}: cannot be read: Not a gzipped file")
    path.write_bytes(gzip.compress(b"x" * 999)[:10] + b"\xff" * 50)
    assert refusal(path).startswith(f"{path}: cannot be read: Error -3 while decompressing")


def test_read_takes_rows_longer_than_arrows_default_block(save: Save) -> None:
    path = save("t.csv", HEADER + f"0,{'a' * 3_000_000},1,1\n1,b,1,1\n")
    assert read(path).requests == 2


def test_read_ignores_folder_names_that_look_like_partitions(tmp_path: Path) -> None:
    folder = tmp_path / "model=other"
    folder.mkdir()
    assert read(stored(folder, "parquet", GOOD)).models == ("b", "a")


@pytest.mark.parametrize("kind", FORMATS)
def test_read_takes_a_missing_priority_as_zero(tmp_path: Path, kind: str) -> None:
    some = read(stored(tmp_path, kind, GOOD | {"priority": [None, 4, None]}))
    none = read(stored(tmp_path, kind, GOOD | {"priority": [None, None, None]}))
    assert some.priority is not None
    assert some.priority.tolist() == [0, 4, 0]
    assert none.priority is not None
    assert none.priority.tolist() == [0, 0, 0]


@pytest.mark.parametrize("kind", FORMATS)
def test_read_takes_numbered_sessions_as_text(tmp_path: Path, kind: str) -> None:
    trace = read(stored(tmp_path, kind, GOOD | {"session": [12, 12, 7]}))
    assert trace.session is not None
    assert trace.session.tolist() == ["12", "12", "7"]


@pytest.mark.parametrize("kind", FORMATS)
def test_where_keeps_the_rows_with_the_value(tmp_path: Path, kind: str) -> None:
    path = stored(tmp_path, kind, GOOD | {"day": [1, 2, 1]})
    kept = read(path, "day=1")
    assert kept.arrival_s.tolist() == [0.0, 2.0]
    assert (kept.name, kept.models) == ("t[day=1]", ("b",))
    assert kept.lineage == (f"read t.{kind} where day=1",)


@pytest.mark.parametrize("kind", FORMATS)
def test_where_keeps_the_row_numbers_of_the_file(tmp_path: Path, kind: str) -> None:
    columns = GOOD | {"prompt_tokens": [1, 1, 0], "day": ["mon", "tue", "tue"]}
    message = refusal(stored(tmp_path, kind, columns), "day=tue")
    assert ": row 3, column prompt_tokens is 0: " in message


@pytest.mark.parametrize(
    ("where", "expected"),
    [
        ("day", "trace.where='day': expected column=value"),
        ("days=1", "no one column 'days'; did you mean 'day'?"),
        ("day=mo", "no row has day=mo; did you mean 'mon'? known: mon, tue"),
        ("list=1", "column list is list<element: int64>: expected text"),
    ],
)
def test_where_that_matches_nothing_names_the_choices(
    tmp_path: Path, where: str, expected: str
) -> None:
    columns = GOOD | {"day": ["mon", "tue", None], "list": [[1], [2], [3]]}
    assert expected in refusal(stored(tmp_path, "parquet", columns), where)


def outcome(path: Path) -> str | Trace:
    """The trace, or the one line that says why there is none; nothing else may come out."""
    try:
        return read(path)
    except TraceError as error:
        message = str(error)
        assert message.isprintable()
        assert message.startswith(str(path))
        return message


CELL = st.sampled_from(
    [
        "0",
        "1",
        "2.5",
        "-1",
        "a",
        "",
        "nan",
        "1e999",
        '"',
        "é",
        "[",
        "]",
        "{",
        "}",
        ":",
        "null",
        "\x00",
    ]
)
SOUP = st.lists(CELL | st.sampled_from([",", "\n", "\r", *GOOD, ROW + "\n", HEADER]), max_size=30)


@given(data=st.binary(max_size=200) | SOUP.map(lambda parts: "".join(parts).encode()))
@pytest.mark.parametrize("kind", FORMATS)
@settings(max_examples=150, deadline=None)
def test_read_of_any_bytes_is_a_trace_or_one_line(
    tmp_path_factory: pytest.TempPathFactory, kind: str, data: bytes
) -> None:
    path = tmp_path_factory.getbasetemp() / f"any.{kind}"
    for start in (b"", HEADER.encode(), ROW.encode() + b"\n"):
        path.write_bytes(start + data)
        assert outcome(path)


@given(flips=st.lists(st.tuples(st.integers(0, 10_000), st.integers(0, 255)), max_size=6))
@settings(max_examples=150, deadline=None)
def test_read_of_a_damaged_parquet_file_is_a_trace_or_one_line(
    tmp_path_factory: pytest.TempPathFactory, flips: list[tuple[int, int]]
) -> None:
    path = stored(tmp_path_factory.getbasetemp(), "parquet", GOOD | {"priority": [1, 2, 3]})
    data = bytearray(path.read_bytes())
    for place, value in flips:
        data[place % len(data)] = value
    path.write_bytes(data)
    assert outcome(path)


@pytest.mark.parametrize("kind", FORMATS)
def test_read_joins_the_chunks_of_a_long_file(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("traces.jsonl_table.ROWS", 100)
    monkeypatch.setattr("traces.parquet_table.CHUNK_ROWS", 100)
    monkeypatch.setattr("traces.csv_table.BLOCK_BYTES", 4000)
    n = 3000
    columns = {
        "arrival_s": [i / 8 for i in range(n)],
        "model": [f"m{i % 7 + i // 2000}" for i in range(n)],
        "prompt_tokens": [i % 1000 + 1 for i in range(n)],
        "output_tokens": [i % 9 + 1 for i in range(n)],
        "session": [str(i // 100) if i % 2 else None for i in range(n)],
    }
    path = stored(tmp_path, kind, columns)
    trace = read(path)
    assert trace.arrival_s.tolist() == columns["arrival_s"]
    assert [trace.models[m] for m in trace.model] == columns["model"]
    assert trace.prompt_tokens.tolist() == columns["prompt_tokens"]
    assert trace.session is not None
    assert trace.session.tolist() == columns["session"]
    columns["output_tokens"][-2] = 0
    assert f"row {n - 1}, column output_tokens is 0" in refusal(stored(tmp_path, kind, columns))
    columns["day"] = ["tue" if i == n - 2 else "mon" for i in range(n)]
    path = stored(tmp_path, kind, columns)
    assert f"row {n - 1}, column output_tokens is 0" in refusal(path, "day=tue")
    assert read(path, "day=mon").requests == n - 1
