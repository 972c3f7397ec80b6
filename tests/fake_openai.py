"""An OpenAI endpoint for tests: asyncio in a thread, tokens that are words, faults on demand."""

import asyncio
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

END_OF_HEAD = b"\r\n\r\n"


@dataclass(slots=True)
class Manners:
    """How it behaves. A prompt of w words counts as `fixed` + `per_word` * w tokens."""

    models: tuple[str, ...] = ("a", "b")
    first_s: float = 0.0
    step_s: float = 0.0
    tokens_an_event: int = 1
    counts_each: bool = False  # usage in every event
    refused: tuple[str, ...] = ()  # fields and kinds it answers with 400: "ids", "plain", "chat"...
    ends_after: int | None = None  # EOS, unless ignore_eos is taken
    key: str | None = None
    fixed: int = 3
    per_word: int = 2
    sheds_from: int | None = None  # requests from this one on get 429
    breaks_after: int | None = None  # tokens, then the connection closes
    errs_after: int | None = None  # tokens, then an error event
    dies_after: int | None = None  # requests, then it accepts no more
    closes_each: bool = False  # no keep-alive


@dataclass(slots=True)
class Fake:
    manners: Manners
    url: str = ""
    bodies: list[dict[str, Any]] = field(default_factory=list)
    arrived_s: list[float] = field(default_factory=list)
    connections: int = 0
    most: int = 0
    now: int = 0
    server: asyncio.Server | None = None
    pages: dict[str, Callable[[], tuple[str, bytes]]] = field(default_factory=dict)  # kind, content

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            while True:
                head = (await reader.readuntil(END_OF_HEAD)).decode()
                lines = head.split("\r\n")
                fields = dict(line.lower().split(": ", 1) for line in lines[1:] if ": " in line)
                body = await reader.readexactly(int(fields.get("content-length", 0)))
                if not await self.answer(lines[0].split()[1], fields, body, writer):
                    break
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            pass
        finally:
            writer.transport.abort()

    async def answer(
        self, path: str, fields: dict[str, str], body: bytes, writer: asyncio.StreamWriter
    ) -> bool:
        """Does the connection stay?"""
        manners = self.manners
        if path in self.pages and (path != "/pool/state" or not manners.key):
            return page(writer, *self.pages[path]())
        if manners.key and fields.get("authorization") != f"bearer {manners.key}":
            return whole(writer, 401, "a key is needed")
        if path == "/v1/models":
            data = {"data": [{"id": name} for name in manners.models]}
            return whole(writer, 200, data)
        if path in self.pages:
            return page(writer, *self.pages[path]())
        if not body:
            return whole(writer, 404, f"no {path}")
        asked = json.loads(body)
        refusal = self.refusal(path, asked)
        if refusal:
            return whole(writer, 400, refusal)
        self.bodies.append(asked)
        self.arrived_s.append(asyncio.get_running_loop().time())
        n = len(self.bodies)
        if manners.sheds_from is not None and n >= manners.sheds_from:
            return whole(writer, 429, "the queue is full")
        if manners.dies_after is not None and n > manners.dies_after and self.server:
            self.server.close()
            return False
        self.now += 1
        self.most = max(self.most, self.now)
        try:
            return await self.stream(path, asked, writer)
        finally:
            self.now -= 1

    def refusal(self, path: str, asked: dict[str, Any]) -> str:
        said = {*asked, "chat" if "chat" in path else "plain"}
        if isinstance(asked.get("prompt"), list):
            said.add("ids")
        refused = said & set(self.manners.refused)
        return f"not supported: {', '.join(sorted(refused))}" if refused else ""

    async def stream(self, path: str, asked: dict[str, Any], writer: asyncio.StreamWriter) -> bool:
        manners, is_chat = self.manners, path.endswith("chat/completions")
        prompt = asked["messages"][-1]["content"] if is_chat else asked["prompt"]
        words = len(prompt) if isinstance(prompt, list) else len(prompt.split())
        counted = words if isinstance(prompt, list) else manners.fixed + manners.per_word * words
        tokens = asked.get("max_tokens") or asked["max_completion_tokens"]
        reason = "length"
        if manners.ends_after is not None and not asked.get("ignore_eos"):
            tokens, reason = min(tokens, manners.ends_after), "stop"
        connection = "close" if manners.closes_each else "keep-alive"
        head = f"HTTP/1.1 200 OK\r\nConnection: {connection}\r\nTransfer-Encoding: chunked\r\n"
        writer.write(f"{head}Content-Type: text/event-stream; charset=utf-8\r\n\r\n".encode())
        if is_chat:
            event(writer, {"choices": [{"delta": {"role": "assistant", "content": ""}}]})
        await asyncio.sleep(manners.first_s)
        sent = 0
        while sent < tokens:
            if sent:
                await asyncio.sleep(manners.step_s)
            if writer.is_closing():
                return False
            if manners.breaks_after is not None and sent >= manners.breaks_after:
                return False
            if manners.errs_after is not None and sent >= manners.errs_after:
                event(writer, {"error": {"message": "the worker is lost"}})
                break
            step = min(manners.tokens_an_event, tokens - sent)
            sent += step
            text = " word" * step
            choice: dict[str, Any] = {"delta": {"content": text}} if is_chat else {"text": text}
            usage = {"prompt_tokens": counted, "completion_tokens": sent}
            event(writer, {"choices": [choice]} | ({"usage": usage} if manners.counts_each else {}))
        last: dict[str, Any] = {"delta": {}} if is_chat else {"text": ""}
        event(writer, {"choices": [last | {"finish_reason": reason}]})
        if (asked.get("stream_options") or {}).get("include_usage"):
            usage = {"prompt_tokens": counted, "completion_tokens": tokens}
            event(writer, {"choices": [], "usage": usage})
        chunk(writer, b"data: [DONE]\n\n")
        writer.write(b"0\r\n\r\n")
        await writer.drain()
        return not manners.closes_each


def chunk(writer: asyncio.StreamWriter, data: bytes) -> None:
    writer.write(b"%x\r\n%b\r\n" % (len(data), data))


def event(writer: asyncio.StreamWriter, content: dict[str, Any]) -> None:
    chunk(writer, b"data: " + json.dumps(content).encode() + b"\n\n")


def whole(writer: asyncio.StreamWriter, status: int, content: Any) -> bool:
    """An answer in one piece; a text is an error in OpenAI's shape."""
    error = {"error": {"message": content}} if isinstance(content, str) else content
    body = json.dumps(error).encode()
    head = f"HTTP/1.1 {status} X\r\nContent-Type: application/json\r\n"
    writer.write(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
    return True


def page(writer: asyncio.StreamWriter, kind: str, content: bytes) -> bool:
    head = f"HTTP/1.1 200 OK\r\nContent-Type: {kind}\r\nContent-Length: {len(content)}\r\n\r\n"
    writer.write(head.encode() + content)
    return True


@contextmanager
def fake_openai(manners: Manners | None = None) -> Iterator[Fake]:
    """A server on a port of its own, gone with the block."""
    fake = Fake(manners or Manners())
    started, loop = threading.Event(), asyncio.new_event_loop()

    async def main() -> None:
        fake.server = await asyncio.start_server(fake.serve, "127.0.0.1", 0, backlog=2048)
        port = fake.server.sockets[0].getsockname()[1]
        fake.url = f"http://127.0.0.1:{port}"
        started.set()
        await stop.wait()
        fake.server.close()
        tasks = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    stop = asyncio.Event()
    thread = threading.Thread(target=loop.run_until_complete, args=(main(),))
    thread.start()
    started.wait(10)
    try:
        yield fake
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join(10)
        loop.close()
