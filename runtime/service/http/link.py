"""The HTTP process's end of the socket to the controller.

What the controller sends is sorted into the inbox of the response it belongs to as it is read: a
response that its client reads slowly holds up no other, and one that falls too far behind is
given up. When the controller is gone all that waits hears of it.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Sequence
from typing import Any, NamedTuple, cast

from runtime.service.frames import FrameError, Frames, frame
from runtime.service.http.errors import ApiError, unavailable
from runtime.service.messages import (
    Ask,
    Call,
    Drop,
    Ended,
    FromHttp,
    Logprob,
    Reply,
    ToHttp,
    Tokens,
)

logger = logging.getLogger("aegaeon_rl.http")
MOST_BEHIND = 16_384  # items that may wait for one client
CALL_S = 30.0  # to answer a call
WRITE_S = 5.0  # to take a request


class Item(NamedTuple):
    """What came for one choice: a token, or its end."""

    choice: int
    token: int = 0
    logprob: Logprob | None = None
    ended: Ended | None = None


class Inbox:
    """What has come for the choices of one response and is not sent yet."""

    __slots__ = ("_fault", "_items", "_waiter")

    def __init__(self) -> None:
        self._items: list[Item] = []
        self._fault: ApiError | None = None
        self._waiter: asyncio.Future[None] | None = None

    def put(self, item: Item) -> None:
        self._items.append(item)
        if len(self._items) > MOST_BEHIND:
            self.fail(ApiError(408, "the client reads too slowly", code="slow_client"))
        self._wake()

    def fail(self, fault: ApiError) -> None:
        """No more comes: the next `take` raises this."""
        if self._fault is None:
            self._fault = fault
            self._items.clear()
        self._wake()

    async def take(self) -> list[Item]:
        """All that has come since, at least one item. Raises what `fail` was given."""
        while not self._items:
            if self._fault is not None:
                raise self._fault
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter
        items, self._items = self._items, []
        return items

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


class Link(asyncio.Protocol):
    """Asks, drops and calls; `closed` is set once the controller is gone."""

    def __init__(self) -> None:
        self.closed = asyncio.Event()
        self._frames: Frames[ToHttp] = Frames(ToHttp)  # type: ignore[arg-type]
        self._transport: asyncio.Transport | None = None
        self._writable = asyncio.Event()
        self._writable.set()
        self._inboxes: dict[int, tuple[Inbox, int]] = {}  # by request: where, which choice
        self._calls: dict[int, asyncio.Future[Reply]] = {}
        self._next = time.time_ns() // 1_000_000  # above those of an HTTP process before this one

    @property
    def in_flight(self) -> int:
        """Requests that were asked and neither ended nor were dropped."""
        return len(self._inboxes)

    def next_id(self) -> int:
        self._next += 1
        return self._next

    async def ask(self, asks: Sequence[Ask], inbox: Inbox) -> None:
        """Send requests; what comes for the i-th goes to `inbox` as choice i."""
        await self._ready()
        for choice, ask in enumerate(asks):
            self._inboxes[ask.id] = inbox, choice
        self._write(*asks)

    def drop(self, ids: Sequence[int]) -> None:
        """These need no more tokens; those that have ended are left out."""
        alive = [Drop(id=id) for id in ids if self._inboxes.pop(id, None) is not None]
        if alive and not self.closed.is_set():
            self._write(*alive)

    async def call(
        self, name: str, arguments: dict[str, Any] | None = None, *, by: str = ""
    ) -> Any:
        """The controller's answer to a call; its refusal is a 400, silence a 504."""
        await self._ready()
        number = self.next_id()
        reply = self._calls[number] = asyncio.get_running_loop().create_future()
        try:
            self._write(Call(call=number, name=name, arguments=arguments or {}, by=by))
            async with asyncio.timeout(CALL_S):
                answer = await reply
        except TimeoutError:
            raise ApiError(504, f"{name}: no answer in {CALL_S:g} s", code="timeout") from None
        finally:
            del self._calls[number]
        if answer.error is not None:
            raise ApiError(400, answer.error, code="refused")
        return answer.value

    async def _ready(self) -> None:
        """Wait until the controller takes more. Raises ApiError when it is gone or stuck."""
        if self.closed.is_set():
            raise unavailable("the controller is gone", "controller_gone")
        try:
            async with asyncio.timeout(WRITE_S):
                await self._writable.wait()
        except TimeoutError:
            raise unavailable("the controller takes no requests", "controller_busy") from None

    def _write(self, *messages: FromHttp) -> None:
        assert self._transport is not None
        self._transport.write(b"".join(map(frame, messages)))

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is no subclass

    def data_received(self, data: bytes) -> None:
        try:
            for message in self._frames.feed(data):
                self._sort(message)
        except FrameError:
            logger.exception("the controller's frames")
            assert self._transport is not None
            self._transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self.closed.set()
        self._writable.set()
        fault = unavailable("the controller is gone", "controller_gone")
        for inbox, _ in self._inboxes.values():
            inbox.fail(fault)
        self._inboxes.clear()
        for reply in self._calls.values():
            if not reply.done():
                reply.set_exception(fault)

    def pause_writing(self) -> None:
        self._writable.clear()

    def resume_writing(self) -> None:
        self._writable.set()

    def _sort(self, message: ToHttp) -> None:
        if isinstance(message, Tokens):
            self._sort_tokens(message)
        elif isinstance(message, Ended):
            inbox, choice = self._inboxes.pop(message.id, (None, 0))
            if inbox is not None:
                inbox.put(Item(choice, ended=message))
        else:
            reply = self._calls.get(message.call)
            if reply is not None and not reply.done():
                reply.set_result(message)

    def _sort_tokens(self, message: Tokens) -> None:
        inboxes, logprobs = self._inboxes, message.logprobs
        for at, (id, token) in enumerate(zip(message.ids, message.tokens, strict=True)):
            found = inboxes.get(id)
            if found is not None:
                found[0].put(Item(found[1], token, logprobs[at] if logprobs else None))
