"""/v1/completions: text goes on."""

from __future__ import annotations

import time
from collections.abc import Sequence
from itertools import chain
from typing import Any

import msgspec
from fastapi import APIRouter, Request
from starlette.responses import Response

from runtime.service.http.body import checked, decoded, read_body
from runtime.service.http.cards import Card, ChatTokenizer, card_of
from runtime.service.http.errors import ApiError
from runtime.service.http.fields import NEUTRAL, Common, TokenId, TopCount
from runtime.service.http.front import Front
from runtime.service.http.generation import Piece, Usage
from runtime.service.http.logprobs import finite, token_text, tops
from runtime.service.messages import Logprob

DEFAULT_TOKENS = 16  # as OpenAI's
UNSUPPORTED = NEUTRAL | {"suffix": ("",), "best_of": (1,)}

_json = msgspec.json.Encoder().encode


class CompletionBody(Common, kw_only=True, forbid_unknown_fields=True):
    """`prompt`: a text, token ids, or a list of either; `logprobs`: of how many of the likeliest
    tokens, beside the chosen one."""

    prompt: str | list[str | TokenId | list[TokenId]]
    logprobs: TopCount | None = None
    echo: bool | None = None


def texts_or_tokens(prompt: Any) -> list[str | list[int]]:
    """The prompts that a body names, each a text or token ids. Raises ApiError."""
    if isinstance(prompt, str):
        return [prompt]
    if prompt and all(isinstance(part, int) for part in prompt):
        return [prompt]
    if prompt and not any(isinstance(part, int) for part in prompt):
        return list(prompt)
    reason = "prompt: expected a text, token ids, or a list of either, not empty"
    raise ApiError(400, reason, param="prompt", code="invalid_value")


class CompletionWire:
    """`echoes`: what stands before the text of each choice, where it was asked for."""

    def __init__(
        self,
        id: str,
        card: Card,
        *,
        has_logprobs: bool,
        has_usage: bool,
        echoes: Sequence[str] = (),
    ) -> None:
        self._tokenizer, self._has_logprobs, self._echoes = card.tokenizer, has_logprobs, echoes
        self._head = {
            "id": f"cmpl-{id}",
            "object": "text_completion",
            "created": int(time.time()),
            "model": card.name,
        }
        self._start = b"data: " + _json(self._head)[:-1] + b',"choices":[{"index":'
        self._end = b'}],"usage":null}\n\n' if has_usage else b"}]}\n\n"
        self._offsets: dict[int, int] = {}

    def opening(self, choice: int) -> bytes:
        if not self._echoes:
            return b""
        return self.event(Piece(choice, self._echoes[choice], (), (), None))

    def event(self, piece: Piece) -> bytes:
        choice, text, _, _, finish = piece
        start = b'%s%d,"text":%s,"logprobs":' % (self._start, choice, _json(text))
        logprobs = _json(self._logprobs(piece)) if self._has_logprobs else b"null"
        end = b',"finish_reason":null' if finish is None else b',"finish_reason":' + _json(finish)
        return start + logprobs + end + self._end

    def usage_event(self, usage: Usage) -> bytes:
        return b"data: " + _json({**self._head, "choices": [], "usage": usage.as_dict()}) + b"\n\n"

    def whole(self, choices: Sequence[Sequence[Piece]], usage: Usage) -> bytes:
        listed = [
            {
                "index": index,
                "text": (self._echoes[index] if self._echoes else "") + joined(pieces).text,
                "logprobs": self._logprobs(joined(pieces)) if self._has_logprobs else None,
                "finish_reason": pieces[-1].finish,
            }
            for index, pieces in enumerate(choices)
        ]
        return _json({**self._head, "choices": listed, "usage": usage.as_dict()})

    def _logprobs(self, piece: Piece) -> dict[str, Any]:
        texts = [token_text(self._tokenizer, token) for token in piece.tokens]
        return {
            "tokens": texts,
            "token_logprobs": [finite(entry.own) for entry in piece.logprobs],
            "top_logprobs": [top_texts(self._tokenizer, entry) for entry in piece.logprobs],
            "text_offset": self._placed(piece.choice, texts),
        }

    def _placed(self, choice: int, texts: Sequence[str]) -> list[int]:
        """Where each token's text begins."""
        echo = len(self._echoes[choice]) if self._echoes else 0
        at, offsets = self._offsets.get(choice, echo), []
        for text in texts:
            offsets.append(at)
            at += len(text)
        self._offsets[choice] = at
        return offsets


def top_texts(tokenizer: ChatTokenizer, entry: Logprob) -> dict[str, float]:
    return {token_text(tokenizer, token): value for token, value in tops(entry)}


def joined(pieces: Sequence[Piece]) -> Piece:
    """All of a choice as one piece."""
    return Piece(
        pieces[0].choice,
        "".join(piece.text for piece in pieces),
        tuple(chain.from_iterable(piece.tokens for piece in pieces)),
        tuple(chain.from_iterable(piece.logprobs for piece in pieces)),
        pieces[-1].finish,
    )


async def complete(front: Front, request: Request) -> Response:
    client = front.client(request)
    raw = await read_body(request, front.limits)
    front.check_room(1)
    content = decoded(raw)
    body = checked(content, CompletionBody, UNSUPPORTED)
    body.check()
    card = card_of(front.cards, body.model)
    prompts = texts_or_tokens(body.prompt)
    front.check_choices(body.choices * len(prompts))
    tokens = await front.tokenized(
        lambda: [card.tokenizer.encode(p) if isinstance(p, str) else p for p in prompts],
        sum(len(p) for p in prompts if isinstance(p, str)),
    )
    echoes = echoed(card, prompts, body) if body.echo else []
    wire = CompletionWire(
        request.scope["request_id"],
        card,
        has_logprobs=body.logprobs is not None,
        has_usage=body.has_usage,
        echoes=echoes,
    )
    limit = DEFAULT_TOKENS if body.max_tokens is None else body.max_tokens
    return await front.answer(
        request, client, card, body, wire, tokens, max_tokens=limit, logprobs=body.logprobs
    )


def echoed(card: Card, prompts: Sequence[str | list[int]], body: CompletionBody) -> list[str]:
    if body.logprobs is not None:
        reason = "echo with logprobs is not supported"
        raise ApiError(400, reason, param="echo", code="unsupported_field")
    for prompt in prompts:
        if not isinstance(prompt, str):
            card.check_prompt(prompt, card.context_tokens)
    texts = [p if isinstance(p, str) else card.tokenizer.decode(p) for p in prompts]
    return [text for text in texts for _ in range(body.choices)]


def completion_routes(front: Front, **keys: Any) -> APIRouter:
    router = APIRouter()

    @router.post("/v1/completions", tags=["openai"], **keys)
    async def create_completion(request: Request) -> Response:
        """Text that goes on from a prompt; with `stream`, as server-sent events."""
        return await complete(front, request)

    return router
