"""What the OpenAPI document says beyond the routes' names: bodies, answers, errors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec
from fastapi import FastAPI
from msgspec import Struct

from runtime.service.http import chat, completions
from runtime.service.http.operate import OPERATIONS

REF = "#/components/schemas/{name}"
BODIES: dict[str, tuple[type[Struct], Mapping[str, tuple[Any, ...]]]] = {
    "/v1/completions": (completions.CompletionBody, completions.UNSUPPORTED),
    "/v1/chat/completions": (chat.ChatBody, chat.UNSUPPORTED),
    **{o.path: (o.body, {}) for o in OPERATIONS if o.body is not None},
}
TEXT = {"type": ["string", "null"]}
EVENT = {  # of a stream; the last one's data is [DONE]
    "type": "object",
    "required": ["data"],
    "properties": {"data": {"type": "string"}},
}
ERROR = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": TEXT,
                "code": TEXT,
            },
        }
    },
}
STATUSES = {
    400: "the request is not as expected",
    401: "no API key, or an unknown one",
    403: "the key is no admin key",
    404: "no such model or route",
    405: "the route has no such method",
    408: "the client is too slow",
    413: "the body is too large",
    415: "the body is not application/json",
    429: "a quota or the queue is full: see Retry-After",
    500: "an error of ours",
    503: "draining, or the controller is gone",
    504: "no answer in time",
}


def route_keys() -> dict[str, Any]:
    """What every route's documentation has: its errors."""
    content = {"application/json": {"schema": {"$ref": REF.format(name="Error")}}}
    faults = {
        status: {"description": text, "content": content} for status, text in STATUSES.items()
    }
    answer = {"description": "the answer", "content": {"application/json": {"schema": {}}}}
    return {"responses": {200: answer, **faults}}


def openapi(app: FastAPI) -> dict[str, Any]:
    """The document: FastAPI's, with the bodies as they are checked."""
    if app.openapi_schema is None:
        app.openapi_schema = completed(FastAPI.openapi(app))
    return app.openapi_schema


def completed(document: dict[str, Any]) -> dict[str, Any]:
    kinds = [kind for kind, _ in BODIES.values()]
    _, schemas = msgspec.json.schema_components(kinds, ref_template=REF)
    for kind, neutral in BODIES.values():
        add_neutral(schemas[kind.__name__], neutral)
    document.setdefault("components", {})["schemas"] = {**schemas, "Error": ERROR}
    keys = {"key": {"type": "http", "scheme": "bearer"}}
    document["components"]["securitySchemes"] = keys
    document["security"] = [{"key": []}, {}]
    for path, (kind, _) in BODIES.items():
        schema = {"schema": {"$ref": REF.format(name=kind.__name__)}}
        body = {"required": True, "content": {"application/json": schema}}
        document["paths"][path]["post"]["requestBody"] = body
    for path in ("/v1/completions", "/v1/chat/completions"):
        answers = document["paths"][path]["post"]["responses"]["200"]["content"]
        answers["text/event-stream"] = {"schema": EVENT}
    for operations in document["paths"].values():
        for operation in operations.values():
            operation["responses"].pop("422", None)
    return document


def add_neutral(schema: dict[str, Any], neutral: Mapping[str, tuple[Any, ...]]) -> None:
    """Fields that are not supported, with the values that ask for nothing."""
    for name, values in neutral.items():
        schema["properties"][name] = {"enum": [None, *values], "description": "not supported"}
