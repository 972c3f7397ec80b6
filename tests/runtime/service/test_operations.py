"""Calls of operators are answered with plain data, or a line; nothing they say raises."""

import json
from types import SimpleNamespace
from typing import Any

import pytest

from runtime.core import PoolSpec, SloSpec
from runtime.emulator.profile import load_profile
from runtime.emulator.run import build_state
from runtime.errors import UserError
from runtime.pool.placement import preload
from runtime.service.http.operate import OPERATIONS
from runtime.service.messages import Call
from runtime.service.metrics import Metrics
from runtime.service.operations import Operations


class Pool:
    """A controller that does nothing but remember."""

    names, status = ("a", "b"), "ok"

    def __init__(self) -> None:
        spec = PoolSpec(name="1", profile="h100", checkpoints=("Qwen2.5-7B",), instances_per_node=1)
        self.state = build_state(spec, self.names, SloSpec(), load_profile("h100"), capacity=4)
        preload(self.state, [(0, 1)])
        self.metrics = Metrics(self.names, lambda: self.state)
        self.decider: Any = SimpleNamespace(
            status=lambda: {"name": "index"}, change=self.change, process=object()
        )
        self.done: list[Any] = []

    def change(self, name: str) -> None:
        if name != "fcfs":
            raise UserError(f"policies={name}: no")
        self.done.append(name)

    def snapshot(self) -> Any:
        raise ZeroDivisionError("ours\ntoo")

    def drain(self) -> None:
        self.status = "draining"

    def load(self, model: str, path: str | None) -> None:
        self.done.append(("load", model, path))

    def unload(self, model: str) -> None:
        self.done.append(("unload", model))

    def pin(self, model: str, is_pinned: bool) -> None:
        self.done.append(("pin", model, is_pinned))

    def hosted(self) -> dict[str, dict[str, Any]]:
        return {"a": {"is_pinned": False}}


@pytest.fixture
def pool() -> Pool:
    return Pool()


def call(pool: Pool, called: str, **arguments: Any) -> Any:
    return Operations(pool, ("index", "fcfs")).answer(
        Call(call=3, name=called, arguments=arguments)
    )


def test_answers_are_plain_data(pool: Pool) -> None:
    for name in ("health", "state", "models", "policies", "metrics"):
        reply = call(pool, name)
        assert reply.error is None
        json.dumps(reply.value)
    state = call(pool, "state").value
    assert state["instances"][0]["held"] == ["b"]
    assert state["queues"]["a"] == {"waiting": 0, "ready": 0}
    models = call(pool, "models").value
    assert [m["loaded_on"] for m in models] == [[], [0]]


def test_orders_reach_the_pool(pool: Pool) -> None:
    call(pool, "policy", name="fcfs")
    call(pool, "load", model="a")
    call(pool, "load", model="new", path="tiny:llama:3")
    call(pool, "unload", model="b")
    call(pool, "pin", model="a", is_pinned=False)
    assert pool.done == [
        "fcfs",
        ("load", "a", None),
        ("load", "new", "tiny:llama:3"),
        ("unload", "b"),
        ("pin", "a", False),
    ]
    assert call(pool, "drain").value["status"] == "draining"


@pytest.mark.parametrize(
    ("name", "arguments", "line"),
    [
        ("polices", {}, "polices: no such call; did you mean 'policies'"),
        ("policy", {"name": "nn"}, "policies=nn: no"),
        ("unload", {"model": "c"}, "model=c: not served; known: a, b"),
        ("load", {"model": "c"}, "model=c: not served"),
        ("snapshot", {}, "snapshot: ZeroDivisionError: ours too"),
        ("pin", {"modle": "a"}, "pin: TypeError"),
    ],
)
def test_refusal_is_a_line(pool: Pool, name: str, arguments: Any, line: str) -> None:
    reply = call(pool, name, **arguments)
    assert reply.call == 3
    assert line in reply.error
    assert "\n" not in reply.error


def test_every_route_of_the_http_side_has_its_call(pool: Pool) -> None:
    calls = {"health", "metrics", "snapshot"} | {operation.call for operation in OPERATIONS}
    assert calls == set(Operations(pool).calls)
