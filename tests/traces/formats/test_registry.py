"""Every known format: a small file of it is recognised and says what it should."""

import datetime as dt
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from traces import Trace, TraceError, TraceKind, UserError, read, write
from traces.formats.registry import FORMATS
from traces.formats.service import SCHEMA

Save = Callable[[str, bytes | str], Path]


@dataclass(frozen=True, kw_only=True)
class Sample:
    """A file of a format as its publisher writes it, and the trace that it is."""

    name: str  # of the file
    text: str | None = None
    table: dict[str, Any] | None = None  # of a Parquet file
    arrival_s: list[float]
    models: list[str]
    prompt: list[int]
    output: list[int]
    session: list[str | None] | None = None
    client: list[str | None] | None = None
    blocks: list[list[int]] | None = None
    lineage: list[str] = field(default_factory=list)
    kind: TraceKind = TraceKind.LOG

    def stored(self, folder: Path) -> Path:
        path = folder / self.name
        if self.table is not None:
            pq.write_table(pa.table(self.table), path)
        else:
            path.write_text(self.text or "", encoding="utf-8")
        return path


def lines(*rows: dict[str, Any]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def moments(*seconds: float) -> pa.Array:
    origin = dt.datetime(1970, 1, 1)
    return pa.array([origin + dt.timedelta(seconds=s) for s in seconds], pa.timestamp("us"))


def usage(prompt: int, output: int) -> dict[str, int]:
    return {"prompt_tokens": prompt, "completion_tokens": output, "total_tokens": prompt + output}


VLLM_LOG = r"""INFO:     Started server process [1]
DEBUG 12-31 23:59:58 [logger.py:40] Request chatcmpl-a details: prompt: 'Received request x: \
prompt_token_ids: [1]', prompt_token_ids: [9906, 11, 1917], prompt_embeds shape: None.
(APIServer pid=7) INFO 12-31 23:59:58 [logger.py:49] Received request chatcmpl-a: params: \
SamplingParams(n=1, max_tokens=100), lora_request: None.
INFO 12-31 23:59:59 [logger.py:39] Received request cmpl-b-0: prompt: 'Hi', params: \
SamplingParams(n=1), prompt_token_ids: [13347, 0], lora_request: None, prompt_adapter_request: None.
INFO 12-31 23:59:59 [async_llm.py:270] Added request cmpl-b-0.
INFO 01-01 00:00:03 [logger.py:39] Received request cmpl-c: prompt: 'Gone', params: \
SamplingParams(n=1), prompt_token_ids: [1], lora_request: None.
INFO 01-01 00:00:04 [logger.py:70] Generated response chatcmpl-a (streaming delta): output: 'a', \
output_token_ids: [1, 2], finish_reason: None
INFO 01-01 00:00:05 [logger.py:70] Generated response chatcmpl-a (streaming delta): output: 'b', \
output_token_ids: [3], finish_reason: stop
INFO 01-01 00:00:05 [logger.py:70] Generated response chatcmpl-a (streaming complete): \
output: 'ab', output_token_ids: None, finish_reason: streaming_complete
INFO 01-01 00:00:05 [logger.py:70] Generated response cmpl-b-0: output: 'output_token_ids: [1]', \
output_token_ids: (7, 8), finish_reason: stop
INFO:     127.0.0.1:51408 - "POST /v1/completions HTTP/1.1" 200 OK
""".replace("\\\n", "")

SAMPLES = {
    "azure": Sample(
        name="conv_2023.csv",
        text="TIMESTAMP,ContextTokens,GeneratedTokens\n"
        "2023-11-16 18:15:46.6805900,374,44\n"
        "2023-11-16 18:15:50.9951690,396,109\n"
        "2023-11-16 18:15:51,5,0\n",
        arrival_s=[0, 4.314579],
        models=["conv_2023"] * 2,
        prompt=[374, 396],
        output=[44, 109],
        lineage=["left out 1 rows without tokens", "starts at 2023-11-16T18:15:46.680590Z"],
    ),
    "azure 2024": Sample(
        name="code_1week.csv",
        text="TIMESTAMP,ContextTokens,GeneratedTokens\n"
        "2024-05-10 00:00:00.009930+00:00,2162,5\n"
        "2024-05-10 00:00:00+00:00,2399,6\n",
        arrival_s=[0, 0.00993],
        models=["code_1week"] * 2,
        prompt=[2399, 2162],
        output=[6, 5],
        lineage=[
            "sorted by arrival (1 requests came before the one above)",
            "starts at 2024-05-10T00:00:00Z",
        ],
    ),
    "burstgpt": Sample(
        name="BurstGPT_1.csv",
        text="Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type\n"
        "5,ChatGPT,472,18,490,Conversation log\n"
        "45,GPT-4,1087,0,1087,Conversation log\n"
        "118,GPT-4,417,276,693,API log\n",
        arrival_s=[0, 113],
        models=["ChatGPT", "GPT-4"],
        prompt=[472, 417],
        output=[18, 276],
        lineage=["left out 1 rows without tokens"],
    ),
    "burstgpt with sessions": Sample(
        name="BurstGPT_3.csv",
        text="Timestamp,Session ID,Elapsed time,Model,Request tokens,Response tokens,"
        "Total tokens,Log Type\n"
        "19440110.0,1722ac82,43,GPT-4,906,446,1352,Conversation log\n"
        "19440161.5,,2,ChatGPT,36,29,65,API log\n",
        arrival_s=[0, 51.5],
        models=["GPT-4", "ChatGPT"],
        prompt=[906, 36],
        output=[446, 29],
        session=["1722ac82", None],
    ),
    "mooncake": Sample(
        name="conversation.jsonl",
        text=lines(
            {"timestamp": 0, "input_length": 6758, "output_length": 500, "hash_ids": [0, 1]},
            {"timestamp": 3000, "input_length": 915, "output_length": 3, "hash_ids": [0]},
        ),
        arrival_s=[0, 3],
        models=["conversation"] * 2,
        prompt=[6758, 915],
        output=[500, 3],
        blocks=[[0, 1], [0]],
    ),
    "qwen_bailian": Sample(
        name="qwen.jsonl",
        text=lines(
            *(
                dict(zip(("chat_id", "parent_chat_id", "timestamp"), row, strict=True))
                | {"input_length": 16 * n, "output_length": n, "type": "text", "turn": 1}
                | {"hash_ids": list(range(n))}
                for n, row in enumerate(
                    [(55, -1, 0.5), (60, -1, 1), (159, 55, 61.114), (7, 159, 62), (9, 404, 63)], 1
                )
            )
        ),
        arrival_s=[0, 0.5, 60.614, 61.5, 62.5],
        models=["qwen"] * 5,
        prompt=[16, 32, 48, 64, 80],
        output=[1, 2, 3, 4, 5],
        session=["55", "60", "55", "55", "404"],
        blocks=[[0], [0, 1], [0, 1, 2], [0, 1, 2, 3], [0, 1, 2, 3, 4]],
    ),
    "aegaeon": Sample(
        name="synth-8-0.1-1.0-1.0.csv",
        text="Request Time,Model Name,Input Length,Output Length\r\n"
        "00:00:00.418,synth_model_08,168,416\r\n"
        "01:02:03.500,synth_model_14,438,88\r\n",
        arrival_s=[0, 3723.082],
        models=["synth_model_08", "synth_model_14"],
        prompt=[168, 438],
        output=[416, 88],
        kind=TraceKind.SYNTHETIC,
    ),
    "chutes": Sample(
        name="chutes_trace.parquet",
        table={
            "invocation_id": ["i", "j", "k"],
            "function_name": ["chat_stream", "generate", "chat"],
            "chute_id": ["398651e1", "ce6a92e4", "398651e1"],
            "user_id": ["u", "v", "u"],
            "rehash_round": [0, 0, 1],
            "instance_id": ["x", "x", "x"],
            "started_at": moments(0, 1, 86400.25),
            "completed_at": moments(5, 6, 86401),
            "it": [100, None, 300],
            "ot": [10, None, 30],
            "ct": [0, None, 64],
            "ttft": [0.2, None, 0.3],
        },
        arrival_s=[0, 86400.25],
        models=["398651e1"] * 2,
        prompt=[100, 300],
        output=[10, 30],
        client=["u/0", "u/1"],
        lineage=["left out 1 rows without tokens"],
    ),
    "litellm": Sample(
        name="spend.jsonl",
        text=lines(
            {"request_id": "a", "call_type": "acompletion", "startTime": "2025-08-19T12:00:00.5Z"}
            | {"endTime": "2025-08-19T12:00:09Z", "model": "gpt-4o", "end_user": "ann"}
            | {"session_id": None, "status": "success"}
            | usage(120, 30),
            {"request_id": "b", "startTime": "2025-08-19T14:00:02+02:00", "model": "llama"}
            | {"status": "failure", "end_user": ""}
            | usage(9, 1),
            {"request_id": "c", "startTime": "2025-08-19T12:00:03Z", "model": "llama"}
            | {"status": "success", "session_id": "s"}
            | usage(7, 8),
        ),
        arrival_s=[0, 2.5],
        models=["gpt-4o", "llama"],
        prompt=[120, 7],
        output=[30, 8],
        session=[None, "s"],
        client=["ann", None],
        lineage=["left out 1 rows that failed", "starts at 2025-08-19T12:00:00.500000Z"],
    ),
    "litellm, seconds": Sample(
        name="logging.jsonl",
        text=lines(
            {"id": "a", "startTime": 1755604800.25, "model": "m", "status": "success"}
            | usage(1, 2),
            {"id": "b", "startTime": 1755604801.5, "model": "m"} | usage(3, 4),
        ),
        arrival_s=[0, 1.25],
        models=["m", "m"],
        prompt=[1, 3],
        output=[2, 4],
        lineage=["starts at 2025-08-19T12:00:00.250000Z"],
    ),
    "openai_chat": Sample(
        name="chat.jsonl",
        text=lines(
            {"id": "chatcmpl-1", "object": "chat.completion", "created": 1755640777}
            | {"model": "llama", "choices": [], "usage": usage(38, 23)},
            {"id": "chatcmpl-2", "object": "chat.completion.chunk", "created": 1755640778}
            | {"model": "llama", "usage": None},
            {"id": "x", "object": "list", "created": 1755640779, "model": "embed"}
            | {"usage": usage(5, 0)},
        ),
        arrival_s=[0],
        models=["llama"],
        prompt=[38],
        output=[23],
        lineage=["left out 2 rows without tokens", "starts at 2025-08-19T21:59:37Z"],
    ),
    "openai_responses": Sample(
        name="responses.jsonl",
        text=lines(
            {"id": "resp_1", "object": "response", "created_at": 1755640777, "status": "completed"}
            | {"model": "m", "user": "u", "usage": {"input_tokens": 11, "output_tokens": 12}},
            {"id": "resp_2", "object": "response", "created_at": 1755640777, "status": "failed"}
            | {"model": "m", "usage": None},
        ),
        arrival_s=[0],
        models=["m"],
        prompt=[11],
        output=[12],
        client=["u"],
        lineage=["left out 1 rows that failed", "starts at 2025-08-19T21:59:37Z"],
    ),
    "vllm": Sample(
        name="qwen3-8b.log",
        text=VLLM_LOG,
        arrival_s=[0, 1],
        models=["qwen3-8b"] * 2,
        prompt=[3, 2],
        output=[3, 2],
        lineage=["left out 1 rows without tokens"],
    ),
    "service": Sample(
        name="requests.parquet",
        table=dict(
            zip(
                SCHEMA.names,
                [
                    pa.array(column, kind)
                    for column, kind in zip(
                        zip(
                            (0.5, "a", 10, 1, None, "k", 0, "r1", "done", 0.7, 0.7, 1, 0, 1, "p"),
                            (1, "b", 20, 2, None, None, 1, "r2", "cancelled", 2, 3, 2, 0, 1, "p"),
                            (2, "a", 30, 0, None, None, 0, "r3", "failed", *[None] * 5, "p"),
                            (3, "a", 40, 0, None, None, 0, "r4", "shed", *[None] * 5, "p"),
                            (4, "a", 50, 5, None, None, 0, "r5", "running", 5, 6, 5, 0, 1, "p"),
                            strict=True,
                        ),
                        SCHEMA.types,
                        strict=True,
                    )
                ],
                strict=True,
            )
        ),
        arrival_s=[0.5, 1.0],
        models=["a", "b"],
        prompt=[10, 20],
        output=[1, 2],
        client=["k", None],
        lineage=["left out 3 rows that failed"],
    ),
}


def form_of(sample: str) -> str:
    return sample.partition(",")[0].partition(" ")[0]


def plain(values: Any) -> Any:
    return None if values is None else values.tolist()


@pytest.mark.parametrize("name", SAMPLES)
def test_format_is_known_by_its_columns(tmp_path: Path, name: str) -> None:
    sample = SAMPLES[name]
    trace = read(sample.stored(tmp_path))
    assert trace.arrival_s.tolist() == pytest.approx(sample.arrival_s, abs=1e-6)
    assert [trace.models[m] for m in trace.model] == sample.models
    assert trace.prompt_tokens.tolist() == sample.prompt
    assert trace.output_tokens.tolist() == sample.output
    assert plain(trace.client) == sample.client or not any(plain(trace.client))
    assert plain(trace.session) == sample.session or not any(plain(trace.session))
    assert trace.kind is sample.kind
    step = f"read {sample.name} as {form_of(name)}"
    assert trace.lineage == (step, *sample.lineage)
    found = trace.prefix_blocks
    assert (None if found is None else found.to_arrow().to_pylist()) == sample.blocks
    if found is not None:
        assert found.block_tokens == {"mooncake": 512, "qwen_bailian": 16}[name]


@pytest.mark.parametrize("ending", ["parquet", "csv", "jsonl"])
@pytest.mark.parametrize("name", SAMPLES)
def test_format_is_kept_by_every_file_of_our_own(tmp_path: Path, name: str, ending: str) -> None:
    first = read(SAMPLES[name].stored(tmp_path))
    write(first, tmp_path / f"own.{ending}")
    again = read(tmp_path / f"own.{ending}")
    assert again.sha256 == first.sha256
    assert plain(again.session) == plain(first.session)
    blocks = (first.prefix_blocks, again.prefix_blocks)
    assert len({None if b is None else str(b.to_arrow().to_pylist()) for b in blocks}) == 1


def test_every_format_has_a_sample() -> None:
    assert {form_of(name) for name in SAMPLES} == set(FORMATS) - {"trace"}


def test_format_may_be_asked_for(save: Save) -> None:
    text = SAMPLES["mooncake"].text or ""
    path = save("t.jsonl", text.replace("{", '{"chat_id": 1, "parent_chat_id": -1, '))
    assert read(path).prefix_blocks.block_tokens == 16  # type: ignore[union-attr]
    assert read(path, form="mooncake").span_s == 3
    with pytest.raises(TraceError, match=r"^trace.format=moncake: did you mean 'mooncake'\?"):
        read(path, form="moncake")
    with pytest.raises(TraceError, match="no column for arrival_s, prompt_tokens, output_tokens;"):
        read(path, form="azure")


def outcome(path: Path) -> Trace | str:
    """The trace, or the one line that says why there is none; nothing else may come out."""
    try:
        return read(path)
    except UserError as error:
        message = str(error)
    assert message.isprintable()
    return message


TEXTS = sorted(name for name, sample in SAMPLES.items() if sample.text is not None)
EDITS = st.lists(
    st.tuples(
        st.integers(0, 2000),
        st.integers(0, 12),
        st.binary(max_size=3)
        | st.sampled_from([b",", b"\n", b'"', b"null", b"-1", b"1e999", b"{", b"]", b":", b"0"]),
    ),
    max_size=4,
)


@given(edits=EDITS)
@pytest.mark.parametrize("name", TEXTS)
@settings(max_examples=40, deadline=None)
def test_read_of_a_damaged_text_is_a_trace_or_one_line(
    tmp_path_factory: pytest.TempPathFactory, name: str, edits: list[tuple[int, int, bytes]]
) -> None:
    sample = SAMPLES[name]
    data = (sample.text or "").encode()
    for place, length, new in edits:
        place %= len(data) or 1
        data = data[:place] + new + data[place + length :]
    path = tmp_path_factory.getbasetemp() / sample.name
    path.write_bytes(data)
    assert outcome(path)


CELLS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**70), 2**70),
    st.floats(),
    st.text(st.characters(codec="utf-8"), max_size=6),
    st.sampled_from(["2024-05-10T00:00:00Z", "1:2:3", "0", "12", "2024-02-30"]),
    st.lists(st.none() | st.integers(-5, 2**64) | st.text(max_size=1), max_size=3),
    st.dictionaries(st.sampled_from(["prompt_tokens", "completion_tokens", "x"]), st.integers()),
)


@st.composite
def tables(draw: st.DrawFn) -> list[dict[str, Any]]:
    """Rows with all columns of one format, of any values."""
    form = draw(st.sampled_from(sorted(FORMATS)))
    names = [*FORMATS[form].columns.named.values(), *FORMATS[form].needs]
    names += [part for parts in FORMATS[form].derived.values() for part in parts]
    row = st.fixed_dictionaries(dict.fromkeys(names, CELLS))
    return draw(st.lists(row, min_size=1, max_size=4))


@given(rows=tables())
@settings(max_examples=200, deadline=None)
def test_read_of_any_rows_is_a_trace_or_one_line(
    tmp_path_factory: pytest.TempPathFactory, rows: list[dict[str, Any]]
) -> None:
    path = tmp_path_factory.getbasetemp() / "any.jsonl"
    path.write_text(lines(*rows))
    assert outcome(path)


@given(rows=tables())
@settings(max_examples=200, deadline=None)
def test_read_of_any_cells_is_a_trace_or_one_line(
    tmp_path_factory: pytest.TempPathFactory, rows: list[dict[str, Any]]
) -> None:
    path = tmp_path_factory.getbasetemp() / "any.csv"
    cells = [[str(value).replace('"', "'") for value in row.values()] for row in rows]
    text = [",".join(f'"{cell}"' for cell in line) for line in [list(rows[0]), *cells]]
    path.write_text("\n".join(text))
    assert outcome(path)


ARROW = st.sampled_from(
    [
        pa.int64(),
        pa.uint64(),
        pa.float32(),
        pa.string(),
        pa.large_string(),
        pa.binary(),
        pa.bool_(),
        pa.date32(),
        pa.time64("us"),
        pa.timestamp("ms"),
        pa.timestamp("us", "Europe/Berlin"),
        pa.duration("s"),
        pa.decimal128(9, 2),
        pa.list_(pa.int32()),
        pa.list_(pa.string()),
        pa.null(),
        pa.dictionary(pa.int8(), pa.string()),
    ]
)


@st.composite
def arrow_tables(draw: st.DrawFn) -> pa.Table:
    """All columns of one format, of any Arrow types."""
    form = draw(st.sampled_from(sorted(FORMATS)))
    names = {*FORMATS[form].columns.named.values(), *FORMATS[form].needs}
    names |= {part for parts in FORMATS[form].derived.values() for part in parts}
    n = draw(st.integers(0, 3))
    numbers = draw(st.lists(st.none() | st.integers(-3, 10**9), min_size=n, max_size=n))
    columns = {}
    for name in sorted(names):
        kind = draw(ARROW)
        try:
            columns[name] = pa.array(numbers, pa.int64()).cast(kind)
        except pa.ArrowException:
            plain = pa.list_(pa.int32()) if pa.types.is_list(kind) else kind
            columns[name] = pa.nulls(n, plain)
    return pa.table(columns)


@given(table=arrow_tables())
@settings(max_examples=200, deadline=None)
def test_read_of_any_arrow_types_is_a_trace_or_one_line(
    tmp_path_factory: pytest.TempPathFactory, table: pa.Table
) -> None:
    path = tmp_path_factory.getbasetemp() / "any.parquet"
    pq.write_table(table, path)
    assert outcome(path)
