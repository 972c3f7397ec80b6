"""The application: routes, errors in one shape, a request id on every answer and in the log."""

from __future__ import annotations

import logging
import re
import time
import uuid
from pathlib import Path

from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from runtime.service.http.chat import chat_routes
from runtime.service.http.completions import completion_routes
from runtime.service.http.errors import (
    ApiError,
    on_api_error,
    on_defect,
    on_http_exception,
    printable,
)
from runtime.service.http.front import Front
from runtime.service.http.models import model_routes
from runtime.service.http.operate import PAGE, operator_routes, page_routes
from runtime.service.http.schema import openapi, route_keys

ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")
logger = logging.getLogger("aegaeon_rl.http")


class Documented(FastAPI):
    """FastAPI whose OpenAPI document has the bodies as they are checked."""

    def openapi(self) -> dict[str, object]:
        return openapi(self)


def make_app(front: Front, page: Path = PAGE) -> ASGIApp:
    app = Documented(
        title="aegaeon-rl",
        version="1",
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        exception_handlers={
            ApiError: on_api_error,
            HTTPException: on_http_exception,
            Exception: on_defect,
        },
    )
    keys = route_keys()
    for routes in (model_routes, completion_routes, chat_routes, operator_routes):
        app.include_router(routes(front, **keys))
    app.include_router(page_routes(page))
    return Named(app)


class Named:
    """Gives each request an id, the client's if it sends a plain one, and logs how it went."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        name = stated_id(scope) or uuid.uuid4().hex
        scope["request_id"] = name
        began_s, status = time.monotonic(), 0

        async def send_named(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message["headers"], (b"x-request-id", name.encode())]
            await send(message)

        try:
            await self._app(scope, receive, send_named)
        finally:
            seconds = time.monotonic() - began_s
            what = f"{scope['method']} {printable(scope['path'])}"
            logger.info("%s: %d, %.3f s", what, status, seconds, extra={"request_id": name})


def stated_id(scope: Scope) -> str | None:
    for name, value in scope["headers"]:
        if name == b"x-request-id":
            text: str = value.decode("latin-1")
            return text if ID.fullmatch(text) else None
    return None
