"""The controller's ends of its sockets: frames to messages, messages to frames."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from typing import cast

import msgspec

from runtime.service.frames import FrameError, Frames, frame
from runtime.service.messages import FromHttp, FromWorker, Logprob, Report, Tokens


class WorkerLink(asyncio.Protocol):
    """`take` gets every message, `lost` a line when the worker is gone or talks nonsense."""

    def __init__(self, take: Callable[[FromWorker], None], lost: Callable[[str], None]) -> None:
        self._take, self._lost = take, lost
        self._frames: Frames[FromWorker] = Frames(FromWorker)  # type: ignore[arg-type]
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        try:
            for message in self._frames.feed(data):
                self._take(message)
        except FrameError as error:
            self._lost(str(error))

    def connection_lost(self, error: Exception | None) -> None:
        self._lost("its process has ended")

    def send(self, messages: Iterable[msgspec.Struct]) -> None:
        assert self._transport is not None
        self._transport.write(b"".join(map(frame, messages)))

    def close(self) -> None:
        """At once: what a hung worker never read would else keep a descriptor in the loop that
        the next worker's socket may be given."""
        if self._transport is not None:
            self._transport.abort()


class HttpLink(asyncio.Protocol):
    """`say` and `tokens` collect, `flush` sends: one write for all that happened at a boundary."""

    def __init__(self, take: Callable[[FromHttp], None]) -> None:
        self._take = take
        self._frames: Frames[FromHttp] = Frames(FromHttp)  # type: ignore[arg-type]
        self._transport: asyncio.Transport | None = None
        self._out: list[bytes] = []
        self.closed = asyncio.Event()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        try:
            for message in self._frames.feed(data):
                self._take(message)
        except FrameError:
            self.close()

    def connection_lost(self, error: Exception | None) -> None:
        self.closed.set()

    def tokens(self, report: Report) -> None:
        logprobs: tuple[Logprob | None, ...] = report.logprobs if any(report.logprobs) else ()
        self.say(Tokens(ids=report.ids, tokens=report.tokens, logprobs=logprobs))

    def say(self, message: msgspec.Struct) -> None:
        self._out.append(frame(message))

    def flush(self) -> None:
        if self._out and self._transport is not None:
            self._transport.write(b"".join(self._out))
            self._out.clear()

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()
