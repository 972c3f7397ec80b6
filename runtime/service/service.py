"""A pool from its first process to its last: start-up, signals, drain, end.

Nothing outlives it: memfds are held by descriptors alone, and every process ends with its parent.
"""

import asyncio
import contextlib
import logging
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from runtime.core import PoolSpec
from runtime.errors import UserError
from runtime.pool.state import State
from runtime.protocol import Policy
from runtime.service import children, http_process
from runtime.service.agent import NodeAgent
from runtime.service.cluster import LocalCluster
from runtime.service.controller import Controller
from runtime.service.decider import Decider
from runtime.service.http.cards import Offer
from runtime.service.http.process import bind, url_of
from runtime.service.logs import Logs
from runtime.service.messages import Call, Reply
from runtime.service.metrics import Metrics
from runtime.service.operations import Operations
from runtime.service.recent import Recent
from runtime.service.recorder import Recorder, moment_of
from runtime.service.snapshot_view import snapshot
from runtime.service.sources import make
from runtime.service.spec import ServiceSpec
from runtime.service.telemetry import Telemetry, telemetry

log = logging.getLogger("aegaeon_rl.service")
HTTP_END_S = 5.0  # for its last answers
LAST_S = 2.0  # for requests that the limit of the drain cut
RESTART_S = 0.5  # between an unwanted end of HTTP's process and the next
REST_S = 0.3  # between two snapshots of the pool
POLICY_S = 120.0  # for a policy's first start, which may compile


class Up(NamedTuple):
    """A service that takes requests."""

    url: str
    models: tuple[str, ...]
    logs: Path | None


class Service:
    """`await run(on_up)` serves until a signal comes. Raises UserError for what cannot start."""

    def __init__(self, spec: ServiceSpec, policies: Sequence[str] = ()) -> None:
        if spec.cluster != "local":
            raise UserError(f"cluster={spec.cluster}: expected local")
        self.spec = spec
        make(spec.policy.factory, spec.policy.name)
        self.policies = policies
        self.metrics = Metrics(list(spec.models), self._state)
        self.logs: Logs | None = None
        self.spans: Telemetry | None = None
        self.is_ending = False
        self.ended, self.at_once = asyncio.Event(), asyncio.Event()

    async def run(self, on_up: Callable[[Up], None] = lambda up: None) -> None:
        with contextlib.ExitStack() as held:
            held.callback(children.end_since, children.own())
            listener = held.enter_context(bind(self.spec.server))
            agent = NodeAgent(self.spec)
            held.callback(agent.close)
            cluster = LocalCluster(agent)
            held.callback(cluster.close)
            self.controller = Controller(
                self.spec, agent, cluster, make_decider=self._decider, answer=self._answer
            )
            try:
                await self._run(listener, agent, on_up)
            finally:
                await self.controller.close()
                if self.logs is not None:
                    self.logs.close()
                if self.spans is not None:
                    self.spans.close()

    async def _run(
        self, listener: socket.socket, agent: NodeAgent, on_up: Callable[[Up], None]
    ) -> None:
        controller = self.controller
        with self._signals():
            starting = asyncio.ensure_future(controller.start())
            ending = asyncio.ensure_future(self.ended.wait())
            await asyncio.wait({starting, ending}, return_when=asyncio.FIRST_COMPLETED)
            if not starting.done():
                starting.cancel()
                await asyncio.gather(starting, return_exceptions=True)
                return
            starting.result()
            self._record()
            self.operations = Operations(Operator(self, agent), self.policies)
            await self._serve(listener, offers_of(agent), on_up)
            ending.cancel()

    def _record(self) -> None:
        spec, controller = self.spec, self.controller
        moment = moment_of(controller.began_s)
        if spec.logs.folder is not None:
            self.logs = Logs(spec.logs, controller.opening, moment)
        self.spans = telemetry(round(controller.began_s * 1e9))
        decider = controller.decider
        assert isinstance(decider, Decider)
        recorder = Recorder(
            self.metrics, controller.state, lambda: decider.in_charge, self.logs, self.spans
        )
        self.recent = Recent(controller.state)
        controller.observers += [recorder, self.recent]

    async def _serve(
        self, listener: socket.socket, offers: Mapping[str, Offer], on_up: Callable[[Up], None]
    ) -> None:
        """HTTP's process, again where it ends by itself; until drained."""
        ticking = asyncio.create_task(self._tick_for_ever())
        draining = asyncio.create_task(self._drain_when_told())
        is_first = True
        try:
            while not self.is_ending:
                child, link = http_process.start(listener, self.spec.server, offers)
                serving = asyncio.create_task(self.controller.serve(link))
                if is_first:
                    logs = self.logs.folder if self.logs else None
                    on_up(Up(url_of(listener), tuple(self.controller.names), logs))
                    is_first = False
                await asyncio.wait({serving, draining}, return_when=asyncio.FIRST_COMPLETED)
                await self._end_http(child, serving)
                if not self.is_ending:
                    log.error("the HTTP process ended by itself: a new one starts")
                    await asyncio.sleep(RESTART_S)
            await draining
        finally:
            for task in (ticking, draining):
                task.cancel()

    async def _end_http(
        self, child: "subprocess.Popen[bytes]", serving: "asyncio.Task[None]"
    ) -> None:
        if self.controller.http is not None:
            self.controller.http.flush()
            self.controller.http.close()
        await asyncio.to_thread(children.end, child, HTTP_END_S)
        await serving

    async def _drain_when_told(self) -> None:
        await self.ended.wait()
        self.is_ending = True
        log.info("draining: no more requests are taken")
        drained = asyncio.create_task(self.controller.drain(self.spec.server.drain_s))
        hurried = asyncio.create_task(self.at_once.wait())
        await asyncio.wait({drained, hurried}, return_when=asyncio.FIRST_COMPLETED)
        if not drained.done():
            drained.cancel()
            await self.controller.drain(0.0)
        hurried.cancel()
        end_s = time.monotonic() + LAST_S
        while len(self.controller.book) and time.monotonic() < end_s:
            await asyncio.sleep(0.02)  # those cancelled in a turn end at its boundary

    async def _tick_for_ever(self) -> None:
        restarts = 0
        while True:
            await asyncio.sleep(1.0)
            if self.logs is not None:
                self.logs.tick()
                lost = self.logs.lost_rows - self.metrics.log_lost._value.get()
                self.metrics.log_lost.inc(max(0.0, lost))
            now = self.controller.decider.restarts  # type: ignore[attr-defined]
            self.metrics.policy_restarts.inc(now - restarts)
            restarts = now

    @contextlib.contextmanager
    def _signals(self) -> Any:
        """SIGTERM and SIGINT: drain; a second one: at once."""
        loop = asyncio.get_running_loop()
        numbers = (signal.SIGINT, signal.SIGTERM)
        for number in numbers:
            loop.add_signal_handler(number, self.end)
        try:
            yield
        finally:
            for number in numbers:
                loop.remove_signal_handler(number)

    def end(self) -> None:
        """Drain, then end; called again: end at once."""
        if self.ended.is_set():
            self.at_once.set()
        self.ended.set()

    def _decider(self, spec: ServiceSpec, policy: Policy, pool: PoolSpec, state: State) -> Decider:
        began_s = time.monotonic()
        decider = Decider(spec.policy, policy, pool, state, self.metrics.decided)
        try:
            decider.start(POLICY_S)
        except UserError:
            decider.close()
            raise
        log.info("policy %s is ready after %.1f s", spec.policy.name, time.monotonic() - began_s)
        return decider

    def _answer(self, call: Call) -> Reply:
        return self.operations.answer(call)

    def _state(self) -> State:
        return self.controller.state


class Operator:
    """The controller as operators see it (`operations.Operated`)."""

    def __init__(self, service: Service, agent: NodeAgent) -> None:
        self.service, self.agent = service, agent
        self.controller, self.metrics = service.controller, service.metrics
        self.looked_s, self.shown = -REST_S, dict[str, Any]()
        self.pinned = {name for name, source in agent.sources.items() if source.is_pinned}

    @property
    def names(self) -> Sequence[str]:
        return self.controller.names

    @property
    def state(self) -> State:
        return self.controller.state

    @property
    def decider(self) -> Decider:
        decider = self.controller.decider
        assert isinstance(decider, Decider)
        return decider

    @property
    def status(self) -> str:
        return self.controller.status

    def snapshot(self) -> Any:
        """At most one a REST_S is made, however many pages look."""
        now_s = time.monotonic()
        if now_s >= self.looked_s + REST_S:
            self.looked_s, recent = now_s, self.service.recent
            recent.advance(self.controller.now_ns)
            self.shown = snapshot(
                self.state,
                self.names,
                recent,
                now_ns=self.controller.now_ns,
                status=self.status,
                policy=self.decider.status(),
            )
        return self.shown

    def drain(self) -> None:
        self.service.end()

    def load(self, model: str, path: str | None) -> None:
        """All models of the start are in host memory; no other can come in later."""
        if model not in self.names:
            raise UserError(f"model={model}: not served: start the service with it under models")

    def unload(self, model: str) -> None:
        raise UserError(f"model={model}: it is served: start the service without it")

    def pin(self, model: str, is_pinned: bool) -> None:
        (self.pinned.add if is_pinned else self.pinned.discard)(model)

    def hosted(self) -> dict[str, dict[str, Any]]:
        return {
            name: {
                "path": source.path,
                "is_in_host_memory": True,
                "is_pinned": name in self.pinned,
                "context_tokens": self.agent.facts[name].context_tokens,
            }
            for name, source in self.agent.sources.items()
        }


def offers_of(agent: NodeAgent) -> dict[str, Offer]:
    return {
        name: Offer(
            path=agent.sources[name].path,
            context_tokens=facts.context_tokens,
            vocab=facts.vocab,
        )
        for name, facts in agent.facts.items()
    }
