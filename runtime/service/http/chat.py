"""/v1/chat/completions: messages through the model's own chat template."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Annotated, Any, Literal

import msgspec
from fastapi import APIRouter, Request
from msgspec import Meta, Struct
from starlette.responses import Response

from runtime.service.http.body import checked, decoded, read_body
from runtime.service.http.cards import Card, card_of
from runtime.service.http.completions import joined
from runtime.service.http.errors import ApiError, printable
from runtime.service.http.fields import NEUTRAL, Common, Count, TopCount
from runtime.service.http.front import Front
from runtime.service.http.generation import Piece, Usage
from runtime.service.http.logprobs import finite, token_text, tops

UNSUPPORTED = NEUTRAL | {
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "parallel_tool_calls": (True, False),
    "functions": ([],),
    "function_call": ("none",),
    "modalities": (["text"],),
    "audio": (),
    "prediction": (),
    "reasoning_effort": ("none",),
    "verbosity": (),
    "web_search_options": (),
    "store": (False,),
    "prompt_cache_key": (),
    "safety_identifier": (),
    "chat_template": (),
    "chat_template_kwargs": ({},),
    "add_generation_prompt": (True,),
    "continue_final_message": (False,),
    "echo": (False,),
}
_json = msgspec.json.Encoder().encode


class TextPart(Struct, forbid_unknown_fields=True):
    type: Literal["text"]
    text: str


class Message(Struct, forbid_unknown_fields=True):
    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[TextPart]
    name: str | None = None

    @property
    def text(self) -> str:
        content = self.content
        return content if isinstance(content, str) else "".join(part.text for part in content)


class ChatBody(Common, kw_only=True, forbid_unknown_fields=True):
    messages: Annotated[list[Message], Meta(min_length=1)]
    logprobs: bool | None = None
    top_logprobs: TopCount | None = None
    max_completion_tokens: Count | None = None

    @property
    def wanted_logprobs(self) -> int | None:
        """How many of the likeliest tokens; None: no logprobs at all. Raises ApiError."""
        if self.top_logprobs and not self.logprobs:
            reason = "top_logprobs: only where logprobs is true"
            raise ApiError(400, reason, param="top_logprobs", code="invalid_value")
        return (self.top_logprobs or 0) if self.logprobs else None


class ChatWire:
    def __init__(self, id: str, card: Card, *, has_logprobs: bool, has_usage: bool) -> None:
        self._tokenizer, self._has_logprobs = card.tokenizer, has_logprobs
        self._head = {
            "id": f"chatcmpl-{id}",
            "object": "chat.completion",
            "created": int(time.time()),
            "model": card.name,
        }
        self._chunk_head = {**self._head, "object": "chat.completion.chunk"}
        self._start = b"data: " + _json(self._chunk_head)[:-1] + b',"choices":[{"index":'
        self._end = b'}],"usage":null}\n\n' if has_usage else b"}]}\n\n"

    def opening(self, choice: int) -> bytes:
        delta = b'%d,"delta":{"role":"assistant","content":""},"logprobs":null' % choice
        return self._start + delta + b',"finish_reason":null' + self._end

    def event(self, piece: Piece) -> bytes:
        choice, text, _, _, finish = piece
        start = b'%s%d,"delta":{"content":%s},"logprobs":' % (self._start, choice, _json(text))
        logprobs = _json(self._logprobs(piece)) if self._has_logprobs else b"null"
        end = b',"finish_reason":null' if finish is None else b',"finish_reason":' + _json(finish)
        return start + logprobs + end + self._end

    def usage_event(self, usage: Usage) -> bytes:
        last = {**self._chunk_head, "choices": [], "usage": usage.as_dict()}
        return b"data: " + _json(last) + b"\n\n"

    def whole(self, choices: Sequence[Sequence[Piece]], usage: Usage) -> bytes:
        listed = [
            {
                "index": index,
                "message": {"role": "assistant", "content": joined(pieces).text, "refusal": None},
                "logprobs": self._logprobs(joined(pieces)) if self._has_logprobs else None,
                "finish_reason": pieces[-1].finish,
            }
            for index, pieces in enumerate(choices)
        ]
        return _json({**self._head, "choices": listed, "usage": usage.as_dict()})

    def _logprobs(self, piece: Piece) -> dict[str, Any]:
        content = [
            {
                **self._token(token, entry.own),
                "top_logprobs": [self._token(other, value) for other, value in tops(entry)],
            }
            for token, entry in zip(piece.tokens, piece.logprobs, strict=True)
        ]
        return {"content": content, "refusal": None}

    def _token(self, token: int, logprob: float) -> dict[str, Any]:
        text = token_text(self._tokenizer, token)
        return {"token": text, "logprob": finite(logprob), "bytes": list(text.encode())}


def templated(card: Card, messages: Sequence[Message]) -> list[int]:
    """The tokens of a conversation. Raises ApiError where the model's template refuses it."""
    if not card.tokenizer.chat_template:
        reason = f"{card.name} has no chat template: ask /v1/completions"
        raise ApiError(400, reason, param="model", code="no_chat_template")
    conversation = [
        {"role": "system" if m.role == "developer" else m.role, "content": m.text} for m in messages
    ]
    try:
        return list(
            card.tokenizer.apply_chat_template(
                conversation, add_generation_prompt=True, return_dict=False
            )
        )
    except Exception as error:  # a template is the model's own code: it may raise anything
        reason = f"messages: the template of {card.name} refuses them: {printable(str(error))}"
        raise ApiError(400, reason, param="messages", code="refused") from error


async def chat(front: Front, request: Request) -> Response:
    client = front.client(request)
    raw = await read_body(request, front.limits)
    front.check_room(1)
    content = decoded(raw)
    body = checked(content, ChatBody, UNSUPPORTED)
    body.check()
    logprobs = body.wanted_logprobs
    card = card_of(front.cards, body.model)
    front.check_choices(body.choices)
    characters = sum(len(message.text) for message in body.messages)
    tokens = await front.tokenized(lambda: templated(card, body.messages), characters)
    wire = ChatWire(
        request.scope["request_id"],
        card,
        has_logprobs=logprobs is not None,
        has_usage=body.has_usage,
    )
    limit = body.max_completion_tokens or body.max_tokens
    return await front.answer(
        request, client, card, body, wire, [tokens], max_tokens=limit, logprobs=logprobs
    )


def chat_routes(front: Front, **keys: Any) -> APIRouter:
    router = APIRouter()

    @router.post("/v1/chat/completions", tags=["openai"], **keys)
    async def create_chat_completion(request: Request) -> Response:
        """The assistant's next message; with `stream`, as server-sent events."""
        return await chat(front, request)

    return router
