"""`trace.map`: any table is a trace once its columns are named, its times in any unit or zone."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from traces import TraceError, UserError, read
from traces.mapping import NOTHING, OWN, ColumnMap, TimeUnit

Save = Callable[[str, bytes | str], Path]
NAMES = {"arrival_s": "when", "model": "m", "prompt_tokens": "p", "output_tokens": "o"}
MAP = ColumnMap(**NAMES)  # type: ignore[arg-type]


def mapped(**more: Any) -> ColumnMap:
    return ColumnMap(**(NAMES | more))


def csv(*times: Any) -> str:
    return "when,m,p,o\n" + "".join(f"{time},a,1,2\n" for time in times)


def parquet(path: Path, times: pa.Array) -> Path:
    n = len(times)
    pq.write_table(pa.table({"when": times, "m": ["a"] * n, "p": [1] * n, "o": [2] * n}), path)
    return path


TIMES: list[tuple[list[Any], list[float], dict[str, Any]]] = [
    ([5, 6.5, 8], [0, 1.5, 3], {}),
    ([5, 6.5, 8], [0, 0.0015, 0.003], {"unit": TimeUnit.MS}),
    ([1755604800, 1755604801.25], [0, 1.25], {}),
    ([1755604800000, 1755604801250], [0, 1.25], {}),
    ([1755604800000000, 1755604801250000], [0, 1.25], {}),
    ([1755604800000000000, 1755604801250000000], [0, 1.25], {}),
    ([2 * 10**14, 2 * 10**14 + 10**6], [0, 1], {}),
    ([1000, 3000], [0, 2], {"unit": TimeUnit.MS}),
    (["1755604800", "1755604801.25"], [0, 1.25], {}),
    (["1000", "3000"], [0, 2], {"unit": TimeUnit.MS}),
    ([1000, 3000], [0, 0.002], {"unit": TimeUnit.US}),
    ([1000, 3000], [0, 0.000002], {"unit": TimeUnit.NS}),
    (["2025-08-19T12:00:00", "2025-08-19T12:00:01.25"], [0, 1.25], {}),
    (["2025-08-19 12:00:00.1234567", "2025-08-19 12:00:01"], [0, 0.8765433], {}),
    (["2025-08-19T12:00:00Z", "2025-08-19T14:00:01.5+02:00"], [0, 1.5], {}),
    (["2025-08-19", "2025-08-20"], [0, 86400], {}),
    (["0:00:05", "00:01:00.5", "26:00:00"], [0, 55.5, 93595], {}),
    (["23:59:59", "24:00:01"], [0, 2], {"unit": TimeUnit.CLOCK}),
]


@pytest.mark.parametrize("ending", ["csv", "jsonl"])
@pytest.mark.parametrize(("times", "arrival_s", "more"), TIMES)
def test_times_of_every_unit_count_from_the_first(
    save: Save, ending: str, times: list[Any], arrival_s: list[float], more: dict[str, Any]
) -> None:
    rows = "".join(json.dumps({"when": t, "m": "a", "p": 1, "o": 2}) + "\n" for t in times)
    path = save(f"t.{ending}", csv(*times) if ending == "csv" else rows)
    trace = read(path, columns=mapped(**more))
    assert trace.arrival_s.tolist() == pytest.approx(arrival_s, abs=2e-7)
    assert trace.lineage[0] == f"read t.{ending} as mapped"


@pytest.mark.parametrize(
    ("zone", "times", "arrival_s"),
    [
        ("Europe/Berlin", ["2025-03-30T01:59:59", "2025-03-30T03:00:00"], [0, 1]),
        ("UTC", ["2025-03-30T01:59:59", "2025-03-30T03:00:00"], [0, 3601]),
        ("Europe/Berlin", ["2025-10-26T01:59:59", "2025-10-26T03:00:00"], [0, 7201]),
        ("Europe/Berlin", ["2025-10-26T02:30:00", "2025-10-26T03:00:00"], [0, 5400]),
        ("Europe/Berlin", ["2025-03-30T01:59:59Z", "2025-03-30T03:00:00Z"], [0, 3601]),
    ],
)
def test_times_without_an_offset_are_in_the_zone(
    save: Save, zone: str, times: list[str], arrival_s: list[float]
) -> None:
    trace = read(save("t.csv", csv(*times)), columns=mapped(timezone=zone))
    assert trace.arrival_s.tolist() == arrival_s


def test_start_in_the_lineage_is_in_utc(save: Save) -> None:
    path = save("t.csv", csv("2025-08-19T12:00:00.5", "2025-08-19T12:00:01"))
    assert read(path, columns=mapped(timezone="America/New_York")).lineage[-1] == (
        "starts at 2025-08-19T16:00:00.500000Z"
    )


@pytest.mark.parametrize(
    "times",
    [
        pa.array([10**6, 3 * 10**6], pa.timestamp("us")),
        pa.array([1000, 3000], pa.timestamp("ms", "Asia/Tokyo")),
        pa.array([1, 3], pa.duration("s")),
        pa.array([1.0, 3.0], pa.float32()),
        pa.array([1, 3], pa.uint8()),
        pa.array(["1970-01-01T00:00:01", "1970-01-01T00:00:03"]),
    ],
)
def test_times_of_every_arrow_type_are_seconds(tmp_path: Path, times: pa.Array) -> None:
    trace = read(parquet(tmp_path / "t.parquet", times), columns=MAP)
    assert trace.arrival_s.tolist() == [0, 2]


BAD_TIMES: list[tuple[list[Any], dict[str, Any], str]] = [
    (["soon", 1], {}, "row 1, column when is 'soon': expected a time in ISO 8601, as 2024-05-10T"),
    (["2025-08-19", "1970-01-01"], {}, "is '1970-01-01': expected a time after 1973, as in the"),
    ([1, "soon"], {}, "row 2, column when is 'soon': expected a number"),
    ([1, 1755604800], {}, "row 2, column when is 1755604800: expected a time since the start,"),
    ([1755604800, 1, 2], {}, "row 2, column when is 1: expected a time after 1973, as in"),
    ([1755604800000, 0], {}, "row 2, column when is 0: expected a time after 1973, as"),
    ([1, -1], {}, "row 2, column when is -1: expected a number of seconds from 0 to 4000000000"),
    (
        [1, "nan"],
        {},
        "row 2, column when is nan: expected a number of seconds from 0 to 4000000000",
    ),
    ([1, ""], {}, "row 2, column when is empty: expected a value in every row"),
    (["2025-08-19T12:00:00", "2025-02-30T12:00:00"], {}, "row 2, column when is '2025-02-30T12:"),
    (
        ["2025-08-19T12:00:00", "2025-08-19T12:00:00Z"],
        {},
        "'2025-08-19T12:00:00Z': expected a time",
    ),
    (
        ["2025-08-19T12:00:00Z", "2025-08-19T12:00:00"],
        {},
        "expected a time in ISO 8601 with an offs",
    ),
    (
        ["2025-08-19T12:00:00"],
        {"timezone": "Mars/Base"},
        "trace.map.timezone=Mars/Base: expected a",
    ),
    (["1:00:00", "1:60:00"], {}, "row 2, column when is '1:60:00': expected hours:minutes:seconds"),
    ([1, 2], {"unit": TimeUnit.ISO}, "row 1, column when is '1': expected a time in ISO 8601, as"),
    ([1, 2], {"unit": TimeUnit.CLOCK}, "row 1, column when is '1': expected hours:minutes:seconds"),
    (["2025-08-19T12:00:00"], {"unit": TimeUnit.S}, "is '2025-08-19T12:00:00': expected a number"),
]


@pytest.mark.parametrize(("times", "more", "expected"), BAD_TIMES)
def test_time_that_does_not_fit_is_named(
    save: Save, times: list[Any], more: dict[str, Any], expected: str
) -> None:
    with pytest.raises(TraceError) as caught:
        read(save("t.csv", csv(*times)), columns=mapped(**more))
    assert expected in str(caught.value)


def test_arrow_time_out_of_range_is_named(tmp_path: Path) -> None:
    path = parquet(tmp_path / "t.parquet", pa.array([0, 10**11], pa.timestamp("s")))
    with pytest.raises(TraceError, match=r"row 2, column when is '5138-11-16 .*from 1678 to 2261"):
        read(path, columns=MAP)


def test_own_trace_since_1970_counts_from_its_first_request(save: Save) -> None:
    rows = "arrival_s,model,prompt_tokens,output_tokens\n1755604802.5,a,1,1\n1755604800,b,1,1\n"
    trace = read(save("t.csv", rows))
    assert trace.arrival_s.tolist() == [0, 2.5]
    assert trace.models == ("b", "a")
    assert trace.lineage[1:] == (
        "sorted by arrival (1 requests came before the one above)",
        "starts at 2025-08-19T12:00:00Z",
    )


def test_own_trace_keeps_its_zero(save: Save) -> None:
    rows = "arrival_s,model,prompt_tokens,output_tokens\n30,a,1,1\n31,b,1,1\n"
    path = save("t.csv", rows)
    assert read(path).arrival_s.tolist() == [30, 31]
    assert read(path, columns=ColumnMap(unit=TimeUnit.MS)).arrival_s.tolist() == pytest.approx(
        [0, 0.001]
    )


def test_every_column_of_a_row_moves_when_rows_are_sorted(save: Save) -> None:
    rows = (
        "arrival_s,model,prompt_tokens,output_tokens,session,client,priority,prefix_blocks\n"
        "2,a,3,4,s2,c2,2,7 8\n1,b,1,2,s1,,1,\n2,c,5,6,s3,c3,3,9\n"
    )
    trace = read(save("t.csv", rows))
    assert [trace.models[m] for m in trace.model] == ["b", "a", "c"]
    assert trace.models == ("b", "a", "c")
    assert trace.arrival_s.tolist() == [1, 2, 2]
    assert trace.prompt_tokens.tolist() == [1, 3, 5]
    assert trace.output_tokens.tolist() == [2, 4, 6]
    assert trace.session is not None
    assert trace.session.tolist() == ["s1", "s2", "s3"]
    assert trace.client is not None
    assert trace.client.tolist() == [None, "c2", "c3"]
    assert trace.priority is not None
    assert trace.priority.tolist() == [1, 2, 3]
    assert trace.prefix_blocks is not None
    assert trace.prefix_blocks.to_arrow().to_pylist() == [[], [7, 8], [9]]


def test_map_goes_into_objects(save: Save) -> None:
    row = {"at": 1.5, "call": {"model": {"id": "m"}, "in": {"tokens": 3}}, "call.out": 4}
    columns = ColumnMap(
        arrival_s="at",
        model="call.model.id",
        prompt_tokens="call.in.tokens",
        output_tokens="call.out",
    )
    trace = read(save("t.jsonl", json.dumps(row)), columns=columns)
    assert (trace.models, trace.prompt_tokens[0], trace.output_tokens[0]) == (("m",), 3, 4)


def test_map_goes_into_objects_of_parquet(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    usage = [{"prompt_tokens": 3, "completion_tokens": 4}]
    pq.write_table(pa.table({"created": [1755640777], "model": ["m"], "usage": usage}), path)
    trace = read(path)
    assert (trace.prompt_tokens[0], trace.output_tokens[0]) == (3, 4)
    assert trace.lineage[0] == "read t.parquet as openai_chat"


def test_map_is_laid_over_a_known_format(save: Save) -> None:
    text = "TIMESTAMP,ContextTokens,GeneratedTokens,Service\n2024-05-10,1,2,x\n2024-05-11,3,4,y\n"
    path = save("t.csv", text)
    assert read(path, columns=ColumnMap(model="Service")).models == ("x", "y")
    named = read(path, columns=ColumnMap(model_name="code"))
    assert (named.models, named.lineage[0]) == (("code",), "read t.csv as azure")


def test_map_may_replace_what_a_format_derives(save: Save) -> None:
    row = {"timestamp": 1, "input_length": 2, "output_length": 3, "hash_ids": []}
    path = save("t.jsonl", json.dumps(row | {"chat_id": 5, "parent_chat_id": 4, "type": "text"}))
    trace = read(path, columns=ColumnMap(session="type"))
    assert trace.session is not None
    assert trace.session.tolist() == ["text"]


def test_format_without_what_a_column_derives_from_has_none(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    row = {"started_at": [1], "chute_id": ["c"], "it": [2], "ot": [3], "user_id": ["u"]}
    pq.write_table(pa.table(row), path)
    assert read(path).client is None


def test_model_of_a_trace_can_be_replaced_by_one_name(save: Save) -> None:
    rows = "arrival_s,model,prompt_tokens,output_tokens\n30,a,1,1\n31,b,1,1\n"
    assert read(save("t.csv", rows), columns=ColumnMap(model_name="one")).models == ("one",)
    with pytest.raises(TraceError, match=r"^trace.map.model_name=x: expected no trace.map.model"):
        ColumnMap(model="m", model_name="x")


def test_empty_requests_are_left_out_where_asked(save: Save) -> None:
    path = save("t.csv", "when,m,p,o\n1,a,1,2\n2,a,0,2\n3,a,1,\n4,a,2,3\n")
    with pytest.raises(TraceError, match=r"row 2, column p is 0: expected a whole number"):
        read(path, columns=MAP)
    trace = read(path, columns=mapped(drop_empty=True))
    assert trace.arrival_s.tolist() == [0, 3]
    assert trace.lineage[1] == "left out 2 rows without tokens"


def test_tokens_that_are_not_a_number_are_left_out_where_asked(tmp_path: Path) -> None:
    """A table with gaps turns whole numbers into floats and gaps into NaN."""
    path = tmp_path / "t.parquet"
    columns = {"when": [1, 2], "m": ["a", "a"], "p": [5.0, float("nan")], "o": [6.0, 7.0]}
    pq.write_table(pa.table(columns), path)
    assert read(path, columns=mapped(drop_empty=True)).prompt_tokens.tolist() == [5]


def test_file_of_rows_that_are_no_requests_says_so(save: Save) -> None:
    path = save("t.csv", "Timestamp,Model,Request tokens,Response tokens\n1,a,1,0\n2,b,3,0\n")
    with pytest.raises(TraceError, match=r"no requests among 2 rows: 0 failed, 2 without tokens$"):
        read(path)


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        (NOTHING, "no column for arrival_s, model, prompt_tokens, output_tokens; found: ts, name,"),
        (NOTHING, " name them, as trace.map.arrival_s=ts trace.map.model=COLUMN"),
        (NOTHING, " trace.map.prompt_tokens=input_size trace.map.output_tokens=output_size"),
        (ColumnMap(model="nam"), "trace.map.model=nam: no such column; did you mean 'name'?"),
        (ColumnMap(client="user"), "trace.map.client=user: no such column; "),
        (ColumnMap(model="name", arrival_s="ts"), "no column for prompt_tokens, output_tokens;"),
    ],
)
def test_unknown_columns_are_listed_with_how_to_map_them(
    save: Save, columns: ColumnMap, expected: str
) -> None:
    path = save("t.csv", "ts,name,input_size,output_size\n1,a,1,1\n")
    with pytest.raises(UserError) as caught:
        read(path, columns=columns)
    assert expected in str(caught.value)


def test_many_columns_are_listed_in_part(save: Save) -> None:
    path = save("t.csv", ",".join(f"c{i}" for i in range(40)) + "\n" + "1," * 39 + "1\n")
    with pytest.raises(TraceError, match=r"found: c0, .*, c11, ...; name them"):
        read(path)


def test_map_over_another_keeps_what_it_does_not_say() -> None:
    assert NOTHING.over(OWN) == OWN
    over = ColumnMap(model_name="m", unit=TimeUnit.MS).over(OWN)
    assert (over.model, over.model_name, over.unit) == (None, "m", TimeUnit.MS)
    assert over.arrival_s == "arrival_s"
