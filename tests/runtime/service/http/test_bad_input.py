"""Whatever is sent, the answer is a 4xx in OpenAI's shape that names what is wrong."""

from __future__ import annotations

import json
from typing import Any

import httpx2
import pytest
from http_rig import Served

JSON = {"content-type": "application/json"}
GOOD: dict[str, Any] = {"model": "tiny/a", "prompt": "x", "max_tokens": 1}
CHAT: dict[str, Any] = {
    "model": "tiny/a",
    "messages": [{"role": "user", "content": "x"}],
    "max_tokens": 1,
}


def fault_of(response: httpx2.Response, status: int) -> dict[str, Any]:
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json"
    assert response.headers["x-request-id"]
    content = response.json()
    assert set(content) == {"error"}
    assert set(content["error"]) == {"message", "type", "param", "code"}
    assert "\n" not in content["error"]["message"]
    fault: dict[str, Any] = content["error"]
    return fault


BODIES = [
    b"",
    b"{",
    b"[1]",
    b'"text"',
    b"null",
    b"\xff\xfe",
    b'{"model": "tiny/a", "prompt": "\xff"}',
    b'{"model": "tiny/a", "prompt": "\\ud800"}',
    b'{"model": "tiny/a", "prompt": "x", "temperature": NaN}',
    b'{"model": "tiny/a", "prompt": "x", "temperature": 1e999}',
    b"[" * 100_000,
    b'{"model": "tiny/a", "prompt": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    b'{"a":' * 20_000 + b"1" + b"}" * 20_000,
]


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions"])
@pytest.mark.parametrize("body", BODIES, ids=range(len(BODIES)))
def test_bodies_that_are_no_json_object_are_refused(
    http: httpx2.Client, path: str, body: bytes
) -> None:
    fault_of(http.post(path, content=body, headers=JSON), 400)


WRONG = [
    ({"max_tokens": "many"}, "max_tokens"),
    ({"max_tokens": 1.5}, "max_tokens"),
    ({"max_tokens": True}, "max_tokens"),
    ({"max_tokens": 0}, "max_tokens"),
    ({"max_tokens": -1}, "max_tokens"),
    ({"max_tokens": 10**30}, "max_tokens"),
    ({"seed": -1}, "seed"),
    ({"seed": 2**63}, "seed"),
    ({"temperature": -0.1}, "temperature"),
    ({"temperature": 2.1}, "temperature"),
    ({"temperature": 1e-7}, "temperature"),
    ({"temperature": "hot"}, "temperature"),
    ({"top_p": 0}, "top_p"),
    ({"top_k": -2}, "top_k"),
    ({"n": 0}, "n"),
    ({"n": 17}, "n"),
    ({"n": 10**9}, "n"),
    ({"stop": ""}, "stop"),
    ({"stop": ["a", 1]}, "stop[1]"),
    ({"stop": ["a"] * 17}, "stop"),
    ({"stream": "yes"}, "stream"),
    ({"stream_options": {"include_usage": True}}, "stream_options"),
    ({"stream": True, "stream_options": {"other": True}}, "stream_options"),
    ({"priority": 1000}, "priority"),
    ({"logit_bias": {"5": 1}}, "logit_bias"),
    ({"response_format": {"type": "json_object"}}, "response_format"),
    ({"frequency_penalty": 0.5}, "frequency_penalty"),
    ({"presence_penalty": True}, "presence_penalty"),
    ({"temprature": 1}, "temprature"),
    ({"model": 5}, "model"),
    ({"model": None}, "model"),
]


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions"])
@pytest.mark.parametrize(("change", "param"), WRONG, ids=lambda value: str(value)[:40])
def test_fields_of_a_wrong_value_are_named(
    http: httpx2.Client, path: str, change: dict[str, Any], param: str
) -> None:
    good = GOOD if path == "/v1/completions" else CHAT
    fault = fault_of(http.post(path, json={**good, **change}), 400)
    assert fault["param"] == param
    assert param.partition("[")[0] in fault["message"]


WRONG_PROMPTS = [
    None,
    5,
    "",
    [],
    [""],
    [[]],
    ["x", 1],
    [[1], 1],
    [1.5],
    [-1],
    [258],
    [[1, 258]],
    [10**30],
    [True],
    {"a": 1},
    ["x"] * 17,
]


@pytest.mark.parametrize("prompt", WRONG_PROMPTS, ids=lambda value: str(value)[:30])
def test_prompts_of_a_wrong_kind_are_refused(http: httpx2.Client, prompt: Any) -> None:
    fault_of(http.post("/v1/completions", json={**GOOD, "prompt": prompt}), 400)


WRONG_MESSAGES = [
    None,
    [],
    "x",
    [{}],
    [{"role": "user"}],
    [{"role": "user", "content": None}],
    [{"role": "robot", "content": "x"}],
    [{"role": "tool", "content": "x"}],
    [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}],
    [{"role": "user", "content": "x", "tool_calls": []}],
    [{"role": "assistant", "content": "the fake template refuses this"}],
]


@pytest.mark.parametrize("messages", WRONG_MESSAGES, ids=lambda value: str(value)[:40])
def test_messages_of_a_wrong_kind_are_refused(http: httpx2.Client, messages: Any) -> None:
    fault_of(http.post("/v1/chat/completions", json={**CHAT, "messages": messages}), 400)


@pytest.mark.parametrize(
    "change",
    [
        {"tools": [{"type": "function"}]},
        {"tool_choice": "required"},
        {"functions": [{}]},
        {"modalities": ["audio"]},
        {"reasoning_effort": "high"},
        {"top_logprobs": 2},
        {"logprobs": 2},
        {"logprobs": True, "top_logprobs": 21},
    ],
    ids=str,
)
def test_what_a_chat_does_not_support_is_named(http: httpx2.Client, change: dict[str, Any]) -> None:
    fault = fault_of(http.post("/v1/chat/completions", json={**CHAT, **change}), 400)
    assert fault["param"] == list(change)[-1]


def test_fields_that_ask_for_nothing_are_no_error(http: httpx2.Client) -> None:
    nothing = {
        "tools": None,
        "tool_choice": "none",
        "logit_bias": {},
        "response_format": {"type": "text"},
        "frequency_penalty": 0.0,
        "n": None,
        "stop": None,
        "store": False,
    }
    assert http.post("/v1/chat/completions", json={**CHAT, **nothing}).status_code == 200


def test_unknown_models_are_404_with_the_nearest_name(http: httpx2.Client) -> None:
    fault = fault_of(http.post("/v1/completions", json={**GOOD, "model": "tiny-a"}), 404)
    assert fault["code"] == "model_not_found"
    assert "did you mean 'tiny/a'" in fault["message"]
    fault_of(http.get("/v1/models/none%0A"), 404)
    fault_of(http.post("/v1/completions", json={**GOOD, "model": "\x00\U0001f600"}), 404)


def test_a_model_without_a_template_refuses_chats(http: httpx2.Client) -> None:
    fault = fault_of(http.post("/v1/chat/completions", json={**CHAT, "model": "bare"}), 400)
    assert fault["code"] == "no_chat_template"


@pytest.mark.parametrize("change", [{"prompt": "x" * 512}, {"prompt": "x", "max_tokens": 512}])
def test_what_is_beyond_the_context_is_refused(http: httpx2.Client, change: dict[str, Any]) -> None:
    fault = fault_of(http.post("/v1/completions", json={**GOOD, **change}), 400)
    assert fault["code"] == "context_length_exceeded"


def test_null_bytes_are_text_as_any_other(http: httpx2.Client) -> None:
    answer = http.post("/v1/completions", json={**GOOD, "prompt": "\x00", "max_tokens": 2})
    assert answer.json()["choices"][0]["text"] == "\x00\x00"


@pytest.mark.parametrize("kind", ["text/plain", "multipart/form-data", "", "application/jsonp"])
def test_other_content_types_are_415(http: httpx2.Client, kind: str) -> None:
    content = json.dumps(GOOD).encode()
    headers = {"content-type": kind}
    fault_of(http.post("/v1/completions", content=content, headers=headers), 415)


@pytest.mark.parametrize("path", ["/nothing", "/v1", "/v1/completions/", "/v1/embeddings", "/%00"])
def test_unknown_routes_are_404(http: httpx2.Client, path: str) -> None:
    fault_of(http.get(path), 404)


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/v1/completions"),
        ("DELETE", "/v1/models"),
        ("PUT", "/v1/chat/completions"),
        ("POST", "/health"),
        ("TRACE", "/v1/completions"),
    ],
)
def test_wrong_methods_are_405(http: httpx2.Client, method: str, path: str) -> None:
    response = http.request(method, path)
    fault_of(response, 405)
    assert response.headers["allow"]


def test_odd_request_ids_are_replaced(http: httpx2.Client) -> None:
    assert http.get("/health", headers={"x-request-id": "a b"}).headers["x-request-id"] != "a b"
    assert http.get("/health", headers={"x-request-id": "a-b"}).headers["x-request-id"] == "a-b"


RAW = [
    (b"nonsense\r\n\r\n", b"400"),
    (b"GET /v1/models HTTP/9.9\r\n\r\n", b"400"),
    (b"GET / HTTP/1.1\r\nhost: localhost\r\nbig: " + b"x" * 100_000 + b"\r\n\r\n", b"431"),
    (b"GET /" + b"x" * 100_000 + b" HTTP/1.1\r\nhost: localhost\r\n\r\n", b"431"),
    (b"GET / HTTP/1.1\r\n" + b"a: b\r\n" * 50_000 + b"\r\n", b"431"),
    (b"GET / HTTP/1.1\r\nhost: localhost\r\nbig: " + b"x" * 300_000, b"431"),
    (b"GET /\xff HTTP/1.1\r\nhost: localhost\r\n\r\n", b"400"),
    (b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-length: -5\r\n\r\n", b"400"),
    (
        b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
        b"transfer-encoding: chunked\r\n\r\nZZ\r\n",
        b"400",
    ),
    (
        b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
        b"content-length: 99999999999\r\n\r\n",
        b"413",
    ),
]


@pytest.mark.parametrize(("sent", "status"), RAW, ids=range(len(RAW)))
def test_what_is_no_http_is_refused_in_the_same_shape(
    server: Served, sent: bytes, status: bytes
) -> None:
    received = server.raw(sent)
    head, _, body = received.partition(b"\r\n\r\n")
    assert head.split()[1] == status
    assert set(json.loads(body)["error"]) == {"message", "type", "param", "code"}
