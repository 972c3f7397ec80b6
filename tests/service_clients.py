"""Clients of a controller with real workers, and what their answers should be."""

import asyncio
import socket
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import torch

from runtime.engine.model import Shell
from runtime.service.agent import NodeAgent
from runtime.service.cluster import LocalCluster
from runtime.service.controller import Controller, Here
from runtime.service.frames import Frames, frame
from runtime.service.messages import Ask, Ended, ToHttp, Tokens
from runtime.service.spec import ModelSource, ServiceSpec
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
