"""`open_trace`: a file or the bundled trace, then its window, then its rate."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from traces import TraceError, TraceKind
from traces.bundled import RECIPES
from traces.mapping import ColumnMap
from traces.source import TraceSource, open_stream, open_trace
from traces.stream import collect
from traces.writing import write

ROWS = "arrival_s,model,prompt_tokens,output_tokens,day\n" + "".join(
    f"{i},m{i % 3},10,{10 + i},{'mon' if i < 50 else 'tue=x'}\n" for i in range(100)
)


@pytest.fixture
def file(save: Callable[[str, str], Path]) -> str:
    return str(save("hundred.csv", ROWS))


def test_without_a_file_the_bundled_trace_is_read() -> None:
    trace = open_trace(TraceSource())
    assert trace.name == "market_demo"
    assert trace.requests > 10_000


@pytest.mark.parametrize(
    ("keys", "arrivals_s"),
    [
        ({}, range(100)),
        ({"start_s": 90.0}, range(10)),
        ({"duration_s": 5.0}, range(5)),
        ({"start_s": 20.0, "duration_s": 10.0}, range(10)),
        ({"rate_scale": 4.0}, [i / 4 for i in range(100)]),
        ({"start_s": 20.0, "duration_s": 10.0, "rate_scale": 2.0}, [i / 2 for i in range(10)]),
        ({"where": "day=mon", "start_s": 40.0}, range(10)),
        ({"where": "day=tue=x", "duration_s": 52.0}, [50, 51]),
    ],
)
def test_window_comes_before_rate(file: str, keys: dict[str, Any], arrivals_s: Any) -> None:
    trace = open_trace(TraceSource(path=file, **keys))
    assert trace.arrival_s.tolist() == pytest.approx(list(arrivals_s))


@pytest.mark.parametrize("opened", [open_trace, lambda source: collect(open_stream(source))])
@pytest.mark.parametrize("ending", ["csv", "parquet"])
def test_kind_is_stated_for_a_file_that_does_not_and_never_raised(
    file: str, tmp_path: Path, opened: Callable[[TraceSource], Any], ending: str
) -> None:
    assert opened(TraceSource(path=file)).kind is TraceKind.LOG
    assert opened(TraceSource(path=file, kind=TraceKind.SYNTHETIC)).kind is TraceKind.SYNTHETIC
    own = tmp_path / f"own.{ending}"
    write(open_trace(TraceSource(path=file, kind=TraceKind.SEMI_SYNTHETIC)), own)
    stated = TraceKind.SEMI_SYNTHETIC if ending == "parquet" else TraceKind.LOG
    assert opened(TraceSource(path=str(own), kind=TraceKind.LOG)).kind is stated


def test_lineage_tells_the_steps(file: str) -> None:
    assert open_trace(TraceSource(path=file)).lineage == ("read hundred.csv",)
    assert open_trace(TraceSource(path=file, start_s=20.0, rate_scale=2.0)).lineage == (
        "read hundred.csv",
        "window start_s=20",
        "rate_scale 2",
    )
    assert open_trace(TraceSource(path=file, where="day=mon", duration_s=9.0)).lineage == (
        "read hundred.csv where day=mon",
        "window start_s=0 duration_s=9",
    )


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"start_s": 200.0}, r"^trace.start_s=200: no request in the window; .* 0 to 99 s$"),
        ({"start_s": -1.0}, "^trace.start_s=-1.0: expected a number of seconds, 0 or more$"),
        ({"duration_s": 0.0}, "^trace.duration_s=0.0: expected more than 0 seconds$"),
        ({"rate_scale": 0.0}, "^trace.rate_scale=0.0: expected a positive number$"),
        ({"where": "day=sun"}, "no row has day=sun; .*known: mon, tue=x$"),
        ({"path": None, "where": "day=mon"}, "^trace.where=day=mon: expected a file in trace.path"),
        (
            {"path": None, "name": "market"},
            "^trace.name=market: no such trace; did you mean",
        ),
        (
            {"path": None, "name": "burstgpt_1"},
            "^trace.name=burstgpt_1: not fetched yet; ",
        ),
        (
            {"path": None, "map": ColumnMap(model="m")},
            "^trace.map.model=m: expected a file in trac",
        ),
        ({"path": None, "format": "azure"}, "^trace.format=azure: expected a file in trace.path"),
        ({"path": "absent.csv"}, "^absent.csv: no such file$"),
    ],
)
def test_mistakes_are_named(
    file: str, keys: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("AEGAEON_RL_CACHE", str(tmp_path))
    with pytest.raises(TraceError, match=message):
        open_trace(TraceSource(**({"path": file} | keys)))


PARTS: list[dict[str, Any]] = [
    {},
    {"start_s": 20.0},
    {"start_s": 20.0, "duration_s": 30.0, "rate_scale": 2.0},
]


@pytest.mark.parametrize("keys", PARTS)
@pytest.mark.parametrize("is_ours", [True, False])
def test_open_stream_gives_the_requests_of_open_trace(
    file: str, tmp_path: Path, keys: dict[str, Any], is_ours: bool
) -> None:
    if is_ours:
        write(open_trace(TraceSource(path=file)), tmp_path / "ours.parquet")
        file = str(tmp_path / "ours.parquet")
    source = TraceSource(path=file, **keys)
    streamed, whole = collect(open_stream(source)), open_trace(source)
    assert streamed.sha256 == whole.sha256
    assert (streamed.kind, streamed.name) == (whole.kind, whole.name)


def test_open_stream_of_a_market_needs_no_file() -> None:
    stream = open_stream(TraceSource(name="paper"))
    assert len(stream.models) == 779
    first = next(stream.chunks())
    assert first.requests > 100_000
    part = open_trace(TraceSource(name="paper", start_s=60.0, duration_s=600.0))
    inside = (first.arrival_s >= 60) & (first.arrival_s < 660)
    assert part.output_tokens.tolist() == first.output_tokens[inside].tolist()


def test_market_that_does_not_fit_asks_for_a_part() -> None:
    expected = RECIPES["paper"].rate_rps * RECIPES["paper"].duration_s
    with pytest.raises(TraceError, match=rf"^trace\.name=paper: about {expected:,.0f} requests"):
        open_trace(TraceSource(name="paper"))
