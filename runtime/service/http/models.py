"""/v1/models: what may be asked."""

from __future__ import annotations

from typing import Any

import msgspec
from fastapi import APIRouter, Request
from starlette.responses import Response

from runtime.service.http.cards import Card, card_of
from runtime.service.http.front import Front


def described(card: Card) -> dict[str, Any]:
    return {
        "id": card.name,
        "object": "model",
        "created": card.created,
        "owned_by": "aegaeon-rl",
        "max_model_len": card.context_tokens,
    }


def as_json(content: Any) -> Response:
    return Response(msgspec.json.encode(content), media_type="application/json")


def model_routes(front: Front, **keys: Any) -> APIRouter:
    router = APIRouter()

    @router.get("/v1/models", tags=["openai"], **keys)
    async def list_models(request: Request) -> Response:
        """The models that may be asked, with the length of their context."""
        front.client(request)
        return as_json({"object": "list", "data": [described(c) for c in front.cards.values()]})

    @router.get("/v1/models/{model:path}", tags=["openai"], **keys)
    async def retrieve_model(request: Request, model: str) -> Response:
        front.client(request)
        return as_json(described(card_of(front.cards, model)))

    return router
