"""`replay` end to end against a fake endpoint: what is sent, what is measured, what goes wrong."""

import json
import os
import signal
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from fake_openai import Fake, Manners, fake_openai

from traces import Trace, TraceKind, read
from traces.writing import write

PROMPT, OUTPUT = 40, 6


def trace_of(requests: int, span_s: float, models: int = 3, output: int = OUTPUT) -> Trace:
    return Trace(
        name="small",
        kind=TraceKind.SYNTHETIC,
        models=tuple(f"m{i}" for i in range(models)),
        model=(np.arange(requests) % models).astype(np.int32),
        arrival_s=np.linspace(0, span_s, requests),
        prompt_tokens=np.full(requests, PROMPT, np.int32),
        output_tokens=np.full(requests, output, np.int32),
    )


@pytest.fixture(autouse=True)
def page(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """Reports take a second to draw: only the test that looks at one has it drawn."""
    if "rows_have" not in request.node.name:
        monkeypatch.setattr("aegaeon_rl.replay.page.render", lambda *_, **__: "")


@pytest.fixture
def replay(cli: Callable[..., Any], tmp_path: Path) -> Callable[..., Any]:
    """`replay(fake, trace, "key=value")`: what it printed, summary, rows."""

    def start(fake: Fake, trace: Trace, *overrides: str) -> tuple[Any, dict[str, Any], Any]:
        write(trace, tmp_path / "t.parquet")
        url = f"replay.url={fake.url}"
        ended = cli("replay", "trace.path=t.parquet", url, "run.dir=run", *overrides)
        folder = tmp_path / "run"
        if not (folder / "summary.json").exists():
            return ended, {}, []
        summary = json.loads((folder / "summary.json").read_text())
        return ended, summary, pq.read_table(folder / "results.parquet").to_pylist()

    return start


def test_requests_leave_at_their_arrival_and_ask_for_their_lengths(replay: Any) -> None:
    with fake_openai(Manners(first_s=0.4)) as fake:
        ended, summary, rows = replay(fake, trace_of(9, 0.8))
    assert ended.code == 0, ended.err
    asked = fake.bodies[1:]  # the first was a question how to ask
    assert [(len(b["prompt"]), b["max_tokens"], b["ignore_eos"]) for b in asked] == [
        (PROMPT, OUTPUT, True)
    ] * 9
    assert [b["model"] for b in asked] == ["a", "b", "a"] * 3  # m0 m1 m2 -> a b a
    at_s = np.array(fake.arrived_s[1:]) - fake.arrived_s[1]
    assert at_s == pytest.approx(np.linspace(0, 0.8, 9), abs=0.3)  # one by one takes 3.6 s
    (result,) = summary["results"]
    assert result["token_attainment"] == result["request_ok"] == 1.0
    assert 0.4 <= result["ttft_p50_s"] < 0.8
    assert result["most_in_flight"] >= 3
    assert (result["failed"], result["switches"]) == (0, None)
    assert {row["output_tokens"] for row in rows} == {OUTPUT}


def test_summary_and_rows_have_what_others_read(replay: Any, tmp_path: Path) -> None:
    with fake_openai() as fake:
        ended, summary, _ = replay(fake, trace_of(6, 0.2), "seed=3")
    contract = {"schema", "verb", "seed", "commit", "trace", "pool", "slo", "profile", "results"}
    assert contract <= set(summary)
    assert (summary["verb"], summary["seed"], summary["trace"]["requests"]) == ("replay", 3, 6)
    assert summary["replay"]["models"] == {"m0": "a", "m1": "b", "m2": "a"}
    again = read(tmp_path / "run" / "results.parquet")  # a request log is a trace
    assert (again.requests, again.models) == (6, ("m0", "m1", "m2"))
    page = (tmp_path / "run" / "report.html").read_text()
    assert summary["answer"] in page
    assert page.count("<svg") == 4
    assert "http://" not in page.replace(fake.url, "").replace("http://www.w3.org", "")
    assert ended.out.splitlines()[-1] == "run"


def test_late_tokens_count_as_the_slo_says(replay: Any) -> None:
    """First tokens after 0.3 s, then one each 50 ms: some beyond 0.2 + i * 0.1."""
    slo = ("slo.ttft_s=0.2", "slo.tbt_s=0.1")
    with fake_openai(Manners(first_s=0.3, step_s=0.05)) as fake:
        _, summary, rows = replay(fake, trace_of(4, 0.4, output=10), *slo)
    for row in rows:
        times = [row["first_token_s"] + 0.05 * i - row["arrival_s"] for i in range(10)]
        assert row["tokens_on_time"] == pytest.approx(
            sum(t <= 0.2 + 0.1 * i for i, t in enumerate(times)), abs=2
        )
        assert 0 < row["tokens_on_time"] < 10
    (result,) = summary["results"]
    share = sum(row["tokens_on_time"] for row in rows) / 40
    assert result["token_attainment"] == pytest.approx(share)
    assert result["tbt_p50_s"] == pytest.approx(0.05, abs=0.02)


@pytest.mark.parametrize(
    ("manners", "dialect", "warned"),
    [
        (Manners(refused=("ids",)), "/v1/completions, prompts of words, outputs ignore_eos", ""),
        (Manners(refused=("plain",), models=("m0", "m1", "m2")),
         "/v1/chat/completions, prompts of words, outputs ignore_eos", ""),
        (Manners(refused=("ignore_eos",), ends_after=2),
         "/v1/completions, prompts of token ids, outputs end at EOS",
         "The endpoint refused ignore_eos: 6 answers ended by themselves"),
        (Manners(refused=("ids", "ignore_eos", "stream_options")),
         "/v1/completions, prompts of words, outputs end at EOS",
         "The endpoint does not count prompt tokens"),
        (Manners(refused=("plain", "ignore_eos", "max_tokens")),
         "/v1/chat/completions, prompts of words, outputs end at EOS", ""),
    ],
)  # fmt: skip
def test_endpoint_is_asked_as_it_can_be(
    replay: Any, manners: Manners, dialect: str, warned: str
) -> None:
    with fake_openai(manners) as fake:
        ended, summary, rows = replay(fake, trace_of(6, 0.1))
    assert ended.code == 0, ended.err
    assert summary["replay"]["dialect"] == dialect
    assert warned in ended.out.replace("\n", " ")
    assert summary["results"][0]["token_attainment"] == 1.0
    if "words" in dialect and not warned:  # two tokens a word and three more
        assert all(abs(row["counted_prompt_tokens"] - PROMPT) <= 1 for row in rows)
    if manners.ends_after:
        assert {(row["output_tokens"], row["due_tokens"]) for row in rows} == {(2, 2)}


@pytest.mark.parametrize("counts_each", [True, False])
def test_events_of_several_tokens_are_counted_as_tokens(replay: Any, counts_each: bool) -> None:
    manners = Manners(tokens_an_event=4, step_s=0.02, counts_each=counts_each)
    with fake_openai(manners) as fake:
        ended, _, rows = replay(fake, trace_of(3, 0.1, output=10))
    assert {row["output_tokens"] for row in rows} == {10}
    assert ("approximate" in ended.out.replace("\n", " ")) is not counts_each


@pytest.mark.parametrize(
    ("manners", "status", "reason", "tokens"),
    [
        (Manners(sheds_from=2), "shed", "the queue is full", 0),
        (Manners(breaks_after=3), "failed", "the server closed the connection", 3),
        (Manners(errs_after=3), "failed", "the worker is lost", 3),
        (Manners(step_s=0.2), "late", "not done within 0.5 s", 3),
    ],
)
def test_what_is_not_served_is_told(
    replay: Any, manners: Manners, status: str, reason: str, tokens: int
) -> None:
    """Its tokens are all due; those that came count."""
    with fake_openai(manners) as fake:
        ended, summary, rows = replay(fake, trace_of(6, 0.1), "replay.timeout_s=0.5")
    assert ended.code == 0, ended.err
    assert {(row["status"], row["reason"]) for row in rows} == {(status, reason)}
    assert all(row["output_tokens"] == pytest.approx(tokens, abs=1) for row in rows)
    (result,) = summary["results"]
    assert (result["failed"], result["qos"]) == (6, 0)
    assert result["token_attainment"] == pytest.approx(tokens / OUTPUT, abs=0.17)
    assert summary["replay"]["statuses"][status] == 6


def test_endpoint_that_dies_ends_the_replay(replay: Any) -> None:
    with fake_openai(Manners(dies_after=4, closes_each=True)) as fake:
        ended, summary, rows = replay(fake, trace_of(60, 6.0), "replay.give_up_s=0.3")
    assert ended.code == 0, ended.err
    statuses = summary["replay"]["statuses"]
    assert statuses["done"] == 3
    assert statuses["failed"] >= 2
    assert statuses["unsent"] > 30
    assert f"{statuses['unsent']} requests were not sent" in ended.out.replace("\n", " ")
    assert len(rows) == 60


def test_interrupted_replay_keeps_what_it_measured(replay: Any) -> None:
    with fake_openai(Manners(step_s=0.1)) as fake:
        timer = threading.Timer(3.0, os.kill, (os.getpid(), signal.SIGINT))
        timer.start()
        ended, summary, _ = replay(fake, trace_of(200, 20.0))
        timer.join()
    assert ended.code == 130
    statuses = summary["replay"]["statuses"]
    assert statuses["cancelled"] + statuses["unsent"] + statuses["done"] == 200
    assert statuses["unsent"] > 100
    assert "Interrupted" in ended.out


def test_kept_connections_serve_again(replay: Any) -> None:
    with fake_openai() as fake:
        replay(fake, trace_of(30, 1.5))
    assert fake.connections <= 2 + 12  # LEAD_S ahead of its arrival a request holds one


def test_key_is_sent_and_never_written(
    replay: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("SOME_KEY", "sk-abc")
    with fake_openai(Manners(key="sk-abc")) as fake:
        refused, *_ = replay(fake, trace_of(3, 0.1))
        ended, summary, _ = replay(fake, trace_of(3, 0.1), "replay.key_env=SOME_KEY")
    assert refused.code == 2
    assert "replay.key_env: the endpoint answers 401 (a key is needed)" in refused.err
    assert (ended.code, summary["results"][0]["token_attainment"]) == (0, 1.0)
    for path in (tmp_path / "run").iterdir():
        assert b"sk-abc" not in path.read_bytes()


def unused_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["replay.url=localhost:8000"], "replay.url=localhost:8000: expected http://HOST:PORT"),
        (["replay.url=http://127.0.0.1:99999"], "expected a port up to 65535"),
        ([f"replay.url=http://127.0.0.1:{unused_port()}"], "expected an OpenAI endpoint"),
        (["replay.key_env=NO_SUCH"], "replay.key_env=NO_SUCH: expected an environment variable"),
        (["replay.models={m0:a,m1:zz,m2:b}"], "replay.models.m1=zz: known: a, b"),
        (["replay.models={m0:a}"], "replay.models: no entry for 'm1' of the trace"),
        (["replay.timeout_s=0"], "replay.timeout_s=0.0: expected at least 0.001"),
        (["replay.api=chat", "replay.prompts=tokens"], "replay.prompts=tokens: a chat has words"),
        (["replay.prompt=words"], "replay.prompt: unknown key; did you mean 'replay.prompts'?"),
        (["slo.models={zz:{ttft_s:1}}"], "slo.models.zz: no such model"),
    ],
)
def test_mistake_is_one_line(replay: Any, overrides: list[str], message: str) -> None:
    with fake_openai() as fake:
        ended, summary, _ = replay(fake, trace_of(3, 0.1), *overrides)
    assert (ended.code, summary) == (2, {})
    assert message in ended.err
    assert ended.err.count("\n") == 1


def test_endpoint_that_refuses_all_is_told(replay: Any) -> None:
    with fake_openai(Manners(refused=("model",))) as fake:
        ended, *_ = replay(fake, trace_of(3, 0.1))
    assert ended.code == 2
    assert "model a: /v1/chat/completions: status 400, not supported: model" in ended.err


def test_thousand_streams_at_once(replay: Any) -> None:
    with fake_openai(Manners(first_s=2.0, step_s=0.3)) as fake:
        ended, summary, _ = replay(fake, trace_of(1000, 1.0, output=2))
    assert ended.code == 0, ended.err
    assert fake.most == 1000
    assert summary["results"][0]["most_in_flight"] == 1000
    assert summary["replay"]["statuses"]["done"] == 1000
