"""A worker: one instance's process. It executes one order at a time and reports what happened.

One thread. Between tokens it looks at its socket without waiting; while idle it waits there, or,
with loads and moves under way, looks after these every half millisecond.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import time
import traceback
from collections import deque
from collections.abc import Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass
from multiprocessing import forkserver
from typing import Any, NamedTuple

import msgspec
import torch

from runtime.core import EventKind, Stage
from runtime.engine.blob import attach_blob
from runtime.engine.device import Event, open_device
from runtime.engine.engine import Engine
from runtime.engine.host_kv import HostRecord, LeasedHostKv
from runtime.engine.live import Live
from runtime.engine.loader import Load as WeightsLoad
from runtime.engine.opening import Shelf, opened_engine
from runtime.engine.plan import Ending, Plan, Request, TurnEvent
from runtime.engine.sampling import Sampling
from runtime.service import children
from runtime.service.measure import costs_of
from runtime.service.messages import (
    Ask,
    Broken,
    Close,
    End,
    Forget,
    Hello,
    Load,
    Logprob,
    MoveOut,
    Order,
    Record,
    Report,
    Return,
    Submit,
    ToWorker,
)
from runtime.service.tokenizers import open_tokenizer
from runtime.service.wire import Wire, receive_descriptors

LOOK_S = 0.0005  # between looks at loads and moves under way, while idle
WHOLE = 1 << 62  # a budget that takes every prompt of a call


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelHandle:
    """A model whose weights come by descriptor. `path`: where its tokenizer is."""

    name: str
    index: bytes
    path: str


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerSpec:
    """What a worker is started with; descriptors follow: host KV, then each model's weights."""

    instance: int
    epoch: int
    device: str
    weight_slots: int
    kv_bytes: int
    block_tokens: int
    threads: int
    measures: bool  # the costs of every model, for its Hello
    models: tuple[ModelHandle, ...]


class ImpossibleError(RuntimeError):
    """An order that cannot be carried out: the controller and this worker disagree."""


class Leaving(NamedTuple):
    """KV on its way to host memory; `record` None: it was dropped."""

    id: int
    record: Record | None
    event: Event | None


class LazyTokenizer:
    """Opened when a request first brings stop strings."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._opened: Any = None

    def decode(self, token_ids: list[int], *, skip_special_tokens: bool = False) -> str:
        if self._opened is None:
            self._opened = open_tokenizer(self._path)
        text: str = self._opened.decode(token_ids, skip_special_tokens=skip_special_tokens)
        return text


class Worker:
    """Orders in, reports out, over one engine."""

    def __init__(self, engine: Engine, host: LeasedHostKv, wire: Wire, epoch: int) -> None:
        self.engine, self._host, self._wire, self._epoch = engine, host, wire, epoch
        self._orders: deque[Order] = deque()
        self._forgotten: list[int] = []  # once the order under way is done
        self._returned = 0  # the serial of the last Return
        self._busy: frozenset[int] = frozenset()  # requests of the order under way
        self._load: tuple[str, WeightsLoad] | None = None
        self._leaving: deque[Leaving] = deque()
        self._closing = False

    def run(self) -> None:
        """Until a Close; EOFError when the controller is gone."""
        while not (self._closing and not self._orders):
            if self._orders:
                self._execute(self._orders.popleft())
                self.look(0.0)
            else:
                self.look(LOOK_S if self._load or self._leaving else None)

    def look(self, timeout_s: float | None) -> None:
        """Take what came, tell what ended."""
        for message in self._wire.receive(timeout_s):
            self._take(message)
        self._tell_load()
        self._tell_moves()

    # Messages

    def _take(self, message: ToWorker) -> None:
        match message:
            case Order():
                self._orders.append(message)
            case Return():
                self._returned = message.serial
            case Submit():
                self.engine.submit(
                    request_of(message.ask, message.output), host_record(message.record)
                )
            case Forget():
                for name in message.ids:
                    self._forget(name)
            case Load():
                self._load = (message.model, self.engine.load(message.model, message.kept))
            case MoveOut():
                for name, lease in zip(message.ids, message.leases, strict=True):
                    self._leaving.append(self._move_out(name, lease))
            case Close():
                self._closing = True

    def _forget(self, name: int) -> None:
        if name in self._busy:
            self._forgotten.append(name)
        else:
            self.engine.release(name)

    def _move_out(self, name: int, lease: tuple[int, ...]) -> Leaving:
        live = self.engine.lives.get(name)
        if live is None or not live.has_kv:
            return Leaving(name, None, None)
        if name in self._busy:
            raise ImpossibleError(f"move out of request {name}: it is in the order under way")
        if self.engine.kv.is_on_device(name):
            self._host.lease = list(lease)
            if not self.engine.move_out([name]):
                self.engine.drop_kv(name)
                return Leaving(name, None, None)
        record, event = self.engine.kv.record(name)
        return Leaving(name, Record(record.block_bytes, live.cached, record.offsets), event)

    def _tell_load(self) -> None:
        if self._load is None:
            return
        model, load = self._load
        if load.done() or load.state.value == "failed":
            load.wait()  # raises what failed
            self._load = None
            self._report(EventKind.WEIGHTS_READY, model=model, seconds=load.seconds)

    def _tell_moves(self) -> None:
        done: list[Leaving] = []
        while self._leaving and ((event := self._leaving[0].event) is None or event.done()):
            if event is not None:
                event.wait()  # raises what failed
            done.append(self._leaving.popleft())
        if done:
            self._report(
                EventKind.KV_OUT_DONE,
                ids=tuple(leaving.id for leaving in done),
                records=tuple(leaving.record for leaving in done),
            )

    def _report(self, kind: EventKind, **fields: Any) -> None:
        self._wire.send(Report(epoch=self._epoch, kind=kind, **fields))

    # Orders

    def _execute(self, order: Order) -> None:
        self._busy = frozenset(order.ids)
        for name in order.ids:
            found = self.engine.lives.get(name)
            if found is None or found.request.model != order.model:
                raise ImpossibleError(f"order {order.serial}: no request {name} of {order.model}")
        match order.stage:
            case Stage.COMMANDED:
                self._switch(order)
            case Stage.KV_IN:
                self._move_in(order)
            case Stage.PREFILL:
                self._prefill(order)
            case Stage.DECODE:
                self._decode(order)
            case Stage.ENDING:
                self._report(EventKind.TURN_ENDED, serial=order.serial)
            case _:
                raise ImpossibleError(f"order {order.serial}: stage {order.stage.name}")
        self._busy = frozenset()
        forgotten, self._forgotten = self._forgotten, []
        for name in forgotten:
            self.engine.release(name)

    def _switch(self, order: Order) -> None:
        began_s = time.perf_counter()
        self.engine.activate(order.model)
        seconds = time.perf_counter() - began_s
        self._report(EventKind.SWITCHED, serial=order.serial, seconds=seconds)

    def _move_in(self, order: Order) -> None:
        began_s = time.perf_counter()
        kv = self.engine.kv
        for name in order.ids:
            if not self.engine.lives[name].has_kv:
                raise ImpossibleError(f"order {order.serial}: request {name} has no KV to move in")
            if not kv.is_on_device(name):
                kv.move_in(name)
        kv.wait_for(order.ids)
        self.engine.device.compute.synchronize()
        seconds = time.perf_counter() - began_s
        self._report(EventKind.KV_IN_DONE, serial=order.serial, ids=order.ids, seconds=seconds)

    def _prefill(self, order: Order) -> None:
        plan = Plan(
            model=order.model,
            prefill=order.ids,
            prefill_budget_tokens=WHOLE,
            prefill_chunk_tokens=order.chunk_tokens,
            decodes=False,
        )
        for event in self._events(plan):
            if event.kind is EventKind.PREFILLED:
                if event.requests != order.ids and (event.requests or not order.chunk_tokens):
                    raise ImpossibleError(f"order {order.serial}: no room for all its prompts")
                self._report_tokens(event, order, goes_on=False)
                return
        raise ImpossibleError(f"order {order.serial}: no room for its prompts")

    def _decode(self, order: Order) -> None:
        for name in order.ids:
            self._require_kv(name)
        began_s = time.perf_counter()
        steps = 0
        for event in self._events(Plan(model=order.model, batch=order.ids)):
            if event.kind is EventKind.KV_OUT_DONE:
                raise ImpossibleError(f"order {order.serial}: no room for its batch's KV")
            if event.kind is not EventKind.STEPS:
                continue
            steps += 1
            self.look(0.0)
            is_over = (
                steps == order.steps
                or self._returned == order.serial
                or bool(self._orders)
                or 0 < order.quota_s <= time.perf_counter() - began_s
                or any(self.engine.lives[name].ending for name in order.ids)
            )
            self._report_tokens(event, order, goes_on=not is_over)
            if is_over:
                return
        raise ImpossibleError(f"order {order.serial}: its batch does not decode")

    def _require_kv(self, name: int) -> None:
        """A member of a batch yields a token in every step: the KV of its others is here."""
        kv = self.engine.kv
        if self.engine.lives[name].has_kv and not kv.is_on_device(name):
            kv.move_in(name)
            kv.wait_for([name])
        if self.engine.lives[name].missing > 1:
            self.engine.recompute(name)

    def _events(self, plan: Plan) -> Iterator[TurnEvent]:
        """A turn's events; whatever is left of it is given up when the caller has enough."""
        with closing(self.engine.run_turn(plan)) as events:  # type: ignore[type-var]
            yield from events

    def _report_tokens(self, event: TurnEvent, order: Order, *, goes_on: bool) -> None:
        lives = [self.engine.lives[name] for name in event.requests]
        self._report(
            event.kind,
            serial=order.serial,
            seconds=event.seconds,
            ids=event.requests,
            first=tuple(len(live.tokens) - len(live.request.prompt) - 1 for live in lives),
            tokens=event.tokens,
            logprobs=tuple(map(logprob_of, event.logprobs)),
            ended=endings(lives),
            goes_on=goes_on,
        )
        self._forgotten += [id_of(live) for live in lives if live.ending]


def endings(lives: list[Live]) -> dict[int, End]:
    """Those that have had their last token, and why."""
    ends = {Ending.STOP: End.STOP, Ending.LENGTH: End.LENGTH, Ending.CANCELLED: End.CANCELLED}
    return {id_of(live): ends[live.ending] for live in lives if live.ending}


def id_of(live: Live) -> int:
    name = live.request.id
    assert isinstance(name, int), f"request {name!r}"
    return name


def logprob_of(found: Any) -> Logprob | None:
    if found is None:
        return None
    return Logprob(found.chosen, tuple(zip(found.top_tokens, found.top, strict=True)))


def host_record(record: Record | None) -> HostRecord | None:
    if record is None:
        return None
    return HostRecord(record.block_bytes, record.tokens, record.offsets)


def request_of(ask: Ask, output: tuple[int, ...]) -> Request:
    """The engine's request for what a client asked, with the tokens it has."""
    return Request(
        id=ask.id,
        model=ask.model,
        prompt=ask.prompt,
        max_tokens=ask.max_tokens,
        sampling=Sampling(**msgspec.structs.asdict(ask.sampling)),
        stop_tokens=frozenset(ask.stop_tokens),
        stop_strings=ask.stop_strings,
        ignore_eos=ask.ignore_eos,
        output=output,
    )


def main(spec: WorkerSpec, connection: socket.socket) -> None:
    """The process of an instance: until Close, an error, or the controller's end."""
    let_go_of_fork_server()
    children.die_with_parent()  # the fork server, which ends with the controller
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal's is the controller's to answer
    children.title(f"aegaeon-rl worker {spec.instance}")
    torch.set_num_threads(spec.threads)
    wire = Wire(connection)
    try:
        serve(spec, connection, wire)
    except EOFError:
        os._exit(0)  # nobody is left to tell; streams need not be waited for
    except BaseException as error:
        traceback.print_exc()
        give_up(wire, spec.epoch, error)


def serve(spec: WorkerSpec, connection: socket.socket, wire: Wire) -> None:
    fds = receive_descriptors(connection, 1 + len(spec.models))
    blobs = {
        model.name: attach_blob(model.index, fd)
        for model, fd in zip(spec.models, fds[1:], strict=True)
    }
    host = LeasedHostKv.attach(fds[0])
    for fd in fds:
        os.close(fd)
    with ExitStack() as opened:
        device = open_device(spec.device)
        opened.callback(device.close)
        for blob in blobs.values():
            device.register(blob.host)
        engine = opened.enter_context(
            opened_engine(
                device,
                Shelf(blobs),
                {name: blob.index for name, blob in blobs.items()},
                kv_bytes=spec.kv_bytes,
                slots=spec.weight_slots,
                tokenizers={model.name: LazyTokenizer(model.path) for model in spec.models},
                host=host,
                block=spec.block_tokens,
            )
        )
        costs = costs_of(engine, tuple(blobs)) if spec.measures else {}
        engine.residents.keep_only(())  # the pool starts empty
        nbytes = sum(engine.device_bytes())
        wire.send(
            Hello(
                epoch=spec.epoch,
                pid=os.getpid(),
                device=spec.device,
                device_bytes=nbytes,
                costs=costs,
            )
        )
        Worker(engine, host, wire, spec.epoch).run()


def give_up(wire: Wire, epoch: int, error: BaseException) -> None:
    """Tell why in one line, and end without waiting for streams that may hang."""
    line = " ".join(f"{type(error).__name__}: {error}".split())[:300]
    try:
        wire.send(Broken(epoch=epoch, reason=line))
    finally:
        sys.stderr.flush()
        os._exit(1)


def let_go_of_fork_server() -> None:
    """It ends with the controller once no worker holds it up any more."""
    hold: Any = forkserver._forkserver  # its own words for it are private
    if hold._forkserver_alive_fd is not None:
        os.close(hold._forkserver_alive_fd)
        hold._forkserver_alive_fd = None
