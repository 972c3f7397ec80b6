"""The `openai` client against `aegaeon-rl serve` with 8 tiny models on 2 CPU instances."""

from __future__ import annotations

import asyncio
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx2
import openai
import pytest

pytestmark = pytest.mark.long
MODELS = {
    f"{kind}-{seed}": f"tiny:{kind}:{seed}" for seed in range(4) for kind in ("llama", "qwen3")
}
START_S = 240.0
COMMAND = "import sys; from aegaeon_rl.cli import main; sys.argv[0] = 'aegaeon-rl'; main()"


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("serve")
    listed = folder / "models.yaml"
    listed.write_text("".join(f"{name}: {path}\n" for name, path in MODELS.items()))
    arguments = ["serve", f"file={listed}", "server.port=0", f"run.dir={folder / 'run'}"]
    output = folder / "output"
    with output.open("w") as file:
        server = subprocess.Popen(
            [sys.executable, "-c", COMMAND, *arguments], stdout=file, stderr=subprocess.STDOUT
        )
    try:
        yield address_in(output, server)
        server.send_signal(signal.SIGTERM)
        assert server.wait(60) == 0
    finally:
        server.kill()
        server.wait()


def address_in(output: Path, server: subprocess.Popen[bytes]) -> str:
    deadline_s = time.monotonic() + START_S
    while time.monotonic() < deadline_s:
        found = re.search(r"http://127\.0\.0\.1:\d+", output.read_text())
        if found:
            return found.group()
        assert server.poll() is None, output.read_text()
        time.sleep(0.1)
    raise AssertionError(output.read_text())


@pytest.fixture
def client(url: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=120) as made:
        yield made


def test_every_model_says_the_same_streaming_or_not_alone_or_among_others(
    url: str, client: openai.OpenAI
) -> None:
    assert [model.id for model in client.models.list()] == list(MODELS)

    def alone(model: str) -> str:
        answer = client.completions.create(
            model=model, prompt="Once upon", max_tokens=24, temperature=0
        )
        return answer.choices[0].text

    async def together() -> list[tuple[str, int]]:
        async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none", timeout=120) as many:

            async def streamed(model: str) -> tuple[str, int]:
                stream = await many.completions.create(
                    model=model,
                    prompt="Once upon",
                    max_tokens=24,
                    temperature=0,
                    stream=True,
                    stream_options={"include_usage": True},
                )
                *chunks, last = [chunk async for chunk in stream]
                text = "".join(chunk.choices[0].text for chunk in chunks)
                return text, last.usage.completion_tokens if last.usage is not None else 0

            return list(await asyncio.gather(*(streamed(model) for model in [*MODELS] * 4)))

    texts = {model: alone(model) for model in MODELS}
    assert len(set(texts.values())) == len(MODELS)
    for model, (text, tokens) in zip([*MODELS] * 4, asyncio.run(together()), strict=True):
        assert text == texts[model]
        assert 0 < tokens <= 24


def test_chats_take_seeds_choices_stops_and_logprobs(client: openai.OpenAI) -> None:
    keys = {"model": "llama-0", "messages": [{"role": "user", "content": "hi"}], "seed": 5}
    first, again = (
        client.chat.completions.create(**keys, n=3, max_tokens=12, logprobs=True, top_logprobs=2)
        for _ in range(2)
    )
    said = [choice.message.content for choice in first.choices]
    assert said == [choice.message.content for choice in again.choices]
    assert len(set(said)) == 3
    logprobs = first.choices[0].logprobs
    assert logprobs is not None
    assert all(entry.logprob < 0 and len(entry.top_logprobs) == 2 for entry in logprobs.content)
    stop = next(letter for letter in said[0][2:] if letter.isascii())
    stopped = client.chat.completions.create(**keys, max_tokens=12, stop=stop)
    assert stopped.choices[0].message.content == said[0].partition(stop)[0]
    assert stopped.choices[0].finish_reason == "stop"


def test_a_client_that_leaves_frees_its_place(url: str, client: openai.OpenAI) -> None:
    stream = client.completions.create(
        model="qwen3-1",
        prompt="x",
        max_tokens=2000,
        stream=True,
        extra_body={"ignore_eos": True},
    )
    next(iter(stream))
    stream.close()
    deadline_s = time.monotonic() + 30
    while httpx2.get(f"{url}/admin/state").json()["requests_in_flight"]:
        assert time.monotonic() < deadline_s
        time.sleep(0.05)


def test_health_metrics_and_operators_calls_are_answered(url: str) -> None:
    assert httpx2.get(f"{url}/health").json()["status"] == "ok"
    assert "# HELP" in httpx2.get(f"{url}/metrics").text
    assert {entry["name"] for entry in httpx2.get(f"{url}/admin/models").json()} == set(MODELS)
    answer = httpx2.post(f"{url}/admin/policy", json={"name": "nope"})
    assert answer.status_code == 400
    assert "\n" not in answer.json()["error"]["message"]
