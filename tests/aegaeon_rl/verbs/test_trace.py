"""`trace` end to end: facts, conversion, generated markets; nothing is left of a refused call."""

import json
from collections.abc import Callable
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import pytest

from traces import TraceKind, describe, read
from traces.market import MarketSpec, generate
from traces.public import PUBLIC, PublicSet
from traces.writing import write

MARKET = ("market.models=5", "market.duration_s=200", "market.rate_rps=2", "market.name=tiny")
SPEC = MarketSpec(name="tiny", models=5, duration_s=200.0, rate_rps=2.0, seed=4)


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
    assert files == {"config.yaml", "report.html", "results.parquet", "summary.json"}


def test_describe_knows_the_bundled_trace(cli: Callable[..., Any], tmp_path: Path) -> None:
    assert cli("trace", "trace.duration_s=60").code == 0
    (folder,) = (tmp_path / "runs" / "trace").iterdir()
    assert summary(folder)["trace"]["name"] == "market_demo"


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


def test_text_file_of_a_market_is_no_log_where_its_kind_is_named(
    cli: Callable[..., Any], tmp_path: Path
) -> None:
    write(generate(SPEC), tmp_path / "tiny.csv")
    named = ("trace.path=tiny.csv", "trace.kind=semi-synthetic", "out=tiny.parquet")
    ended = cli("trace", "action=import", *named)
    assert ended.code == 0, ended.err
    assert read(tmp_path / "tiny.parquet").kind is TraceKind.SEMI_SYNTHETIC


def test_generated_file_is_a_function_of_the_markets_seed(
    cli: Callable[..., Any], tmp_path: Path
) -> None:
    for name, seeds in (("a", "4 0"), ("b", "4 7"), ("c", "1 0")):
        market_seed, seed = seeds.split()
        options = (f"market.seed={market_seed}", f"seed={seed}", f"run.dir=run_{name}")
        ended = cli("trace", "action=generate", *MARKET, *options, f"out={name}.parquet")
        assert ended.code == 0, ended.err
    a, b, c = (tmp_path / f"{name}.parquet" for name in "abc")
    assert a.read_bytes() == b.read_bytes()
    assert not np.array_equal(read(a).arrival_s, read(c).arrival_s)
    assert read(a).sha256 == generate(SPEC).sha256


@pytest.mark.parametrize("as_file", [True, False])
def test_compose_takes_steps_from_the_line_or_a_file(
    cli: Callable[..., Any], source: str, tmp_path: Path, as_file: bool
) -> None:
    lines = ["read tiny.parquet", "thin 0.5 seed=1", "merge tiny.parquet prefix=b-", "retime 6.4"]
    (tmp_path / "recipe.yaml").write_text("".join(f"- {line}\n" for line in lines))
    chosen = "recipe=recipe.yaml" if as_file else f"steps={json.dumps(lines)}"
    ended = cli("trace", "action=compose", chosen, "out=both.parquet", "run.dir=run")
    assert ended.code == 0, ended.err
    written, told = read(tmp_path / "both.parquet"), summary(tmp_path / "run")
    assert written.rate_rps == pytest.approx(6.4)
    assert set(written.models) == {m for name in generate(SPEC).models for m in (name, f"b-{name}")}
    assert told["trace"]["sha256"] == written.sha256
    assert told["trace"]["kind"] == written.kind == "synthetic"
    assert told["trace"]["lineage"] == list(written.lineage[:-1])
    assert written.lineage[1:3] == ("read tiny.parquet", "thin 0.5 seed=1")


def test_compose_starts_from_the_trace_that_is_named(
    cli: Callable[..., Any], source: str, tmp_path: Path
) -> None:
    cut = ("trace.duration_s=100", "steps=[keep model-000]")
    ended = cli("trace", "action=compose", source, *cut, "out=one.csv")
    assert ended.code == 0, ended.err
    expected = generate(SPEC).window(0, 100).select_models(["model-000"])
    assert read(tmp_path / "one.csv").requests == expected.requests


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1", "recipe=r.yaml: expected a list of steps, as '- thin 0.5'"),
        ("- [1]", "recipe=r.yaml: expected a list of steps"),
        ("- 'x", "recipe=r.yaml: while scanning a quoted scalar"),
    ],
)
def test_a_recipe_that_is_no_list_is_refused_in_a_line(
    cli: Callable[..., Any], tmp_path: Path, text: str, message: str
) -> None:
    (tmp_path / "r.yaml").write_text(text)
    ended = cli("trace", "action=compose", "recipe=r.yaml", "out=x.csv")
    assert (ended.code, len(ended.err.splitlines())) == (2, 1)
    assert message in ended.err


def test_streamed_market_is_described_in_part(cli: Callable[..., Any], tmp_path: Path) -> None:
    ended = cli("trace", "trace.name=paper", "trace.duration_s=900", "run.dir=run")
    assert ended.code == 0, ended.err
    assert "paper (synthetic): " in ended.out
    assert "779 models" not in ended.out  # those with a request


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["action=compose", "out=x.csv"], "steps=[]: expected at least one"),
        (["action=compose", "steps=[thin 0.5]"], "out=null: action=compose needs a file"),
        (
            ["action=compose", "out=a/x.csv", "steps=[market paper,thn 0.5]"],
            "step 2 'thn 0.5': no such step; did you mean 'thin'?",
        ),
        (["action=compose", "out=x.csv", "recipe=no.yaml"], "recipe=no.yaml: [Errno 2] No such"),
        (["action=generate", "out=a/x.csv", "market.rate_rps=1e-9"], "no request falls in 3600 s"),
        (
            ["action=compose", "out=a/x.csv", "steps=[market market_demo,window 1e8]"],
            "trace market_demo: no requests after: window start_s=1e+08: expected at least one",
        ),
        (["steps=[thin 0.5]"], "steps: action=describe has no steps; did you mean action=compose?"),
        (["action=import", "recipe=r.yaml", "out=x.csv"], "recipe: action=import has no steps"),
        (
            ["action=generate", "trace.path=x.csv", "out=x.csv"],
            "trace: action=generate reads no trace; expected keys of market alone",
        ),
        (["out=x.csv"], "out=x.csv: action=describe writes no trace; did you mean action=import?"),
        (["action=import"], "out=null: action=import needs a file to write, as out=x.parquet"),
        (["action=generate"], "out=null: action=generate needs a file"),
        (["action=generate", "out=sub/x.parqet"], "out=sub/x.parqet: cannot write '.parqet'"),
        (["action=import", "out=x"], "out=x: cannot write ''"),
        (["action=generate", "out=x.csv", "market.models=0"], "market.models=0: expected more"),
        (["action=import", "out=x.csv", "trace.path=none.csv"], "none.csv"),
        (["trace.path=none.parquet"], "none.parquet"),
        (["trace.duration_s=60", "trace.start_s=9000"], "trace.start_s=9000: no request"),
        (["action=describ"], "action='describ'"),
        (["action=fetch", "trace.name=burst"], "trace.name=burst: no public set; did you mean"),
        (["action=fetch", "trace.path=x.csv"], "trace.path=x.csv: action=fetch takes trace.name"),
        (["trace.name=burstgpt_1"], "trace.name=burstgpt_1: not fetched yet"),
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


def test_fetch_gets_a_public_set_and_writes_it_as_a_trace(
    cli: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = "2023-11-16 18:15:46.5,374,44\n2023-11-16 18:15:50.5,396,109\n"
    web = tmp_path / "web"
    web.mkdir()
    (web / "tiny.csv").write_text("TIMESTAMP,ContextTokens,GeneratedTokens\n" + rows)
    monkeypatch.setenv("AEGAEON_RL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    handler = partial(SilentHandler, directory=str(web))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as http:
        Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01}).start()
        url = f"http://127.0.0.1:{http.server_port}/tiny.csv"
        public = PublicSet(url=url, licence="CC BY 4.0", citation="Someone")
        monkeypatch.setitem(PUBLIC, "tiny", public)
        ended = cli("trace", "action=fetch", "trace.name=tiny", "out=tiny.parquet", "run.dir=run")
        http.shutdown()
    assert ended.code == 0, ended.err
    said = ended.out.splitlines()
    assert said[0] == "tiny: licence CC BY 4.0; cite: Someone"
    assert said[1].startswith("tiny: no SHA-256 is published; trusted on first use and recorded: ")
    assert str(tmp_path / "cache" / "traces" / "tiny.csv") in said
    trace = read(tmp_path / "tiny.parquet")
    assert (trace.arrival_s.tolist(), trace.licence) == ([0.0, 4.0], "CC BY 4.0")
    assert summary(tmp_path / "run")["trace"]["kind"] == "log"
    assert cli("trace", "trace.name=tiny").code == 0


class SilentHandler(SimpleHTTPRequestHandler):
    """Serves a folder without a word."""

    def log_message(self, format: str, *args: Any) -> None:
        pass
