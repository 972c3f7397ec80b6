"""What the routes share: the link, the models, the keys, the limits."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TypeVar

from fastapi import Request
from starlette.responses import Response

from runtime.service.http.answer import Answer
from runtime.service.http.cards import Card
from runtime.service.http.errors import ApiError, printable, too_many
from runtime.service.http.fields import Common
from runtime.service.http.generation import Generation
from runtime.service.http.keys import Client, Keyring
from runtime.service.http.link import Link
from runtime.service.http.wire import Wire
from runtime.service.messages import Ask
from runtime.service.spec import Limits

INLINE_CHARACTERS = 8192  # longer texts are tokenized in a thread: other streams go on meanwhile

LOOPBACK = re.compile(r"(localhost|.*\.localhost|127\.\d+\.\d+\.\d+|\[::1\])(:\d+)?", re.I)

T = TypeVar("T")


def check_host(host: str | None) -> None:
    """Without keys a name that only resolves to this machine is refused: a page of elsewhere that
    a browser here shows could otherwise ask and order (DNS rebinding). Raises ApiError (403)."""
    if host is not None and not LOOPBACK.fullmatch(host):
        reason = f"host {printable(host)[:80]!r}: expected localhost where there are no API keys"
        raise ApiError(403, reason, code="wrong_host")


@dataclass(slots=True, kw_only=True)
class Front:
    """`cards` may gain and lose models while the service runs."""

    link: Link
    cards: dict[str, Card]
    keys: Keyring = field(default_factory=lambda: Keyring({}))
    limits: Limits = field(default_factory=Limits)
    threads: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(1))

    def client(self, request: Request) -> Client:
        """Who asks. Raises ApiError: 401, or 403 for a page of elsewhere where keys are off."""
        if not self.keys.is_on:
            check_host(request.headers.get("host"))
        return self.keys.client(request.headers.get("authorization"))

    def admin(self, request: Request) -> Client:
        self.client(request)
        return self.keys.admin(request.headers.get("authorization"))

    def check_room(self, requests: int) -> None:
        """Raises ApiError (429) where the queue is full."""
        if self.link.in_flight + requests > self.limits.queue:
            reason = f"{self.link.in_flight} requests are in flight: {self.limits.queue} may be"
            raise too_many(reason, None, code="queue_full")

    async def tokenized(self, make: Callable[[], T], characters: int) -> T:
        """What `make` gives, without holding up other streams where the text is long."""
        if characters <= INLINE_CHARACTERS:
            return make()
        return await asyncio.get_running_loop().run_in_executor(self.threads, make)

    def check_choices(self, count: int) -> None:
        if count > self.limits.choices:
            reason = f"n: {count} choices: expected {self.limits.choices} at most"
            raise ApiError(400, reason, param="n", code="invalid_value")

    async def answer(
        self,
        request: Request,
        client: Client,
        card: Card,
        body: Common,
        wire: Wire,
        prompts: Sequence[Sequence[int]],
        *,
        max_tokens: int | None,
        logprobs: int | None,
    ) -> Response:
        """Start what is asked for: `body.choices` of each prompt, in order."""
        asks = self._asks(
            request, client, card, body, prompts, max_tokens=max_tokens, logprobs=logprobs
        )
        self.check_room(len(asks))
        prompt_tokens = sum(map(len, prompts))
        client.admit(len(asks), prompt_tokens)
        generation = Generation(self.link, card, asks, client.spend)
        await generation.start(self.limits.request_s)
        return Answer(
            generation,
            wire,
            choices=len(asks),
            prompt_tokens=prompt_tokens,
            is_stream=bool(body.stream),
            has_usage=body.has_usage,
            counts_each=body.counts_each,
        )

    def _asks(
        self,
        request: Request,
        client: Client,
        card: Card,
        body: Common,
        prompts: Sequence[Sequence[int]],
        *,
        max_tokens: int | None,
        logprobs: int | None,
    ) -> list[Ask]:
        name: str = request.scope["request_id"]
        several = body.choices * len(prompts) > 1
        asks: list[Ask] = []
        for prompt in prompts:
            card.check_prompt(prompt, self.limits.prompt_tokens)
            limit = card.output_limit(len(prompt), max_tokens)
            for sampling in body.samplings(body.choices, logprobs):
                ask = Ask(
                    id=self.link.next_id(),
                    request_id=f"{name}-{len(asks)}" if several else name,
                    model=card.name,
                    prompt=tuple(prompt),
                    max_tokens=limit,
                    sampling=sampling,
                    stop_tokens=tuple(body.stop_token_ids or ()),
                    stop_strings=body.stops,
                    ignore_eos=bool(body.ignore_eos),
                    priority=body.priority or 0,
                    client=client.name,
                    session=body.session or body.user or "",
                )
                asks.append(ask)
        return asks
