"""One server for all tests that change nothing of it."""

from __future__ import annotations

from collections.abc import Iterator

import httpx2
import openai
import pytest
from fake_controller import FakeController
from http_rig import Served, served

ANSWERS = {
    "health": lambda _: {"status": "ok"},
    "metrics": lambda _: "# HELP up It runs.\nup 1.0\n",
    "snapshot": lambda _: {"instances": []},
    "state": lambda _: {"requests": 0},
    "models": lambda _: [{"name": "tiny/a"}],
    "load": lambda arguments: arguments,
    "unload": lambda arguments: arguments,
    "pin": lambda arguments: arguments,
    "policies": lambda _: ["index"],
    "policy": lambda arguments: arguments,
    "drain": lambda _: None,
}


@pytest.fixture(scope="session")
def server() -> Iterator[Served]:
    with served(FakeController(answers=dict(ANSWERS))) as running:
        yield running


@pytest.fixture(scope="session")
def http(server: Served) -> Iterator[httpx2.Client]:
    with httpx2.Client(base_url=server.url, timeout=20) as client:
        yield client


@pytest.fixture(scope="session")
def client(server: Served) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as made:
        yield made
