"""A scripted controller: talks to real workers as the service does, without the scheduler core."""

import select
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from runtime.core import EventKind, Stage
from runtime.service.agent import NodeAgent
from runtime.service.cluster import LocalCluster
from runtime.service.frames import Frames, frame
from runtime.service.messages import (
    Ask,
    Broken,
    FromWorker,
    Hello,
    Load,
    MoveOut,
    Order,
    Record,
    Report,
    Submit,
)
from runtime.service.spec import ModelSource, ServiceSpec

KIB = 1 << 10
PATIENCE_S = 30.0


def spec_of(*paths: str, **changes: Any) -> ServiceSpec:
    """Tiny models m0, m1... in little memory."""
    keys: dict[str, Any] = {
        "models": {f"m{i}": ModelSource(path=path) for i, path in enumerate(paths)},
        "kv_bytes": 512 * KIB,
        "host_kv_bytes": 1024 * KIB,
        "block_tokens": 4,
    }
    return ServiceSpec(**{**keys, **changes})


class Puppet:
    """One worker, driven step by step."""

    def __init__(self, worker: Any, agent: NodeAgent) -> None:
        self.worker, self.agent = worker, agent
        self.serial = 0
        self.outputs: dict[int, list[int]] = {}
        self.asks: dict[int, Ask] = {}
        self.records: dict[int, Record | None] = {}
        self.heard: list[Any] = []
        self._frames = Frames(FromWorker)

    def say(self, *messages: Any) -> None:
        self.worker.connection.sendall(b"".join(map(frame, messages)))

    def hear(self, wanted: Callable[[Any], bool] = lambda _: True) -> Any:
        """The first message that is `wanted`, others are kept; EOFError when the worker is gone."""
        until = time.monotonic() + PATIENCE_S
        while True:
            for message in self.heard:
                if wanted(message):
                    self.heard.remove(message)
                    return message
            left_s = until - time.monotonic()
            assert left_s > 0, f"nothing wanted among {self.heard}"
            if select.select([self.worker.connection], [], [], left_s)[0]:
                if not (data := self.worker.connection.recv(1 << 20)):
                    raise EOFError
                self.heard += self._frames.feed(data)

    def hello(self) -> Hello:
        found = self.hear()
        assert isinstance(found, Hello), found
        return found

    def broken(self) -> str:
        return self.hear(lambda m: isinstance(m, Broken)).reason

    def report(self, kind: EventKind) -> Report:
        return self.hear(lambda m: isinstance(m, Broken | Report) and m.kind is kind)

    def submit(self, number: int, model: str, prompt: list[int], **keys: Any) -> None:
        keys = {"max_tokens": 8, "ignore_eos": True, **keys}
        ask = Ask(id=number, request_id=f"r{number}", model=model, prompt=tuple(prompt), **keys)
        self.asks[number], self.outputs[number] = ask, []
        self.say(Submit(ask=ask))

    def adopt(self, other: "Puppet", number: int, *, with_record: bool) -> None:
        """A request of another worker goes on here."""
        self.asks[number], self.outputs[number] = other.asks[number], other.outputs[number]
        record = other.records[number] if with_record else None
        self.records[number] = record
        output = tuple(self.outputs[number])
        self.say(Submit(ask=self.asks[number], output=output, record=record))

    def order(self, stage: Stage, model: str, *ids: int, **keys: Any) -> int:
        self.serial += 1
        self.say(Order(serial=self.serial, stage=stage, model=model, ids=ids, **keys))
        return self.serial

    def load(self, model: str, *kept: str) -> None:
        self.say(Load(model=model, kept=kept))
        assert self.report(EventKind.WEIGHTS_READY).model == model

    def switch(self, model: str, *kept: str) -> None:
        self.load(model, *kept)
        self.order(Stage.COMMANDED, model)
        self.report(EventKind.SWITCHED)

    def prefill(self, model: str, *ids: int, **keys: Any) -> Report:
        self.order(Stage.PREFILL, model, *ids, **keys)
        report = self.report(EventKind.PREFILLED)
        self.account(report)
        return report

    def decode(self, model: str, *ids: int, steps: int = 1, **keys: Any) -> list[Report]:
        self.order(Stage.DECODE, model, *ids, steps=steps, **keys)
        reports = [self.step()]
        while reports[-1].goes_on:
            reports.append(self.step())
        return reports

    def step(self) -> Report:
        report = self.report(EventKind.STEPS)
        self.account(report)
        return report

    def account(self, report: Report) -> None:
        """Every token is the next one of its request."""
        for number, first, token in zip(report.ids, report.first, report.tokens, strict=True):
            assert first == len(self.outputs[number]), (number, first)
            self.outputs[number].append(token)

    def move_out(self, number: int, blocks: int | None = None) -> Record | None:
        """KV to host memory; the lease has room for what it may need, or `blocks`."""
        facts = self.agent.facts[self.asks[number].model]
        tokens = len(self.asks[number].prompt) + len(self.outputs[number])
        wanted = -(-tokens // self.agent.spec.block_tokens) if blocks is None else blocks
        lease = self.agent.lease(facts.block_bytes, wanted) if wanted else ()
        self.say(MoveOut(ids=(number,), block_bytes=facts.block_bytes, leases=(lease,)))
        report = self.report(EventKind.KV_OUT_DONE)
        assert report.ids == (number,)
        (record,) = report.records
        used = () if record is None else record.offsets
        self.agent.give_back(facts.block_bytes, tuple(o for o in lease if o not in used))
        self.records[number] = record
        return record

    def move_in(self, model: str, number: int) -> None:
        self.order(Stage.KV_IN, model, number)
        assert self.report(EventKind.KV_IN_DONE).ids == (number,)
        record = self.records.pop(number)
        assert record is not None
        self.agent.give_back(record.block_bytes, record.offsets)


@contextmanager
def puppets(spec: ServiceSpec, count: int = 1) -> Iterator[list[Puppet]]:
    """Workers that have said Hello, and nothing left of them afterwards."""
    agent = NodeAgent(spec)
    cluster = LocalCluster(agent)
    try:
        made = [Puppet(cluster.start(i, i + 1), agent) for i in range(count)]
        for puppet in made:
            puppet.hello()
        yield made
    finally:
        cluster.close()
        agent.host_kv.check_integrity()
        agent.close()
