"""Turns over vLLM servers, one a model, of which all but one sleep.

What vLLM lacks shows in `traits`: a turn runs until its batch is empty, since nothing is preempted
between tokens, and sleeping loses KV, so a request that comes back is prefilled with its tokens.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple, Protocol

from runtime.core import EventKind
from runtime.engine.door import Traits
from runtime.engine.plan import Ending, Plan, Request, RequestId, TurnEvent
from runtime.errors import UserError, nearest


class Output(NamedTuple):
    """A request's new tokens of one step, and why it ended (as vLLM names it) if it did."""

    request: RequestId
    tokens: tuple[int, ...]
    finish_reason: str | None


class VllmServer(Protocol):
    """What is used of a vLLM engine of one model."""

    def sleep(self, level: int) -> None: ...

    def wake_up(self) -> None: ...

    def add_request(self, request: Request) -> None: ...

    def abort_request(self, request: RequestId) -> None: ...

    def step(self) -> Sequence[Output]: ...


class VllmEngine:
    """The door over sleeping servers; `level` 1 keeps weights in host memory."""

    traits = Traits(token_preempt=False, kv_survives_switch=False)

    def __init__(self, servers: Mapping[str, VllmServer], *, level: int = 1) -> None:
        self._servers, self._level = dict(servers), level
        self._requests: dict[RequestId, Request] = {}
        self._joined: list[RequestId] = []
        self._cancelled: list[RequestId] = []
        self._awake: str | None = None
        self._since_s = 0.0

    def submit(self, request: Request) -> None:
        if request.model not in self._servers:
            found = nearest(request.model, self._servers)
            raise UserError(f"model {request.model!r} is not served; {found}")
        self._requests[request.id] = request

    def join(self, *, prefill: Sequence[RequestId] = ()) -> None:
        self._joined += prefill

    def stop(self) -> None:
        pass  # nothing ends before its batch

    def cancel(self, request: RequestId) -> None:
        self._cancelled.append(request)

    def prefetch(self, model: str) -> None:
        pass  # a sleeping server cannot load beside one that is awake

    def run_turn(self, plan: Plan) -> Iterator[TurnEvent]:
        began_s = self._since_s = time.perf_counter()
        server = self._wake(plan.model)
        yield self._event(EventKind.SWITCHED)
        fresh: set[RequestId] = set()
        self._joined += (*plan.incoming, *plan.batch, *plan.prefill)
        live: set[RequestId] = set()
        while self._joined or live:
            while self._joined:
                name = self._joined.pop(0)
                server.add_request(self._requests[name])
                live.add(name)
                fresh.add(name)
            while self._cancelled:
                name = self._cancelled.pop(0)
                if self._requests.pop(name, None) is not None:
                    server.abort_request(name)
                    live.discard(name)
                    yield self._event(EventKind.FINISHED, (name,), ending=Ending.CANCELLED)
            yield from self._step(server, live, fresh)
        now_s = time.perf_counter()
        yield TurnEvent(EventKind.TURN_ENDED, now_s, now_s - began_s)

    def _wake(self, model: str) -> VllmServer:
        if self._awake != model:
            if self._awake is not None:
                self._servers[self._awake].sleep(self._level)
            self._servers[model].wake_up()
            self._awake = model
        return self._servers[model]

    def _step(
        self, server: VllmServer, live: set[RequestId], fresh: set[RequestId]
    ) -> Iterator[TurnEvent]:
        """First tokens are prefills, later ones steps."""
        outputs = [output for output in server.step() if output.request in live]
        for kind in (EventKind.PREFILLED, EventKind.STEPS):
            rows = [o for o in outputs if (o.request in fresh) == (kind is EventKind.PREFILLED)]
            for tokens in zip(*(o.tokens for o in rows), strict=True):
                yield self._event(kind, tuple(o.request for o in rows), tokens)
        for output in outputs:
            fresh.discard(output.request)
            if output.finish_reason is not None and output.request in live:
                live.discard(output.request)
                del self._requests[output.request]
                ending = Ending.LENGTH if output.finish_reason == "length" else Ending.STOP
                yield self._event(EventKind.FINISHED, (output.request,), ending=ending)

    def _event(
        self,
        kind: EventKind,
        requests: tuple[RequestId, ...] = (),
        tokens: tuple[int, ...] = (),
        ending: Ending | None = None,
    ) -> TurnEvent:
        now_s = time.perf_counter()
        took_s, self._since_s = now_s - self._since_s, now_s
        return TurnEvent(kind, now_s, took_s, requests, tokens, ending=ending)
