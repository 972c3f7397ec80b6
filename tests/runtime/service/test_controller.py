"""The controller over real workers: 8 tiny models on 2 CPU instances."""

import asyncio
import socket
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest
import torch

from runtime.engine.model import Shell
from runtime.service.agent import NodeAgent
from runtime.service.cluster import LocalCluster
from runtime.service.controller import Controller, Here
from runtime.service.frames import Frames, frame
from runtime.service.messages import Ask, Drop, End, Ended, ToHttp, Tokens
from runtime.service.spec import Limits, ModelSource, ServerSpec, ServiceSpec
from runtime.service.tiny import ByteTokenizer, tiny_blob

KIB = 1 << 10
PATHS = tuple(f"tiny:{kind}:{seed}" for seed in range(4) for kind in ("llama", "qwen3"))
PATIENCE_S = 60.0


def service(**changes: Any) -> ServiceSpec:
    keys: dict[str, Any] = {
        "models": {f"m{i}": ModelSource(path=path) for i, path in enumerate(PATHS)},
        "kv_bytes": 512 * KIB,
        "host_kv_bytes": 2048 * KIB,
        "block_tokens": 4,
    }
    return ServiceSpec(**{**keys, **changes})


def generated(path: str, prompt: Sequence[int], count: int) -> list[int]:
    """What transformers' own `generate` says, greedily."""
    blob = tiny_blob(path, "float32")
    shell = Shell(blob.index.config, torch.float32, "cpu", attention="eager")
    shell.bind(path, blob.tensors)
    with torch.inference_mode():
        out = shell.module.generate(
            torch.tensor([list(prompt)]),
            attention_mask=torch.ones(1, len(prompt)),
            max_new_tokens=count,
            do_sample=False,
            eos_token_id=None,
        )
    blob.close()
    return out[0, len(prompt) :].tolist()


class Client:
    """HTTP's end of the link: every answer, in order."""

    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection
        self.outputs: dict[int, list[int]] = {}
        self.ends: dict[int, Ended] = {}
        self.changed = asyncio.Event()

    async def run(self) -> None:
        loop, frames = asyncio.get_running_loop(), Frames(ToHttp)
        self.connection.setblocking(False)
        while data := await loop.sock_recv(self.connection, 1 << 20):
            for message in frames.feed(data):
                self.take(message)

    def take(self, message: Any) -> None:
        if isinstance(message, Tokens):
            for number, token in zip(message.ids, message.tokens, strict=True):
                assert number not in self.ends, f"a token of {number}, which has ended"
                self.outputs.setdefault(number, []).append(token)
        elif isinstance(message, Ended):
            assert message.id not in self.ends, f"{message.id} ended twice"
            self.ends[message.id] = message
            self.changed.set()

    async def say(self, *messages: Any) -> None:
        data = b"".join(map(frame, messages))
        await asyncio.get_running_loop().sock_sendall(self.connection, data)

    async def ended(self, count: int) -> None:
        async with asyncio.timeout(PATIENCE_S):
            while len(self.ends) < count:
                self.changed.clear()
                await self.changed.wait()


@asynccontextmanager
async def running(spec: ServiceSpec) -> AsyncIterator[tuple[Controller, Client]]:
    agent = NodeAgent(spec)
    cluster = LocalCluster(agent)
    controller = Controller(spec, agent, cluster, make_decider=Here)
    ours, theirs = socket.socketpair()
    client = Client(ours)
    try:
        await controller.start()
        tasks = [asyncio.create_task(controller.serve(theirs)), asyncio.create_task(client.run())]
        yield controller, client
        controller.check_integrity()
        assert not len(controller.book)
        assert agent.host_kv.taken() == 0
    finally:
        await controller.close()
        for task in tasks:
            task.cancel()
        ours.close()
        cluster.close()
        agent.close()


def ask(number: int, model: str, prompt: Sequence[int], max_tokens: int = 12, **keys: Any) -> Ask:
    keys = {"ignore_eos": True, **keys}
    return Ask(
        id=number,
        request_id=f"r{number}",
        model=model,
        prompt=tuple(prompt),
        max_tokens=max_tokens,
        **keys,
    )


def prompts(count: int) -> list[tuple[str, list[int]]]:
    """(model, prompt) of as many requests, models in turn."""
    encode = ByteTokenizer().encode
    return [(f"m{i % len(PATHS)}", encode(f"request number {i} says")) for i in range(count)]


@pytest.fixture(scope="module")
def truth() -> dict[tuple[str, tuple[int, ...]], list[int]]:
    return {
        (model, tuple(prompt)): generated(PATHS[int(model[1:])], prompt, 12)
        for model, prompt in prompts(24)
    }


def test_eight_models_on_two_instances_say_what_generate_says(truth: Any) -> None:
    async def main() -> None:
        async with running(service()) as (controller, client):
            wanted = prompts(24)
            await client.say(*(ask(i, *pair) for i, pair in enumerate(wanted, 1)))
            await client.ended(24)
            for i, (model, prompt) in enumerate(wanted, 1):
                assert client.outputs[i] == truth[model, tuple(prompt)], f"request {i}"
                assert client.ends[i].end is End.LENGTH
            assert controller.latencies_s

    asyncio.run(main())


def test_killed_and_stopped_workers_cost_no_token(truth: Any) -> None:
    async def main() -> None:
        async with running(service()) as (controller, client):
            wanted = prompts(24)
            await client.say(*(ask(i, *pair) for i, pair in enumerate(wanted, 1)))
            for kill in range(4):
                await asyncio.sleep(0.05)
                handle = controller.seats[kill % 2].handle
                if handle is not None:
                    handle.kill()
                controller.book.check_integrity(controller.state)
            await client.ended(24)
            for i, (model, prompt) in enumerate(wanted, 1):
                assert client.outputs[i] == truth[model, tuple(prompt)], f"request {i}"

    asyncio.run(main())


def test_requests_that_cannot_be_served_end_at_once_and_say_why() -> None:
    spec = service(server=ServerSpec(limits=Limits(queue=4, first_token_s=0.2)))
    encode = ByteTokenizer().encode

    async def main() -> None:
        async with running(spec) as (_, client):
            await client.say(
                ask(1, "m9", encode("x")), ask(2, "m0", []), ask(3, "m0", [1 << 20]),
                ask(4, "m0", encode("x" * 3000)), ask(5, "m0", encode("x"), 0),
            )  # fmt: skip
            await client.ended(5)
            assert {e.end for e in client.ends.values()} == {End.REFUSED}
            assert all(e.reason for e in client.ends.values())
            await client.say(*(ask(i, f"m{i % 8}", encode("x"), 500) for i in range(6, 14)))
            await client.ended(9)
            shed = [e for e in client.ends.values() if e.end is End.SHED]
            assert len(shed) == 4
            assert all(e.retry_after_s is not None and e.retry_after_s > 0 for e in shed)
            await client.say(*(Drop(id=i) for i in range(6, 14)))
            await asyncio.sleep(0.5)

    asyncio.run(main())
