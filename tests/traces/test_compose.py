"""`compose`: steps in order, each recorded; mistakes in a line that names the step."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from traces import Trace, TraceKind, UserError, read, write
from traces.compose import SOURCES, STEPS, compose, usage
from traces.market import MarketSpec, generate
from traces.parquet_stream import is_ours, stream_parquet
from traces.steps import in_order, lower, merge
from traces.stream import collect, joined, of_trace

MARKET = MarketSpec(name="base", models=4, duration_s=3000.0, rate_rps=0.5, zipf=0.5, seed=4)
LOG = "arrival_s,model,prompt_tokens,output_tokens,client\n" + "".join(
    f"{i * 1000},m{i % 3},10,{i + 1},c{i % 2}\n" for i in range(200)
)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """base.parquet, a market; log.csv, 200 requests 1,000 s apart of 3 models and 2 clients."""
    monkeypatch.chdir(tmp_path)
    write(generate(MARKET), "base.parquet")
    Path("log.csv").write_text(LOG)
    return tmp_path


def made(*lines: str) -> Trace:
    return collect(compose(lines))


def names(trace: Trace) -> list[str]:
    return [trace.models[m] for m in trace.model]


def test_steps_are_taken_in_order_and_recorded(folder: Path) -> None:
    trace = made("read log.csv", "window 10000 duration_s=50000", "scale 10", "keep m0 m1")
    assert trace.arrival_s.tolist() == [i * 100.0 for i in range(50) if (i + 10) % 3 != 2]
    assert trace.lineage == (
        "read log.csv", "window start_s=10000 duration_s=50000", "scale 10", "keep m0 m1",
    )  # fmt: skip
    assert trace.kind is TraceKind.SEMI_SYNTHETIC


@pytest.mark.parametrize(
    ("line", "kind"),
    [
        ("window 0", "log"),
        ("days 0 1", "log"),
        ("part 1 2", "log"),
        ("part 1 2 by=model", "log"),
        ("keep m0", "log"),
        ("drop m0", "log"),
        ("rename m0=x", "log"),
        ("checkpoints A=1 B=1", "log"),
        ("thin 0.5", "semi-synthetic"),
        ("scale 2", "semi-synthetic"),
        ("retime 1", "semi-synthetic"),
        ("clients", "semi-synthetic"),
        ("merge base.parquet", "synthetic"),
        ("merge log.csv prefix=b-", "semi-synthetic"),
    ],
)
def test_kind_never_gets_better(folder: Path, line: str, kind: str) -> None:
    assert made("read log.csv", line).kind == kind
    synthetic = of_trace(generate(MARKET))
    if line.split()[0] in ("window", "thin", "scale", "retime"):
        assert compose([line], synthetic).kind is TraceKind.SYNTHETIC


def test_lower_is_the_worst_of_the_kinds() -> None:
    log, semi, synthetic = TraceKind
    assert (lower(log, semi), lower(synthetic, log), lower(log)) == (semi, synthetic, log)


def test_retime_gives_the_rate(folder: Path) -> None:
    trace = made("read base.parquet", "retime 6.4")
    assert trace.rate_rps == pytest.approx(6.4)
    assert trace.lineage[-1].startswith("retime 6.4 (scale ")


def test_thin_keeps_its_share(folder: Path) -> None:
    whole, half = generate(MARKET), made("read base.parquet", "thin 0.5 seed=3")
    assert half.requests == pytest.approx(whole.requests / 2, abs=4 * whole.requests**0.5 / 2)
    assert set(half.arrival_s) < set(whole.arrival_s)
    assert half.sha256 == made("read base.parquet", "thin 0.5 seed=3").sha256
    assert half.sha256 != made("read base.parquet", "thin 0.5 seed=4").sha256


def test_parts_by_time_share_out_the_requests(folder: Path) -> None:
    parts = [made("read log.csv", f"part {i} 3") for i in (1, 2, 3)]
    assert sum(part.requests for part in parts) == 200
    assert max(part.span_s for part in parts) < 199_000 / 3 + 1
    assert [part.arrival_s[0] < 1000 for part in parts] == [True] * 3


def test_parts_by_model_share_out_the_models(folder: Path) -> None:
    parts = [made("read base.parquet", f"part {i} 2 by=model") for i in (1, 2)]
    assert sum(part.requests for part in parts) == generate(MARKET).requests
    assert not set(parts[0].models) & set(parts[1].models)


def test_days_count_from_nought(folder: Path) -> None:
    assert made("read log.csv", "days 1 1").requests == 86
    assert made("read log.csv", "days 0 1").requests == 173


def test_clients_become_models(folder: Path) -> None:
    trace = made("read log.csv", "clients")
    assert names(trace) == [f"c{i % 2}" for i in range(200)]


def test_rename_joins_models_of_one_name(folder: Path) -> None:
    trace = made("read log.csv", "rename m0=m2 m1=one")
    assert names(trace) == ["one" if i % 3 == 1 else "m2" for i in range(200)]


def test_checkpoints_are_dealt_in_turn(folder: Path) -> None:
    trace = made("read log.csv", "checkpoints A=2 B=1")
    assert trace.models == ("m0@A", "m1@A", "m2@B")


def test_merge_keeps_both_and_tells_the_whole_lineage(folder: Path) -> None:
    trace = made("read log.csv", "scale 70", "merge base.parquet prefix=b-")
    assert trace.requests == 200 + generate(MARKET).requests
    assert {"m0", "b-model-000"} < set(trace.models)
    assert trace.lineage == (
        "read log.csv", "scale 70",
        "merge base prefix=b- (generate base seed=4 models=4 duration_s=3000 rate_rps=0.5 zipf=0.5;"
        " read base.parquet)",
    )  # fmt: skip
    assert trace.licence == "not stated AND Apache-2.0"
    assert trace.client is not None
    assert set(trace.client) == {"c0", "c1", None}


@given(
    trace=st.from_type(Trace),
    other=st.from_type(Trace),
    rows=st.tuples(st.integers(1, 9), st.integers(1, 9)),
)
@settings(max_examples=60, deadline=None)
def test_merge_is_a_stable_sort_of_both_in_any_chunks(
    trace: Trace, other: Trace, rows: tuple[int, int]
) -> None:
    first, second = of_trace(trace, rows[0]), of_trace(other, rows[1])
    merged = joined(in_order([first.chunks(), second.chunks()]))
    both = np.concatenate([trace.arrival_s, other.arrival_s])
    order = np.argsort(both, kind="stable")
    assert merged.arrival_s.tolist() == both[order].tolist()
    outputs = np.concatenate([trace.output_tokens, other.output_tokens])
    assert merged.output_tokens.tolist() == outputs[order].tolist()
    named = merge(first, second, "b-")
    expected = [*names(trace), *(f"b-{name}" for name in names(other))]
    assert names(collect(named)) == [expected[i] for i in order]


def test_market_starts_a_composition() -> None:
    stream = compose(["market paper duration_s=600 seed=3"])
    assert stream.lineage == (stream.lineage[0],)
    assert stream.lineage[0].startswith("generate paper seed=3 models=779 duration_s=600 ")
    assert len(stream.models) == 779
    assert collect(stream).span_s < 600


def test_split_takes_a_part_of_a_known_file(folder: Path) -> None:
    text = LOG.replace(",m0,", ",m-c000,").replace(",m1,", ",m-c003,").replace(",m2,", ",m-c004,")
    Path("clients.csv").write_text(text)
    trace = made("read clients.csv", "split servegen train file=servegen_tail98_days0-8")
    assert trace.models == ("m-c000",)
    assert trace.lineage[1] == "split servegen train days 0 2"


def test_given_trace_is_where_steps_start(folder: Path) -> None:
    base = of_trace(read("log.csv"))
    assert collect(compose(["drop m0"], base)).models == ("m1", "m2")
    assert compose([], base) is base


def test_our_files_are_read_in_chunks_and_others_whole(folder: Path) -> None:
    assert is_ours(Path("base.parquet"))
    assert not is_ours(Path("log.csv"))
    streamed = collect(stream_parquet(Path("base.parquet")))
    whole = read("base.parquet")
    assert streamed.sha256 == whole.sha256
    for name in ("name", "kind", "lineage", "licence", "models"):
        assert getattr(streamed, name) == getattr(whole, name)


def test_models_keep_their_numbers_from_chunk_to_chunk(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("traces.parquet_table.CHUNK_ROWS", 3)
    stream = stream_parquet(Path("base.parquet"))
    assert [chunk.requests for chunk in stream.chunks()][:3] == [3, 3, 3]
    assert collect(stream).sha256 == read("base.parquet").sha256


@given(trace=st.from_type(Trace))
@settings(max_examples=40, deadline=None)
def test_streamed_file_is_the_file(tmp_path_factory: pytest.TempPathFactory, trace: Trace) -> None:
    path = tmp_path_factory.getbasetemp() / "streamed.parquet"
    write(trace, path)
    streamed, whole = collect(stream_parquet(path)), read(path)
    assert streamed.sha256 == whole.sha256
    for name in ("session", "client", "priority"):
        old, new = getattr(whole, name), getattr(streamed, name)
        assert (old is None and new is None) or new.tolist() == old.tolist()
    blocks = (streamed.prefix_blocks, whole.prefix_blocks)
    assert (blocks[0] is None) == (blocks[1] is None)
    if blocks[0] is not None and blocks[1] is not None:
        assert blocks[0].ids.tolist() == blocks[1].ids.tolist()
        assert blocks[0].block_tokens == blocks[1].block_tokens


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["read log.csv", "thn 0.5"], "step 2 'thn 0.5': no such step; did you mean 'thin'?"),
        (["read log.csv", "thin"], "step 2 'thin': expected thin SHARE [seed=0]"),
        (["read log.csv", "thin x"], "step 2 'thin x': share=x: expected a number"),
        (["read log.csv", "thin 2"], "step 2 'thin 2': share=2.0: expected over 0 and up to 1"),
        (["read log.csv", "thin 1 2 3"], "step 2 'thin 1 2 3': 3: one value too many; expected"),
        (["read log.csv", "thin 1 sed=2"], "step 2 'thin 1 sed=2': sed: unknown key; did you mean"),
        (["read log.csv", "thin 1 share=1"], "step 2 'thin 1 share=1': share: given twice"),
        (["read log.csv", "keep"], "step 2 'keep': expected keep MODEL..."),
        (["read log.csv", "keep m9"], "step 2 'keep m9': trace log: no model 'm9'; known: m0"),
        (["read log.csv", "drop m0 m1 m2"], "step 2 'drop m0 m1 m2': trace log: no model is left"),
        (["read log.csv", "rename a=b"], "step 2 'rename a=b': trace log: no model 'a'"),
        (["read log.csv", "rename"], "step 2 'rename': expected rename NAME=NAME..."),
        (["read log.csv", "checkpoints A=x"], "step 2 'checkpoints A=x': A=x: expected a whole"),
        (["read log.csv", "part 4 3"], "step 2 'part 4 3': number=4: expected 1 to 3"),
        (["read log.csv", "part 1 3 by=day"], "step 2 'part 1 3 by=day': by=day: known: model"),
        (["read log.csv", "split x train"], "step 2 'split x train': split=x: known: servegen"),
        (["read log.csv", "split sosp25 trai"], "step 2 'split sosp25 trai': part=trai: did you"),
        (
            ["read log.csv", "split sosp25 train file=aegaeon_sosp25_workloads"],
            "step 2 'split sosp25 train file=aegaeon_sosp25_workloads': 0 runs of days: expected",
        ),
        (["read log.csv", "days 3 1"], "step 2 'days 3 1': first=3: expected 0 to 1"),
        (["read log.csv", "window -1"], "step 2 'window -1': start_s=-1.0: expected a number"),
        (["read log.csv", "retime 0"], "step 2 'retime 0': rps=0.0: expected a positive number"),
        (["read log.csv", "scale 1e300"], "step 2 'scale 1e300': factor=1e+300: expected at most"),
        (["read log.csv", "scale 1e-9"], "factor=1e-09: requests of log arrive up to 1.99e+14 s: "),
        (["read base.parquet", "clients"], "step 2 'clients': trace base has no column client"),
        (["read log.csv", "read log.csv"], "step 2 'read log.csv': expected as the first step"),
        (["thin 0.5"], "step 1 'thin 0.5': expected a source before it: read, market, servegen"),
        (["read none.csv"], "step 1 'read none.csv': none.csv: no such file"),
        (["market papr"], "step 1 'market papr': name=papr: no such market; did you mean 'paper'"),
        (["read 'log.csv"], 'step 1 "read \'log.csv": No closing quotation'),
        ([""], "step 1 '': no such step; known: "),
        ([], "steps=[]: expected at least one, as 'read log.parquet'"),
    ],
)
def test_mistakes_name_the_step(folder: Path, lines: list[str], message: str) -> None:
    with pytest.raises(UserError) as caught:
        collect(compose(lines))
    assert str(caught.value).startswith(message)
    assert len(str(caught.value).splitlines()) == 1


def test_lines_are_checked_before_a_file_is_read(folder: Path) -> None:
    with pytest.raises(UserError, match=r"^step 2 'thn 1'"):
        compose(["read none.csv", "thn 1"])


def test_unsorted_chunks_of_a_file_are_refused(folder: Path, unsorted: Callable[[], None]) -> None:
    unsorted()
    with pytest.raises(UserError, match=r"back.parquet: not in order of arrival: `trace action="):
        collect(stream_parquet(Path("back.parquet")))


@pytest.fixture
def unsorted() -> Callable[[], None]:
    """back.parquet, with our metadata and backward in time."""

    def write_it() -> None:
        table = pq.read_table("base.parquet")
        pq.write_table(table.take(list(range(len(table)))[::-1]), "back.parquet")

    return write_it


@pytest.mark.parametrize("name", [*SOURCES, *STEPS])
def test_every_step_has_a_usage(name: str) -> None:
    assert usage(name, (SOURCES | STEPS)[name]).split()[0] == name
