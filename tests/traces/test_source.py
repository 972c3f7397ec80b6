"""`open_trace`: a file or the bundled trace, then its window, then its rate."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from traces import TraceError
from traces.source import TraceSource, open_trace

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
