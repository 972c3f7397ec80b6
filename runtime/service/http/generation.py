"""Requests to the controller and what comes back for them, as text."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import NamedTuple

from runtime.engine.text import TextStream
from runtime.service.http.cards import Card
from runtime.service.http.errors import ApiError, of_ending
from runtime.service.http.link import Inbox, Item, Link
from runtime.service.messages import Ask, Ended, Logprob


class Piece(NamedTuple):
    """What one choice got since its last piece. `finish`: stop or length, with the last."""

    choice: int
    text: str
    tokens: tuple[int, ...]
    logprobs: tuple[Logprob, ...]
    finish: str | None


class Usage(NamedTuple):
    prompt_tokens: int
    completion_tokens: int

    def as_dict(self) -> dict[str, int]:
        return {**self._asdict(), "total_tokens": sum(self)}


class Generation:
    """The choices of one response. `spend` hears of each number of tokens made.

    Use as a context: whatever has not ended at its exit is dropped.
    """

    def __init__(
        self, link: Link, card: Card, asks: Sequence[Ask], spend: Callable[[int], None]
    ) -> None:
        self.completion_tokens = 0
        self._link, self._asks, self._spend = link, asks, spend
        self._inbox = Inbox()
        self._texts = [TextStream(card.decoder, ask.stop_strings) for ask in asks]
        self._open = len(asks)
        self._timer: asyncio.TimerHandle | None = None

    async def start(self, limit_s: float) -> None:
        """Send the requests; they may take `limit_s` in all. Raises ApiError."""
        loop = asyncio.get_running_loop()
        fault = ApiError(504, f"the request took more than {limit_s:g} s", code="timeout")
        self._timer = loop.call_later(limit_s, self._inbox.fail, fault)
        try:
            await self._link.ask(self._asks, self._inbox)
        except BaseException:
            self._timer.cancel()
            raise

    def client_gone(self) -> None:
        self._inbox.fail(ClientGoneError())

    def __enter__(self) -> Generation:
        return self

    def __exit__(self, *_: object) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._link.drop([ask.id for ask in self._asks])

    @property
    def is_open(self) -> bool:
        return self._open > 0

    async def take(self) -> list[Piece]:
        """What has come since, one piece a choice. Raises ApiError where one is not served."""
        items = await self._inbox.take()
        if len(items) == 1:
            return [self._piece(items[0].choice, items)]
        by_choice: dict[int, list[Item]] = {}
        for item in items:
            by_choice.setdefault(item.choice, []).append(item)
        return [self._piece(choice, some) for choice, some in by_choice.items()]

    def _piece(self, choice: int, items: list[Item]) -> Piece:
        text = self._texts[choice]
        ended = items[-1].ended
        tokens = tuple([item.token for item in items if item.ended is None])
        logprobs = tuple([item.logprob for item in items if item.logprob is not None])
        self.completion_tokens += len(tokens)
        if tokens:
            self._spend(len(tokens))
        words = text.push(*tokens) if tokens else ""
        if ended is None:
            return Piece(choice, words, tokens, logprobs, None)
        finish = self._finished(ended)
        words += text.finish()
        return Piece(choice, words, tokens, logprobs, "stop" if text.stopped else finish)

    def _finished(self, ended: Ended) -> str:
        fault = of_ending(ended)
        if fault is not None:
            raise fault
        self._open -= 1
        return str(ended.end)


class ClientGoneError(ApiError):
    """Nobody reads the answer any more."""

    def __init__(self) -> None:
        super().__init__(499, "the client left", code="client_gone")
