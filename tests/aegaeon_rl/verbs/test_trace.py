"""`trace` end to end: facts, conversion, generated markets; nothing is left of a refused call."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from traces import describe, read
from traces.market import MarketSpec, generate
from traces.write import write

MARKET = ("market.models=5", "market.duration_s=200", "market.rate_rps=2", "market.name=tiny")
SPEC = MarketSpec(name="tiny", models=5, duration_s=200.0, rate_rps=2.0)


@pytest.fixture
def source(tmp_path: Path) -> str:
    """A market's file, alone in the folder."""
    write(generate(SPEC), tmp_path / "tiny.parquet")
    return "trace.path=tiny.parquet"


def summary(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "summary.json").read_text())


def test_describe_tells_the_facts(cli: Callable[..., Any], source: str, tmp_path: Path) -> None:
    ended = cli("trace", source, "run.dir=facts", "seed=4")
    assert ended.code == 0, ended.err
    trace = generate(SPEC)
    content, facts = summary(tmp_path / "facts"), describe(trace)
    assert content["schema"] == "aegaeon-rl/summary/1"
    assert (content["verb"], content["seed"]) == ("trace", 4)
    assert content["trace"]["sha256"] == trace.sha256
    assert content["pool"] is content["slo"] is content["profile"] is None
    (row,) = content["results"]
    for name in ("requests", "models", "span_s", "zipf", "cv", "peak_over_mean"):
        assert row[name] == pytest.approx(getattr(facts, name))
        assert row[name] > 0
    assert f"tiny (synthetic): {facts.requests:,} requests of 5 models" in ended.out
    assert ended.out.splitlines()[-1] == "facts"
    files = {path.name for path in (tmp_path / "facts").iterdir()}
    assert files == {"config.yaml", "results.parquet", "summary.json"}


def test_describe_knows_the_bundled_trace(cli: Callable[..., Any], tmp_path: Path) -> None:
    assert cli("trace", "trace.duration_s=60", "out=ignored.parquet").code == 0
    (folder,) = (tmp_path / "runs" / "trace").iterdir()
    assert summary(folder)["trace"]["name"] == "market_demo"
    assert not (tmp_path / "ignored.parquet").exists()


@pytest.mark.parametrize("ending", ["parquet", "csv", "jsonl"])
def test_import_cuts_scales_and_converts(
    cli: Callable[..., Any], source: str, tmp_path: Path, ending: str
) -> None:
    window = ("trace.start_s=50", "trace.duration_s=100", "trace.rate_scale=2")
    ended = cli("trace", "action=import", source, *window, f"out=made/cut.{ending}", "run.dir=run")
    assert ended.code == 0, ended.err
    expected = generate(SPEC).window(50, 100).scale_rate(2)
    written = read(tmp_path / "made" / f"cut.{ending}")
    assert written.arrival_s == pytest.approx(expected.arrival_s, abs=1e-6)
    assert written.prompt_tokens.tolist() == expected.prompt_tokens.tolist()
    assert [written.models[m] for m in written.model] == [
        expected.models[m] for m in expected.model
    ]
    assert summary(tmp_path / "run")["results"][0]["requests"] == expected.requests


def test_generated_file_is_a_function_of_the_markets_seed(
    cli: Callable[..., Any], tmp_path: Path
) -> None:
    for name, seeds in (("a", "0 0"), ("b", "0 7"), ("c", "1 0")):
        market_seed, seed = seeds.split()
        options = (f"market.seed={market_seed}", f"seed={seed}", f"run.dir=run_{name}")
        ended = cli("trace", "action=generate", *MARKET, *options, f"out={name}.parquet")
        assert ended.code == 0, ended.err
    a, b, c = (tmp_path / f"{name}.parquet" for name in "abc")
    assert a.read_bytes() == b.read_bytes()
    assert not np.array_equal(read(a).arrival_s, read(c).arrival_s)
    assert read(a).sha256 == generate(SPEC).sha256


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["action=import"], "out=null: action=import needs a file to write, as out=x.parquet"),
        (["action=generate"], "out=null: action=generate needs a file"),
        (["action=generate", "out=sub/x.parqet"], "out=sub/x.parqet: cannot write '.parqet'"),
        (["action=import", "out=x"], "out=x: cannot write ''"),
        (["action=generate", "out=x.csv", "market.models=0"], "market.models=0: expected more"),
        (["action=import", "out=x.csv", "trace.path=none.csv"], "none.csv"),
        (["trace.path=none.parquet"], "none.parquet"),
        (["trace.duration_s=60", "trace.start_s=9000"], "trace.start_s=9000: no request"),
        (["action=describ"], "action='describ'"),
        (["trace.where=a=b"], "trace.where=a=b"),
    ],
)
def test_a_refused_call_leaves_no_file(
    cli: Callable[..., Any], tmp_path: Path, arguments: list[str], message: str
) -> None:
    ended = cli("trace", *arguments)
    assert ended.code == 2
    assert message in ended.err
    assert len(ended.err.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []
