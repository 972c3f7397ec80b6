"""A server on a free loopback port, in a thread of the test's process, before a fake controller."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import uvloop
from byte_tokenizer import VOCAB, BareTokenizer, ByteTokenizer
from fake_controller import FakeController

from runtime.service.http.cards import Card
from runtime.service.http.process import bind, serve, url_of
from runtime.service.spec import Limits, ServerSpec

CONTEXT = 512
ADMIN, PLAIN, SMALL = "sk-admin-1234", "sk-plain-1234", "sk-small-1234"
KEYS = f"""
boss: {{key: {ADMIN}, is_admin: true}}
plain: {{key: {PLAIN}}}
small: {{key: {SMALL}, requests_per_minute: 2, tokens_per_minute: 100}}
"""


def card(name: str, tokenizer: ByteTokenizer) -> Card:
    return Card(name=name, tokenizer=tokenizer, context_tokens=CONTEXT, vocab=VOCAB, created=1)


CARDS = {
    "tiny/a": card("tiny/a", ByteTokenizer()),
    "tiny-b": card("tiny-b", ByteTokenizer()),
    "bare": card("bare", BareTokenizer()),
}


@dataclass(frozen=True)
class Served:
    url: str
    address: tuple[str, int]
    controller: FakeController
    thread: threading.Thread

    def raw(self, sent: bytes, *, timeout_s: float = 10) -> bytes:
        """All that comes back for these bytes, until the server hangs up."""
        with socket.create_connection(self.address, timeout_s) as client:
            client.sendall(sent)
            received = b""
            try:
                while piece := client.recv(1 << 16):
                    received += piece
            except ConnectionResetError:
                pass
            return received


@contextmanager
def served(
    controller: FakeController,
    *,
    limits: Limits | None = None,
    keys_file: Path | None = None,
    send_buffer_bytes: int | None = None,
) -> Iterator[Served]:
    keys = str(keys_file) if keys_file is not None else None
    spec = ServerSpec(port=0, limits=limits or Limits(), keys_file=keys)
    listener = bind(spec)
    url, address = url_of(listener), listener.getsockname()[:2]
    if send_buffer_bytes is not None:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, send_buffer_bytes)
    link = controller.start()

    def run() -> None:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(serve(link, listener, spec, CARDS))

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        yield Served(url, address, controller, thread)
    finally:
        controller.stop()
        thread.join(10)
        assert not thread.is_alive()
