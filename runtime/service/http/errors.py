"""Whatever goes wrong, said as OpenAI says it: {"error": {message, type, param, code}}."""

from __future__ import annotations

import math
from collections.abc import Mapping

import msgspec
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from runtime.service.messages import End, Ended

BAD_REQUEST = "invalid_request_error"
OURS = "server_error"
RETRY_S = 1.0  # where nothing better is known
REASON_CHARACTERS = 500


class ApiError(Exception):
    """An answer that is an error: status, one line, the field at fault, a code."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code
        self.headers = dict(headers or {})

    @property
    def type(self) -> str:
        if self.status == 429:
            return "rate_limit_error"
        return OURS if self.status >= 500 else BAD_REQUEST

    @property
    def body(self) -> bytes:
        message = printable(self.message)
        fault = {"message": message, "type": self.type, "param": self.param, "code": self.code}
        return msgspec.json.encode({"error": fault})

    def response(self) -> Response:
        return Response(self.body, self.status, self.headers, "application/json")


def printable(text: str) -> str:
    """One line of bounded length: what a client sent may be quoted in it."""
    cut = text if len(text) <= REASON_CHARACTERS else text[:REASON_CHARACTERS] + "..."
    return "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in cut)


def too_many(message: str, retry_after_s: float | None, *, code: str) -> ApiError:
    """429, with the whole seconds after which it may go better."""
    return ApiError(429, message, code=code, headers=retry_after(retry_after_s))


def retry_after(seconds: float | None) -> dict[str, str]:
    return {"retry-after": str(math.ceil(max(1.0, RETRY_S if seconds is None else seconds)))}


def unavailable(message: str, code: str, retry_after_s: float | None = None) -> ApiError:
    return ApiError(503, message, code=code, headers=retry_after(retry_after_s))


def of_ending(ended: Ended) -> ApiError | None:
    """Why a request was not served; None: it was."""
    reason = ended.reason
    match ended.end:
        case End.STOP | End.LENGTH:
            return None
        case End.SHED:
            return too_many(reason or "the queue is full", ended.retry_after_s, code="queue_full")
        case End.TIMEOUT:
            return ApiError(504, reason or "no first token in time", code="timeout")
        case End.REFUSED:
            return ApiError(400, reason or "this request cannot be served", code="refused")
        case End.DRAINING:
            reason = reason or "the server is shutting down"
            return unavailable(reason, "draining", ended.retry_after_s)
        case End.CANCELLED:
            return unavailable(reason or "the request was cancelled", "cancelled")
        case End.FAILED:
            return ApiError(500, reason or "the request failed", code="failed")


async def on_api_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    return error.response()


async def on_http_exception(request: Request, error: Exception) -> Response:
    """Starlette's own: no such route, wrong method."""
    assert isinstance(error, HTTPException)
    path, method = printable(request.url.path), request.method
    match error.status_code:
        case 404:
            fault = ApiError(404, f"no such route: {method} {path}", code="not_found")
        case 405:
            fault = ApiError(405, f"{method} is not allowed at {path}", code="method_not_allowed")
        case status:
            fault = ApiError(status, str(error.detail))
    fault.headers.update(error.headers or {})
    return fault.response()


async def on_defect(request: Request, error: Exception) -> Response:
    return ApiError(500, "an error of ours: the server's log says more", code="defect").response()
