"""The body of a request: within its size, in time, JSON, and with known fields."""

from __future__ import annotations

import asyncio
import difflib
import re
from typing import Any, TypeVar

import msgspec
from starlette.requests import ClientDisconnect, Request

from runtime.service.http.errors import ApiError, printable
from runtime.service.spec import Limits

T = TypeVar("T", bound=msgspec.Struct)
CLOSE = {"connection": "close"}  # the rest of the body is not read
PATH = re.compile(r" - at `\$\.?([^`]*)`$")


async def read_body(request: Request, limits: Limits) -> bytes:
    """The whole body. Raises ApiError: 415, 413, 408."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        reason = f"content-type {printable(kind)[:80]!r}: expected application/json"
        raise ApiError(415, reason, code="wrong_content_type", headers=CLOSE)
    stated = request.headers.get("content-length", "0")
    if not stated.isdecimal() or len(stated) > 18 or int(stated) > limits.body_bytes:
        raise too_large(limits)
    try:
        async with asyncio.timeout(limits.body_s):
            return await gathered(request, limits)
    except TimeoutError:
        reason = f"the body did not arrive in {limits.body_s:g} s"
        raise ApiError(408, reason, code="slow_body", headers=CLOSE) from None
    except ClientDisconnect:
        raise ApiError(400, "the client left", code="client_gone", headers=CLOSE) from None


async def gathered(request: Request, limits: Limits) -> bytes:
    body = bytearray()
    async for piece in request.stream():
        body += piece
        if len(body) > limits.body_bytes:
            raise too_large(limits)
    return bytes(body)


def too_large(limits: Limits) -> ApiError:
    reason = f"the body is too large: expected {limits.body_bytes} bytes at most"
    return ApiError(413, reason, code="body_too_large", headers=CLOSE)


def decoded(body: bytes) -> dict[str, Any]:
    """The JSON object of a body. Raises ApiError."""
    try:
        content = msgspec.json.decode(body)
    except RecursionError:
        raise ApiError(400, "the body is nested too deeply", code="invalid_json") from None
    except (msgspec.DecodeError, msgspec.ValidationError, UnicodeDecodeError) as error:
        raise ApiError(400, f"the body is no JSON: {error}", code="invalid_json") from None
    if not isinstance(content, dict):
        raise ApiError(400, "the body is no JSON object", code="invalid_json")
    return content


def checked(content: dict[str, Any], kind: type[T], neutral: dict[str, tuple[Any, ...]]) -> T:
    """The body as `kind`. Fields of `neutral` are not supported: they may be absent, null or one
    of the values that ask for nothing. Raises ApiError that names the field."""
    known = [field.encode_name for field in msgspec.structs.fields(kind)]
    for name, value in content.items():
        if name in known:
            continue
        if name not in neutral:
            close = difflib.get_close_matches(name, known, n=1)
            hint = f": did you mean {close[0]!r}?" if close else ""
            reason = f"unknown field {printable(name)[:80]!r}{hint}"
            raise ApiError(400, reason, param=printable(name)[:80], code="unknown_field")
        if value is not None and not any(is_same(value, none) for none in neutral[name]):
            raise ApiError(400, f"{name} is not supported", param=name, code="unsupported_field")
    stated = {name: content[name] for name in known if name in content}
    try:
        return msgspec.convert(stated, kind)
    except RecursionError:
        raise ApiError(400, "the body is nested too deeply", code="invalid_json") from None
    except msgspec.ValidationError as error:
        raise wrong_type(str(error)) from None


def is_same(value: Any, none: Any) -> bool:
    """Equal, and no truth value for a number."""
    return isinstance(value, bool) == isinstance(none, bool) and value == none


def wrong_type(reason: str) -> ApiError:
    """msgspec's one line, with the field in front."""
    where = PATH.search(reason)
    if where is not None:
        name = where.group(1)
        return ApiError(400, f"{name}: {reason[: where.start()]}", param=name, code="invalid_value")
    missing = re.search(r"missing required field `([^`]*)`", reason)
    param = missing.group(1) if missing else None
    return ApiError(400, reason, param=param, code="invalid_value")
