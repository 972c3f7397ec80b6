"""What operators use: health, metrics, the page and the admin API; each a call to the controller.

A call's name and arguments are those of `OPERATIONS`; its answer is passed on as it is.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, NamedTuple

from fastapi import APIRouter, Request
from msgspec import Meta, Struct, to_builtins
from starlette.responses import FileResponse, Response

from runtime.service.http.body import checked, decoded, read_body
from runtime.service.http.errors import ApiError
from runtime.service.http.front import Front
from runtime.service.http.models import as_json

PAGE = Path(__file__).parent.parent / "page"
METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"
HEALTHY = "ok"
logger = logging.getLogger("aegaeon_rl.http")

Name = Annotated[str, Meta(min_length=1, max_length=256)]


class Nothing(Struct, forbid_unknown_fields=True):
    pass


class ModelBody(Struct, forbid_unknown_fields=True):
    model: Name


class PinBody(Struct, forbid_unknown_fields=True):
    model: Name
    is_pinned: bool = True


class PolicyBody(Struct, forbid_unknown_fields=True):
    name: Name


class Operation(NamedTuple):
    """An admin route: the call it makes, with the body's fields as arguments."""

    method: str
    path: str
    call: str
    body: type[Struct] | None = None
    summary: str = ""


OPERATIONS = (
    Operation("GET", "/admin/state", "state", summary="The pool's state"),
    Operation("GET", "/admin/models", "models", summary="Models and where their weights are"),
    Operation("POST", "/admin/models/load", "load", ModelBody, "Bring a model to host memory"),
    Operation("POST", "/admin/models/unload", "unload", ModelBody, "Give its host memory up"),
    Operation("POST", "/admin/models/pin", "pin", PinBody, "Keep a model in host memory, or not"),
    Operation("GET", "/admin/policies", "policies", summary="Policies, and the one in charge"),
    Operation("POST", "/admin/policy", "policy", PolicyBody, "Put another policy in charge"),
    Operation("POST", "/admin/drain", "drain", Nothing, "Take no more requests, finish those"),
)


def operator_routes(front: Front, **keys: Any) -> APIRouter:
    router = APIRouter()

    @router.get("/health", tags=["operate"], **keys)
    async def health() -> Response:
        """200 while requests are taken; 503 while draining or without a controller."""
        answer = await front.link.call("health")
        status = answer.get("status", HEALTHY) if isinstance(answer, Mapping) else HEALTHY
        if status != HEALTHY:
            raise ApiError(503, f"the service is {status}", code=str(status))
        return as_json(answer if isinstance(answer, Mapping) else {"status": HEALTHY})

    @router.get("/metrics", tags=["operate"], **metrics_keys(keys))
    async def metrics(request: Request) -> Response:
        """Prometheus' text format."""
        front.client(request)
        return Response(await front.link.call("metrics"), headers={"content-type": METRICS_TYPE})

    @router.get("/pool/state", tags=["operate"], **keys)
    async def pool_state(request: Request) -> Response:
        """What the page shows."""
        front.client(request)
        return as_json(await front.link.call("snapshot"))

    for operation in OPERATIONS:
        add_operation(router, front, operation, keys)
    return router


def metrics_keys(keys: Mapping[str, Any]) -> dict[str, Any]:
    """As the other routes, but for the kind of its content."""
    responses = dict(keys.get("responses", {}))
    responses[200] = {"content": {"text/plain": {"schema": {"type": "string"}}}}
    return {**keys, "responses": responses}


def add_operation(
    router: APIRouter, front: Front, operation: Operation, keys: Mapping[str, Any]
) -> None:
    async def operate(request: Request) -> Response:
        client = front.admin(request)
        arguments: dict[str, Any] = {}
        if operation.body is not None:
            body = checked(decoded(await read_body(request, front.limits)), operation.body, {})
            arguments = to_builtins(body)
        answer = await front.link.call(operation.call, arguments, by=client.name)
        if operation.method != "GET":
            logger.info("admin %s %s by %s", operation.call, arguments, client.name or "-")
        return as_json(answer)

    router.add_api_route(
        operation.path,
        operate,
        methods=[operation.method],
        name=operation.call,
        summary=operation.summary,
        tags=["admin"],
        **keys,
    )


def page_routes(folder: Path = PAGE) -> APIRouter:
    """The page at / and the files beside it; none where the folder is not there."""
    router = APIRouter()
    files = sorted(path for path in folder.rglob("*") if path.is_file()) if folder.is_dir() else []
    for path in files:
        add_file(router, f"/{path.relative_to(folder).as_posix()}", path)
        if path == folder / "index.html":
            add_file(router, "/", path)
    return router


def add_file(router: APIRouter, route: str, path: Path) -> None:
    async def serve() -> Response:
        headers = {
            "x-content-type-options": "nosniff",
            "x-frame-options": "DENY",
            "cache-control": "no-cache",
        }
        return FileResponse(path, headers=headers)

    router.add_api_route(route, serve, methods=["GET"], include_in_schema=False)
