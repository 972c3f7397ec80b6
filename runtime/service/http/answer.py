"""Sends what is generated: as events while it comes, or whole at the end."""

from __future__ import annotations

import asyncio

import msgspec
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from runtime.service.http.errors import ApiError
from runtime.service.http.generation import ClientGoneError, Generation, Piece, Usage
from runtime.service.http.wire import Wire

NO_USAGE = b'"usage":null}\n\n'  # how an event ends where usage was asked for
DONE = b"data: [DONE]\n\n"
EVENT_HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-store"),
    (b"x-accel-buffering", b"no"),
]


class Answer(Response):
    """The response of a generation that has been started.

    Its status waits for what comes first: a request that is not served gets the error as its
    status, one that fails later as a last event.
    """

    def __init__(
        self,
        generation: Generation,
        wire: Wire,
        *,
        choices: int,
        prompt_tokens: int,
        is_stream: bool,
        has_usage: bool,
        counts_each: bool = False,
    ) -> None:
        super().__init__()
        self._generation, self._wire = generation, wire
        self._choices, self._prompt_tokens = choices, prompt_tokens
        self._is_stream, self._has_usage = is_stream, has_usage
        self._counts_each = counts_each
        self._opened: set[int] = set()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        watch = asyncio.create_task(self._watch(receive))
        try:
            with self._generation:
                await (self._stream(send) if self._is_stream else self._send_whole(send))
        except ClientGoneError:
            pass
        except ApiError as fault:
            await fault.response()(scope, receive, send)
        finally:
            watch.cancel()

    async def _watch(self, receive: Receive) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        self._generation.client_gone()

    async def _send_whole(self, send: Send) -> None:
        choices: list[list[Piece]] = [[] for _ in range(self._choices)]
        while self._generation.is_open:
            for piece in await self._generation.take():
                choices[piece.choice].append(piece)
        body = self._wire.whole(choices, self._usage())
        await Response(body, media_type="application/json")({"type": "http"}, _nothing, send)

    async def _stream(self, send: Send) -> None:
        pieces = await self._generation.take()
        await send({"type": "http.response.start", "status": 200, "headers": EVENT_HEADERS})
        try:
            while True:
                events = b"".join(map(self._event, pieces))
                if not self._generation.is_open:
                    break
                await send({"type": "http.response.body", "body": events, "more_body": True})
                pieces = await self._generation.take()
            if self._has_usage:
                events += self._wire.usage_event(self._usage())
            events += DONE
        except ClientGoneError:
            raise
        except ApiError as fault:
            events = b"data: " + fault.body + b"\n\n"
        await send({"type": "http.response.body", "body": events, "more_body": False})

    def _event(self, piece: Piece) -> bytes:
        event = self._wire.event(piece)
        if self._counts_each:
            usage = msgspec.json.encode(self._usage().as_dict())
            event = event.removesuffix(NO_USAGE) + b'"usage":' + usage + b"}\n\n"
        if piece.choice in self._opened:
            return event
        self._opened.add(piece.choice)
        return self._wire.opening(piece.choice) + event

    def _usage(self) -> Usage:
        return Usage(self._prompt_tokens, self._generation.completion_tokens)


async def _nothing() -> dict[str, str]:
    return {"type": "http.disconnect"}
