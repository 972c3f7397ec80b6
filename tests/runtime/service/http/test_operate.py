"""Operators' routes are calls to the controller; the page is served from its folder."""

from __future__ import annotations

from pathlib import Path

import httpx2
import pytest
from fake_controller import FakeController
from http_rig import Served, served

from runtime.service.http import app
from runtime.service.http.operate import OPERATIONS, Operation, page_routes

BODIES: dict[str, dict[str, object]] = {
    "load": {"model": "m"},
    "unload": {"model": "m"},
    "pin": {"model": "m", "is_pinned": False},
    "policy": {"name": "index"},
    "drain": {},
}


@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda operation: operation.path)
def test_an_operation_is_a_call_with_the_body_as_arguments(
    server: Served, http: httpx2.Client, operation: Operation
) -> None:
    body = BODIES.get(operation.call)
    answer = http.request(operation.method, operation.path, json=body)
    assert answer.status_code == 200
    call = server.controller.calls[-1]
    assert (call.name, call.arguments) == (operation.call, body or {})


def test_health_is_503_while_the_service_takes_no_requests() -> None:
    state = {"status": "ok"}
    controller = FakeController(answers={"health": lambda _: state})
    with served(controller) as server:
        assert httpx2.get(f"{server.url}/health").json() == {"status": "ok"}
        state["status"] = "draining"
        answer = httpx2.get(f"{server.url}/health")
        assert answer.status_code == 503
        assert answer.json()["error"]["code"] == "draining"


def test_what_the_controller_refuses_is_400_with_its_reason() -> None:
    with served(FakeController()) as server:
        answer = httpx2.post(f"{server.url}/admin/drain", json={})
        assert answer.status_code == 400
        assert answer.json()["error"]["message"] == "drain: no such operation"


def test_metrics_are_text(http: httpx2.Client) -> None:
    answer = http.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    assert answer.text.endswith("up 1.0\n")


def test_a_call_that_is_not_answered_is_504(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("runtime.service.http.link.CALL_S", 0.2)
    controller = FakeController(is_silent=True)
    with served(controller) as server:
        assert httpx2.get(f"{server.url}/health").status_code == 504


def test_the_page_is_served_file_by_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = tmp_path / "page"
    (page / "parts").mkdir(parents=True)
    (tmp_path / "secret").write_text("no")
    (page / "index.html").write_text("<p>pool</p>")
    (page / "parts" / "a.js").write_text("1")
    monkeypatch.setattr(app, "page_routes", lambda _: page_routes(page))
    with served(FakeController()) as server:
        with httpx2.Client(base_url=server.url) as http:
            assert http.get("/").text == "<p>pool</p>"
            assert "javascript" in http.get("/parts/a.js").headers["content-type"]
        assert server.raw(b"GET /../secret HTTP/1.1\r\nconnection: close\r\n\r\n")[9:12] == b"404"
        escaped = b"GET /%2e%2e/secret HTTP/1.1\r\nconnection: close\r\n\r\n"
        assert server.raw(escaped)[9:12] == b"404"
