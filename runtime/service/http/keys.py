"""API keys: who asks, and how much each may ask in a sliding minute."""

from __future__ import annotations

import hashlib
import math
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import yaml

from runtime.errors import UserError, nearest
from runtime.service.http.errors import ApiError, too_many
from runtime.service.spec import Quota

WINDOW_S = 60
LEAST_KEY = 8  # characters
LIMITS = [field.name for field in fields(Quota)]


class Meter:
    """What was used in the last minute, by the second it was used in."""

    def __init__(self, limit: int | None) -> None:
        self.limit = limit
        self._seconds: deque[list[int]] = deque()  # [second, used in it], at most WINDOW_S + 1

    def add(self, amount: int, now_s: float) -> None:
        if self.limit is None:
            return
        second = math.floor(now_s)
        if self._seconds and self._seconds[-1][0] >= second:
            self._seconds[-1][1] += amount
        else:
            self._seconds.append([second, amount])
        self._forget(now_s)

    def wait_s(self, amount: int, now_s: float) -> float:
        """Seconds until `amount` more is within the limit: 0 now, inf never."""
        if self.limit is None:
            return 0.0
        if amount > self.limit:
            return math.inf
        self._forget(now_s)
        excess = sum(used for _, used in self._seconds) + amount - self.limit
        wait_s = 0.0
        for second, used in self._seconds:
            if excess <= 0:
                break
            excess -= used
            wait_s = second + 1 + WINDOW_S - now_s
        return wait_s

    def _forget(self, now_s: float) -> None:
        while self._seconds and self._seconds[0][0] + 1 + WINDOW_S <= now_s:
            self._seconds.popleft()


class Client:
    """Who asks: the name of a key, and what it has used."""

    def __init__(
        self, name: str, quota: Quota, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.name, self.quota, self._clock = name, quota, clock
        self._requests = Meter(quota.requests_per_minute)
        self._tokens = Meter(quota.tokens_per_minute)

    def admit(self, requests: int, prompt_tokens: int) -> None:
        """Count requests and their prompts. Raises ApiError (429) where a quota is used up.

        Output counts as it is made (`spend`): what has begun is not cut short.
        """
        now_s = self._clock()
        for kind, meter, amount in (
            ("requests", self._requests, requests),
            ("tokens", self._tokens, prompt_tokens),
        ):
            wait_s = meter.wait_s(amount, now_s)
            if math.isinf(wait_s):
                reason = f"{amount} {kind} at once: this key may have {meter.limit} a minute"
                raise too_many(reason, WINDOW_S, code="quota_too_small")
            if wait_s > 0:
                reason = f"{kind} of this key: its {meter.limit} of this minute are used up"
                raise too_many(reason, wait_s, code="rate_limit_exceeded")
        self._requests.add(requests, now_s)
        self._tokens.add(prompt_tokens, now_s)

    def spend(self, tokens: int) -> None:
        if self.quota.tokens_per_minute is not None:
            self._tokens.add(tokens, self._clock())


@dataclass(frozen=True, slots=True)
class Keyring:
    """Clients by the digest of their key; none: keys are off and everybody may do everything."""

    clients: dict[bytes, Client]

    @property
    def is_on(self) -> bool:
        return bool(self.clients)

    def client(self, authorization: str | None) -> Client:
        """Whose key a header `Authorization: Bearer KEY` states. Raises ApiError (401)."""
        if not self.is_on:
            return NOBODY
        scheme, _, key = (authorization or "").partition(" ")
        if scheme.lower() != "bearer" or not key:
            raise unauthorized("no API key: expected a header Authorization: Bearer KEY")
        client = self.clients.get(digest(key.strip()))
        if client is None:
            raise unauthorized("this API key is not known")
        return client

    def admin(self, authorization: str | None) -> Client:
        client = self.client(authorization)
        if self.is_on and not client.quota.is_admin:
            raise ApiError(403, "this API key is no admin key", code="not_admin")
        return client


NOBODY = Client("", Quota(is_admin=True))


def unauthorized(message: str) -> ApiError:
    headers = {"www-authenticate": "Bearer"}
    return ApiError(401, message, code="invalid_api_key", headers=headers)


def digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()


def read_keys(path: str | None) -> Keyring:
    """The keys of a YAML file {NAME: {key: sk-..., requests_per_minute: 60, ...}}."""
    if path is None:
        return Keyring({})
    try:
        content = yaml.safe_load(Path(path).read_text("utf-8"))
    except OSError as error:
        raise UserError(f"server.keys_file={path}: cannot be read: {error.strerror}") from None
    except (ValueError, yaml.YAMLError):  # its message would quote the line, key and all
        raise UserError(f"server.keys_file={path}: cannot be read: expected YAML") from None
    if not isinstance(content, dict) or not content:
        raise UserError(f"server.keys_file={path}: expected NAME: {{key: sk-...}} at least once")
    clients: dict[bytes, Client] = {}
    for name, entry in content.items():
        where = f"{path}: {name}"
        key, quota = read_entry(where, entry)
        if digest(key) in clients:
            raise UserError(f"{where}.key: another name has it too: expected one key a name")
        clients[digest(key)] = Client(str(name), quota)
    return Keyring(clients)


def read_entry(where: str, entry: Any) -> tuple[str, Quota]:
    """One name's key and quota; a message never shows the key."""
    if not isinstance(entry, dict):
        raise UserError(f"{where}: expected {{key: sk-..., ...}}")
    for field in entry:
        if field not in ("key", *LIMITS):
            raise UserError(f"{where}.{field}: {nearest(str(field), ['key', *LIMITS])}")
    key = entry.get("key")
    if not isinstance(key, str) or len(key) < LEAST_KEY or not key.isprintable() or " " in key:
        raise UserError(f"{where}.key: expected {LEAST_KEY} characters or more, without spaces")
    for field in ("requests_per_minute", "tokens_per_minute"):
        value = entry.get(field)
        if value is not None and (type(value) is not int or value < 1):
            raise UserError(f"{where}.{field}={value!r:.60}: expected a whole number from 1")
    if not isinstance(entry.get("is_admin", False), bool):
        raise UserError(f"{where}.is_admin={entry['is_admin']!r:.60}: expected true or false")
    return key, Quota(**{field: entry[field] for field in LIMITS if field in entry})
