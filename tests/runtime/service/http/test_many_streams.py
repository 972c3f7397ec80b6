"""A thousand streams at once: each gets all of its tokens, memory stays bounded."""

from __future__ import annotations

import asyncio
import json

import pytest
from fake_controller import FakeController
from http_rig import Served, served

TOKENS = 60


async def streamed(server: Served) -> bytes:
    reader, writer = await asyncio.open_connection(*server.address)
    body = {
        "model": "tiny/a",
        "prompt": "say it ",
        "max_tokens": TOKENS,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    content = json.dumps(body).encode()
    head = b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n"
    kind = b"content-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(content)
    writer.write(head + kind + content)
    received = await reader.read(-1)
    writer.close()
    await writer.wait_closed()
    return received


def text_of(received: bytes) -> str:
    lines = [line for line in received.splitlines() if line.startswith(b"data: {")]
    events = [json.loads(line.removeprefix(b"data: ")) for line in lines]
    assert events[-1]["usage"]["completion_tokens"] == TOKENS
    return "".join(event["choices"][0]["text"] for event in events[:-1])


@pytest.mark.parametrize("streams", [50, pytest.param(1000, marks=pytest.mark.long)])
def test_each_of_many_streams_gets_all_of_its_tokens(streams: int) -> None:
    async def all_at_once(server: Served) -> list[bytes]:
        return await asyncio.gather(*(streamed(server) for _ in range(streams)))

    with served(FakeController(step_s=0.02)) as server:
        for received in asyncio.run(all_at_once(server)):
            assert received.startswith(b"HTTP/1.1 200")
            assert text_of(received) == ("say it " * 9)[:TOKENS]
        assert server.controller.drops == []
