"""Sizes, times and queues are bounded; who leaves is forgotten; who is slow waits alone."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx2
import pytest
from fake_controller import FakeController
from http_rig import ADMIN, KEYS, PLAIN, SMALL, Served, served

from runtime.errors import UserError
from runtime.service.http import connection
from runtime.service.http.process import bind
from runtime.service.spec import Limits, ServerSpec

JSON = b"content-type: application/json\r\n"
GOOD: dict[str, Any] = {"model": "tiny/a", "prompt": "x", "max_tokens": 1}


def soon(holds: Callable[[], bool], within_s: float = 10) -> bool:
    deadline_s = time.monotonic() + within_s
    while not holds():
        if time.monotonic() > deadline_s:
            return False
        time.sleep(0.005)
    return True


def posted(body: bytes, *, headers: bytes = b"", length: int | None = None) -> bytes:
    size = b"content-length: %d\r\n" % (len(body) if length is None else length)
    head = b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\n" + JSON + size + headers
    return head + b"\r\n" + body


def test_bodies_beyond_the_limit_are_413_stated_or_not() -> None:
    with served(FakeController(), limits=Limits(body_bytes=100)) as server:
        answer = httpx2.post(f"{server.url}/v1/completions", json={**GOOD, "user": "x" * 100})
        assert answer.status_code == 413
        chunked = iter([b'{"model":', b'"' + b"x" * 100])
        headers = {"content-type": "application/json"}
        answer = httpx2.post(f"{server.url}/v1/completions", content=chunked, headers=headers)
        assert answer.status_code == 413
        assert answer.json()["error"]["code"] == "body_too_large"


def test_slow_bodies_and_slow_heads_are_408(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "HEAD_S", 0.2)
    with served(FakeController(), limits=Limits(body_s=0.2)) as server:
        assert server.raw(posted(b"{", length=50)).split()[1] == b"408"
        assert server.raw(b"GET / HTT").split()[1] == b"408"
        assert server.raw(b"") == b""


def test_a_full_queue_is_429_and_a_long_request_504() -> None:
    limits = Limits(queue=2, request_s=1.0)
    with served(FakeController(), limits=limits) as server, httpx2.Client(timeout=20) as http:
        url = f"{server.url}/v1/completions"
        first = socket.create_connection(server.address)
        first.sendall(posted(json.dumps({**GOOD, "prompt": "!mute", "n": 2}).encode()))
        assert soon(lambda: len(server.controller.asks) == 2)
        full = http.post(url, json=GOOD)
        assert (full.status_code, full.headers["retry-after"]) == (429, "1")
        assert full.json()["error"]["code"] == "queue_full"
        assert first.recv(1 << 16).split()[1] == b"504"
        first.close()
        assert soon(lambda: server.controller.drops == [ask.id for ask in server.controller.asks])
        assert http.post(url, json=GOOD).status_code == 200


@pytest.mark.parametrize("is_stream", [False, True])
@pytest.mark.parametrize("prompt", ["!mute", "say"])
def test_requests_of_a_client_that_leaves_are_dropped(
    server: Served, is_stream: bool, prompt: str
) -> None:
    asks, drops = len(server.controller.asks), len(server.controller.drops)
    body = {**GOOD, "prompt": prompt, "max_tokens": 500, "n": 2, "stream": is_stream}
    client = socket.create_connection(server.address)
    client.sendall(posted(json.dumps(body).encode()))
    assert soon(lambda: len(server.controller.asks) == asks + 2)
    client.close()
    ids = [ask.id for ask in server.controller.asks[asks:]]
    assert soon(lambda: server.controller.drops[drops:] == ids)


def test_a_client_that_does_not_read_holds_up_nobody() -> None:
    with served(FakeController(), send_buffer_bytes=4096) as server:
        body = {**GOOD, "prompt": "say", "max_tokens": 500, "logprobs": 20, "n": 16, "stream": True}
        with socket.socket() as idle:
            idle.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            idle.connect(server.address)
            idle.sendall(posted(json.dumps(body).encode()))
            assert soon(lambda: len(server.controller.asks) == 16)
            for _ in range(5):
                answer = httpx2.post(f"{server.url}/v1/completions", json=GOOD, timeout=20)
                assert answer.json()["choices"][0]["text"] == "x"


def test_a_client_that_takes_nothing_for_long_is_hung_up_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(connection, "STALL_S", 0.3)
    body = {**GOOD, "prompt": "say", "max_tokens": 500, "logprobs": 20, "n": 16, "stream": True}
    with (
        served(FakeController(step_s=0.01), send_buffer_bytes=4096) as server,
        socket.socket() as idle,
    ):
        idle.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        idle.connect(server.address)
        idle.sendall(posted(json.dumps(body).encode()))
        assert soon(lambda: len(server.controller.drops) == 16)


def test_a_name_of_elsewhere_is_refused_where_there_are_no_keys(server: Served) -> None:
    url = f"{server.url}/v1/models"
    for host, status in {
        "evil.example:8000": 403,
        "127.0.0.1.evil.example": 403,
        "localhost:9": 200,
        "[::1]:9": 200,
    }.items():
        assert httpx2.get(url, headers={"host": host}).status_code == status
    admin = httpx2.get(f"{server.url}/admin/state", headers={"host": "evil.example"})
    assert admin.json()["error"]["code"] == "wrong_host"


def test_a_controller_that_goes_is_503_for_all_and_ends_the_server() -> None:
    with served(FakeController()) as server:
        waiting = [socket.create_connection(server.address) for _ in range(3)]
        for client, is_stream in zip(waiting, [False, True, True], strict=True):
            prompt = "!mute" if client is not waiting[2] else "say"
            body = {**GOOD, "prompt": prompt, "max_tokens": 400, "stream": is_stream}
            client.sendall(posted(json.dumps(body).encode()))
        assert soon(lambda: len(server.controller.asks) == 3)
        assert waiting[2].recv(20).split()[1] == b"200"
        began_s = time.monotonic()
        server.controller.stop()
        for client in waiting[:2]:
            assert client.recv(1 << 16).split()[1] == b"503"
        rest = b""
        while piece := waiting[2].recv(1 << 16):
            rest += piece
        assert b"controller_gone" in rest
        for client in waiting:
            client.close()
        server.thread.join(5)
        assert not server.thread.is_alive()
        assert time.monotonic() - began_s < 5


def test_keys_say_who_may_do_what(tmp_path: Path) -> None:
    keys = tmp_path / "keys.yaml"
    keys.write_text(KEYS)
    controller = FakeController(answers={"state": lambda _: {}, "metrics": lambda _: ""})
    with served(controller, keys_file=keys) as server, httpx2.Client(base_url=server.url) as http:

        def status(method: str, path: str, key: str | None, **body: Any) -> int:
            headers = {} if key is None else {"authorization": f"Bearer {key}"}
            return http.request(method, path, headers=headers, json=body or None).status_code

        for path in ("/v1/models", "/admin/state", "/metrics", "/pool/state"):
            assert status("GET", path, None) == 401
            assert status("GET", path, "sk-wrong") == 401
        assert status("GET", "/v1/models", PLAIN) == 200
        assert status("GET", "/admin/state", PLAIN) == 403
        assert status("POST", "/admin/drain", PLAIN) == 403
        assert status("GET", "/admin/state", ADMIN) == 200
        assert status("POST", "/v1/completions", PLAIN, **GOOD) == 200
        assert controller.asks[-1].client == "plain"


def test_quotas_of_a_key_are_429_until_the_minute_is_over(tmp_path: Path) -> None:
    keys = tmp_path / "keys.yaml"
    keys.write_text(KEYS)
    headers = {"authorization": f"Bearer {SMALL}"}
    with served(FakeController(), keys_file=keys) as server:
        url = f"{server.url}/v1/completions"
        codes = []
        for body in (GOOD, {**GOOD, "prompt": "x" * 101}, GOOD, GOOD):
            answer = httpx2.post(url, json=body, headers=headers)
            codes.append((answer.json().get("error") or {}).get("code"))
        assert codes == [None, "quota_too_small", None, "rate_limit_exceeded"]
        assert 58 <= int(answer.headers["retry-after"]) <= 61


def test_output_counts_for_the_quota_of_tokens_but_is_not_cut_short(tmp_path: Path) -> None:
    keys = tmp_path / "keys.yaml"
    keys.write_text(KEYS)
    headers = {"authorization": f"Bearer {SMALL}"}
    with served(FakeController(), keys_file=keys) as server:
        url = f"{server.url}/v1/completions"
        long = httpx2.post(url, json={**GOOD, "max_tokens": 150}, headers=headers)
        assert long.json()["usage"]["completion_tokens"] == 150
        after = httpx2.post(url, json=GOOD, headers=headers)
        assert after.status_code == 429
        assert "its 100 of this minute" in after.json()["error"]["message"]


def test_other_addresses_than_loopback_need_keys(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"server\.host=0\.0\.0\.0: others could reach it"):
        bind(ServerSpec(host="0.0.0.0", port=0))
    keys = tmp_path / "keys.yaml"
    keys.write_text(KEYS)
    bind(ServerSpec(host="0.0.0.0", port=0, keys_file=str(keys))).close()


def test_a_port_that_is_taken_is_named() -> None:
    with bind(ServerSpec(port=0)) as listener:
        port = listener.getsockname()[1]
        with pytest.raises(UserError, match=rf"server\.port={port}: cannot be bound"):
            bind(ServerSpec(port=port))
    with pytest.raises(UserError, match=r"server\.host=no\.such\.host\.invalid: cannot be found"):
        bind(ServerSpec(host="no.such.host.invalid", port=0))
