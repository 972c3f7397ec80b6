"""The heart of the service: one loop between HTTP, workers and the policy.

What workers and clients say becomes events of the core, at the time it arrives; what the core
commands becomes messages. Workers that die, hang or talk nonsense are killed and reaped, then
their requests go on elsewhere from their tokens, then a fresh worker takes their place.
"""

from __future__ import annotations

import asyncio
import gc
import heapq
import logging
import socket
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import msgspec
import numpy as np

from runtime.core import NONE, NS, EventKind, RequestPhase, Stage
from runtime.errors import UserError, nearest
from runtime.pool.initial import new_state
from runtime.pool.integrity import check_integrity
from runtime.pool.placement import preload
from runtime.pool.state import Record as Row
from runtime.pool.state import State
from runtime.protocol import Policy
from runtime.service.agent import NodeAgent
from runtime.service.book import Book, Entry
from runtime.service.cluster import Cluster
from runtime.service.conductor import Conductor, new_event, warm
from runtime.service.decider import Decider
from runtime.service.links import HttpLink, WorkerLink
from runtime.service.logs import Opening
from runtime.service.messages import (
    Ask,
    Broken,
    Call,
    Close,
    Drop,
    End,
    Ended,
    FromHttp,
    FromWorker,
    Hello,
    Load,
    Reply,
    Report,
)
from runtime.service.observer import Observer
from runtime.service.plan import cost_table, model_specs, pool_spec, request_slots
from runtime.service.port import StaleError, WorkerPort
from runtime.service.sources import make, opening
from runtime.service.spec import ServiceSpec

log = logging.getLogger("aegaeon_rl.controller")
TICK_S = 0.05
START_S = 300.0  # a worker's own start, its cost measurement included
BACK_OFF_S = (0.1, 10.0)  # between a worker's end and the next start: first, longest
STEADY_S = 30.0  # up this long: the next end is a first one again
REAP_S = 10.0
SPARE_LIMITS = 4096  # of requests that have ended
MOST_FAULTS = 3  # of workers over one request: then it is not tried again
LATENCIES = 1 << 16  # kept

ENDS = {
    RequestPhase.DONE: End.STOP,
    RequestPhase.FAILED: End.REFUSED,
    RequestPhase.CANCELLED: End.CANCELLED,
    RequestPhase.SHED: End.SHED,
}
REASONS = {
    End.SHED: "the queue is full",
    End.TIMEOUT: "no first token within the time limit",
    End.REFUSED: "the prompt does not fit in the memory of an instance",
    End.DRAINING: "the server is shutting down",
    End.FAILED: f"{MOST_FAULTS} workers gave up while they worked on it",
}


class Decides(Protocol):
    """What the controller needs of a `Decider`; the value of an answer says who gave it."""

    def decide(self, state: State, kind: int, index: int, event: Row) -> Any: ...

    def fall_back(self, state: State, kind: int, index: int, event: Row) -> Any: ...

    def tick(self) -> None: ...

    def close(self) -> None: ...


MakeDecider = Callable[[ServiceSpec, Policy, Any, State], Decides]


def policy_process(spec: ServiceSpec, policy: Policy, pool: Any, state: State) -> Decides:
    """The policy in a process of its own; until it is ready the fallback answers."""
    decider = Decider(spec.policy, policy, pool, state)
    decider.start()
    return decider


class Here:
    """A policy in this process, without a budget. For tests."""

    def __init__(self, spec: ServiceSpec, policy: Policy, pool: Any, state: State) -> None:
        self.policy, self.memory = policy, policy.memory(state)

    def decide(self, state: State, kind: int, index: int, event: Row) -> str:
        self.policy.decide(state, kind, index, event, self.memory)
        return "policy"

    def fall_back(self, state: State, kind: int, index: int, event: Row) -> str:
        return "refused"

    def tick(self) -> None:
        pass

    def close(self) -> None:
        pass


class Seat:
    """An instance's worker: who it is, how often it fell."""

    def __init__(self) -> None:
        self.link: WorkerLink | None = None
        self.handle: Any = None
        self.epoch = 0
        self.falls = 0
        self.began_s = time.monotonic()
        self.up_s: float | None = None  # since when; None: not yet
        self.is_failing = False
        self.hello: asyncio.Future[Hello] | None = None
        self.placed: asyncio.Future[None] | None = None


class Controller:
    """`await start()`, then `await serve(socket)` with HTTP's end; `close()` ends all of it.

    Everything happens in the loop that `start` ran in. `answer` answers operators' calls.
    """

    def __init__(
        self,
        spec: ServiceSpec,
        agent: NodeAgent,
        cluster: Cluster,
        *,
        make_decider: MakeDecider = policy_process,
        observers: Sequence[Observer] = (),
        answer: Callable[[Call], Reply] | None = None,
    ) -> None:
        self.spec, self.agent, self.cluster = spec, agent, cluster
        self.make_decider, self.observers, self.answer = make_decider, list(observers), answer
        self.facts = [agent.facts[name] for name in spec.models]
        self.names = [model.name for model in self.facts]
        self.model_of = {name: m for m, name in enumerate(self.names)}
        self.seats = [Seat() for _ in range(spec.instances)]
        self.status = "starting"
        self.latencies_s: deque[float] = deque(maxlen=LATENCIES)
        self.ends: deque[float] = deque(maxlen=256)  # when the last requests ended
        self.http: HttpLink | None = None
        self._source = ""
        self._limits: list[tuple[int, int, int]] = []  # (time_ns, id, is_total)
        self._failures: set[asyncio.Task[None]] = set()
        self._received_s: float | None = None
        self._seen_recomputed = 0
        self._idle = asyncio.Event()

    # Start and end

    async def start(self) -> None:
        """Workers up, costs measured, the policy's placement loaded. Raises UserError."""
        for g in range(len(self.seats)):
            await self._launch(g, measures=g == 0)
        hellos = [await self._hello_of(seat) for seat in self.seats]
        self._open(hellos[0])
        await self._place()
        for g, seat in enumerate(self.seats):
            if seat.is_failing:
                raise UserError(f"instance {g}: its worker ended while the pool started")
        self.zero_ns = time.monotonic_ns() - int(self.state.pool["now_ns"][0])
        self.began_s = time.time()
        for seat, port in zip(self.seats, self.ports, strict=True):
            seat.up_s = time.monotonic()
            port.came_up()
        gc.collect()
        gc.freeze()  # a collection would walk all that was imported: tens of ms between two steps
        self.status = "ok"
        self._ticker = asyncio.create_task(self._tick_for_ever())

    def _open(self, hello: Hello) -> None:
        spec = self.spec
        policy = make(spec.policy.factory, spec.policy.name)
        pool = policy.configure(pool_spec(spec, self.facts, self.agent.host_kv.nbytes))
        models, costs = model_specs(self.facts), cost_table(hello.costs, self.facts)
        slos = tuple(spec.slo.of(name) for name in self.names)
        slots = request_slots(spec)
        self.state = new_state(pool, models, slos, costs, capacity=slots)
        self.placement = opening(policy, self.state)
        preload(self.state, self.placement)
        warm(self.state)
        self.opening = Opening(pool, models, slos, costs, self.placement, spec.policy.name)
        self.book = Book(slots, self.agent.give_back)
        self.ports = [
            WorkerPort(
                g, self.state, self.book, self.facts, self.agent.lease, self._let_go, self._leave
            )
            for g in range(len(self.seats))
        ]
        self.decider = self.make_decider(spec, policy, pool, self.state)
        self.conductor = Conductor(
            self.state, self.ports, self._decide, self._note, self._keep, self._retry
        )

    async def _place(self) -> None:
        """Load what the policy wants resident from the start."""
        for g, seat in enumerate(self.seats):
            held: list[str] = []
            for name in [self.names[m] for at, m in self.placement if at == g]:
                seat.placed = asyncio.get_running_loop().create_future()
                assert seat.link is not None
                seat.link.send([Load(model=name, kept=tuple(held))])
                await asyncio.wait_for(seat.placed, START_S)
                held.append(name)

    async def serve(self, http: socket.socket) -> None:
        """Until HTTP's end of the socket closes."""
        http.setblocking(False)
        loop = asyncio.get_running_loop()
        _, link = await loop.create_unix_connection(lambda: HttpLink(self._from_http), sock=http)
        self.http = link
        await link.closed.wait()
        self.http = None
        for entry in list(self.book):
            self._cancel(entry, End.CANCELLED)
        self._go_on()

    async def drain(self, limit_s: float) -> None:
        """Take no more requests; return when none is left, or cancel the rest at the limit."""
        self.status = "draining"
        try:
            await asyncio.wait_for(self._until_idle(), limit_s)
        except TimeoutError:
            for entry in list(self.book):
                self._cancel(entry, End.DRAINING)
            self._go_on()

    async def _until_idle(self) -> None:
        while len(self.book):
            self._idle.clear()
            await self._idle.wait()

    async def close(self) -> None:
        """No worker, no policy process is left."""
        self.status = "closed"
        gc.unfreeze()
        if hasattr(self, "_ticker"):
            self._ticker.cancel()
        for task in self._failures:
            task.cancel()
        await asyncio.gather(*self._failures, return_exceptions=True)
        for seat in self.seats:
            if seat.link is not None:
                seat.link.send([Close()])
                seat.link.close()
            if seat.handle is not None:
                await asyncio.get_running_loop().run_in_executor(None, seat.handle.close)
        if hasattr(self, "decider"):
            self.decider.close()
        if hasattr(self, "ports"):
            for port in self.ports:
                port.went_down()
        if self.http is not None:
            self.http.close()

    def check_integrity(self) -> None:
        """Core, book and host memory agree; for tests, between two events."""
        check_integrity(self.state)
        self.book.check_integrity(self.state)
        held = sum(
            entry.block_bytes * (len(entry.lease or ()) + len(offsets_of(entry)))
            for entry in self._entries()
        )
        assert self.agent.host_kv.taken() == held, "host memory that nobody holds"
        self.agent.host_kv.check_integrity()

    def _entries(self) -> set[Entry]:
        return {*self.book, *(entry for port in self.ports for entry in port.leaving)}

    # Time

    @property
    def now_ns(self) -> int:
        return max(time.monotonic_ns() - self.zero_ns, int(self.state.pool["now_ns"][0]))

    async def _tick_for_ever(self) -> None:
        while True:
            await asyncio.sleep(TICK_S)
            try:
                self._tick()
            except Exception:  # the next one must come: it alone sees hung workers
                log.exception("tick")

    def _tick(self) -> None:
        """Time limits of requests and workers, the policy's faults."""
        now_ns, again = self.now_ns, list[tuple[int, int, int]]()
        while self._limits and self._limits[0][0] <= now_ns:
            limit = heapq.heappop(self._limits)
            if not self._expire(limit[1], is_total=limit[2] != 0, now_ns=now_ns):
                again.append(limit)
        for limit in again:
            heapq.heappush(self._limits, limit)
        if len(self._limits) > SPARE_LIMITS + 4 * len(self.book):
            self._limits = [limit for limit in self._limits if limit[1] in self.book.entries]
            heapq.heapify(self._limits)
        now_s = time.monotonic()
        for g, port in enumerate(self.ports):
            if port.is_up and port.owes and now_s - port.since_s > self.spec.hang_s:
                self._fail(g, f"no report for {self.spec.hang_s:g} s", is_fault=True)
            seat = self.seats[g]
            is_coming = not port.is_up and not seat.is_failing and seat.link is not None
            if is_coming and now_s - seat.began_s > START_S:
                self._fail(g, f"not up within {START_S:g} s")
        self.decider.tick()
        self._go_on()

    def _expire(self, number: int, *, is_total: bool, now_ns: int) -> bool:
        """Whether the limit has had its effect; one of a request in a turn waits for its token."""
        entry = self.book.get(number)
        if entry is None or (entry.output and not is_total):
            return True
        phase = int(self.state.requests["phase"][entry.slot])
        if is_total:
            self._cancel(entry, End.TIMEOUT)
            return True
        if phase != RequestPhase.WAITING:
            return False
        entry.end = End.TIMEOUT
        self._happen(new_event(EventKind.EXPIRE, now_ns, id=number, request=entry.slot))
        return True

    # HTTP

    def _from_http(self, message: FromHttp) -> None:
        match message:
            case Ask():
                self._ask(message)
            case Drop():
                entry = self.book.get(message.id)
                if entry is not None:
                    entry.is_dropped = True
                    self._cancel(entry, End.CANCELLED)
            case Call():
                self._tell(self._answered(message))
        self._go_on()

    def _answered(self, call: Call) -> Reply:
        if self.answer is None:
            return Reply(call=call.call, error=f"{call.name}: nobody answers calls")
        return self.answer(call)

    def _ask(self, ask: Ask) -> None:
        """Into the pool, or an end at once."""
        now_ns = self.now_ns
        end, reason = self._refusal(ask)
        if end is not None:
            wait_s = self.retry_after_s() if end in (End.SHED, End.DRAINING) else None
            self._tell(Ended(id=ask.id, end=end, reason=reason, retry_after_s=wait_s))
            for observer in self.observers:
                observer.on_refusal(ask.request_id, ask.model, end, now_ns)
            return
        m, slot = self.model_of[ask.model], int(self.state.pool["free_head"][0])
        entry = Entry(ask, m, self.facts[m].block_bytes, now_ns, slot)
        self.book.add(entry)
        for observer in self.observers:
            observer.on_arrival(entry, now_ns)
        limits = self.spec.server.limits
        first_s = limits.first_token_s if ask.timeout_s is None else ask.timeout_s
        for limit_s, is_total in ((first_s, 0), (limits.request_s, 1)):
            heapq.heappush(self._limits, (now_ns + round(limit_s * NS), ask.id, is_total))
        fields = {"id": ask.id, "model": m, "n": len(ask.prompt), "tag": ask.priority}
        self._happen(new_event(EventKind.ARRIVAL, now_ns, **fields))

    def _refusal(self, ask: Ask) -> tuple[End | None, str]:
        """Why a request cannot come into the pool."""
        if self.status != "ok":
            return End.DRAINING, REASONS[End.DRAINING]
        if ask.model not in self.model_of:
            return End.REFUSED, f"model {ask.model!r:.80}: {nearest(ask.model, self.names)}"
        facts = self.facts[self.model_of[ask.model]]
        if not 0 < len(ask.prompt) < facts.context_tokens:
            bound = f"expected 1 to {facts.context_tokens - 1}, the context of {ask.model}"
            return End.REFUSED, f"a prompt of {len(ask.prompt)} tokens: {bound}"
        if ask.max_tokens < 1:
            return End.REFUSED, f"max_tokens={ask.max_tokens}: expected 1 at least"
        if not 0 <= min(ask.prompt) <= max(ask.prompt) < facts.vocab:
            return End.REFUSED, f"a token of the prompt: expected 0 to {facts.vocab - 1}"
        is_full = len(self.book) >= self.spec.server.limits.queue
        if is_full or self.state.pool["free_head"][0] == NONE:
            return End.SHED, REASONS[End.SHED]
        return None, ""

    def retry_after_s(self) -> float:
        """A guess: the time in which as many requests end as 1 in 16 of those in flight."""
        if len(self.ends) < 2 or self.ends[-1] <= self.ends[0]:
            return 1.0
        each_s = (self.ends[-1] - self.ends[0]) / (len(self.ends) - 1)
        return float(min(30.0, max(1.0, each_s * len(self.book) / 16)))

    def _cancel(self, entry: Entry, end: End) -> None:
        slot = entry.slot
        if entry.is_over or self.state.requests["is_cancelled"][slot]:
            return
        entry.end = end
        event = new_event(EventKind.CANCEL, self.now_ns, id=entry.ask.id, request=slot)
        self._happen(event)

    def _tell(self, message: msgspec.Struct) -> None:
        if self.http is not None:
            self.http.say(message)

    # The core

    def _happen(self, events: Any) -> None:
        self.conductor.happen(events)

    def _go_on(self) -> None:
        """Decide what is due, then send what follows."""
        if self.status == "starting":
            return
        while self.conductor.decide():
            pass
        for g, port in enumerate(self.ports):
            link = self.seats[g].link
            if port.out and link is not None:
                link.send(port.out)
                port.out.clear()
                if self._received_s is not None:
                    self.latencies_s.append(time.perf_counter() - self._received_s)
                    self._received_s = None
        self._received_s = None
        if self.http is not None:
            self.http.flush()

    def _decide(self, state: State, kind: int, index: int, event: Row) -> bool:
        self._source = str(self.decider.decide(state, kind, index, event))
        return self._source == "policy"

    def _retry(self, state: State, kind: int, index: int, event: Row) -> bool:
        self._source = str(self.decider.fall_back(state, kind, index, event))
        return False

    def _note(self, event: Row) -> None:
        source, self._source = self._source, ""
        for observer in self.observers:
            observer.on_event(event, source)

    def _keep(self, slot: int) -> None:
        """A request is over: nobody need know it any more, its client hears how it ended."""
        entry = self.book.close(slot)
        if entry.where != NONE:
            self._leave(entry)
        request = self.state.requests[slot]
        phase = RequestPhase(int(request["phase"]))
        end = entry.end if entry.end is not None else ENDS[phase]
        now_ns = int(self.state.pool["now_ns"][0])
        self.ends.append(time.monotonic())
        if not entry.is_dropped:
            wait_s = self.retry_after_s() if end is End.SHED else None
            reason = REASONS.get(end, "")
            self._tell(Ended(id=entry.ask.id, end=end, reason=reason, retry_after_s=wait_s))
        for observer in self.observers:
            observer.on_end(entry, request, end, now_ns)
        if not len(self.book):
            self._idle.set()

    def _let_go(self) -> None:
        """KV that the core gave up since the last order: whoever holds it lets go of it."""
        recomputed = int(self.state.pool["recomputed"][0])
        if recomputed == self._seen_recomputed:
            return
        self._seen_recomputed = recomputed
        for entry in self.book.lost(self.state):
            self.book.drop_record(entry)
            if entry.where != NONE:
                self._leave(entry)

    def _leave(self, entry: Entry) -> None:
        self.ports[entry.where].forget(entry)

    # Workers

    async def _launch(self, g: int, *, measures: bool = False) -> None:
        seat, loop = self.seats[g], asyncio.get_running_loop()
        seat.epoch += 1
        seat.began_s, seat.up_s = time.monotonic(), None
        seat.hello = loop.create_future()
        epoch = seat.epoch
        seat.handle = await loop.run_in_executor(
            None, lambda: self.cluster.start(g, epoch, measures=measures)
        )
        seat.handle.connection.setblocking(False)
        _, seat.link = await loop.create_unix_connection(
            lambda: WorkerLink(
                lambda message: self._from_worker(g, epoch, message),
                lambda reason: self._lost(g, epoch, reason),
            ),
            sock=seat.handle.connection,
        )

    async def _hello_of(self, seat: Seat) -> Hello:
        assert seat.hello is not None
        try:
            return await asyncio.wait_for(asyncio.shield(seat.hello), START_S)
        except TimeoutError:
            raise UserError(f"a worker did not start within {START_S:g} s") from None

    def _lost(self, g: int, epoch: int, reason: str) -> None:
        if epoch == self.seats[g].epoch and self.status != "closed":
            self._fail(g, reason)

    def _from_worker(self, g: int, epoch: int, message: FromWorker) -> None:
        seat = self.seats[g]
        if seat.epoch != epoch or message.epoch != epoch or seat.is_failing:
            return
        match message:
            case Hello():
                assert seat.hello is not None
                seat.hello.set_result(message)
                if self.status != "starting":
                    self._came_up(g)
            case Broken():
                self._fail(g, message.reason, is_fault=True)
            case Report():
                self._report(g, message)

    def _report(self, g: int, report: Report) -> None:
        seat, port = self.seats[g], self.ports[g]
        if self.status == "starting":
            if seat.placed is not None and not seat.placed.done():
                seat.placed.set_result(None)
            return
        received_s, now_ns = time.perf_counter(), self.now_ns
        try:
            events = port.events_of(report, now_ns)
        except StaleError as error:
            self._fail(g, str(error), is_fault=True)
            return
        if events is None:
            return
        self._received_s = received_s
        if report.tokens:
            self._pass_on(report, now_ns)
        self._happen(events)
        self._go_on()

    def _pass_on(self, report: Report, now_ns: int) -> None:
        """The tokens of a boundary, to those who wait for them."""
        if self.http is not None:
            self.http.tokens(report)
        if self.observers:
            for number in report.ids:
                entry = self.book.entries[number]
                for observer in self.observers:
                    observer.on_token(entry, now_ns)

    def _came_up(self, g: int) -> None:
        seat = self.seats[g]
        seat.up_s = time.monotonic()
        self.ports[g].came_up()
        for observer in self.observers:
            observer.on_instance(g, seat.epoch, "up", "")
        self._happen(new_event(EventKind.INSTANCE_JOINED, self.now_ns, instance=g))
        self._go_on()

    def _fail(self, g: int, reason: str, *, is_fault: bool = False) -> None:
        """Kill and reap the worker of g, then tell the core, then start another. `is_fault`: what
        it worked on may be why, and is not tried for ever."""
        seat = self.seats[g]
        if seat.is_failing or self.status == "closed":
            return
        seat.is_failing = True
        if self.status == "starting":
            if seat.hello is not None and not seat.hello.done():
                seat.hello.set_exception(UserError(f"instance {g}: {reason}"))
            if seat.placed is not None and not seat.placed.done():
                seat.placed.set_exception(UserError(f"instance {g}: {reason}"))
            return
        log.warning("instance %d: %s", g, reason, extra={"instance": g, "epoch": seat.epoch})
        port = self.ports[g]
        at_work = () if port.order is None or not is_fault else port.order.ids
        port.is_up = False
        port.out.clear()
        task = asyncio.create_task(self._replace(g, reason, at_work))
        self._failures.add(task)
        task.add_done_callback(self._failures.discard)

    async def _replace(self, g: int, reason: str, at_work: tuple[int, ...]) -> None:
        """`at_work`: the requests that may be to blame."""
        seat, loop = self.seats[g], asyncio.get_running_loop()
        handle = seat.handle
        handle.kill()
        while not await loop.run_in_executor(None, lambda: handle.wait(REAP_S)):
            log.error("instance %d: outlives SIGKILL, its requests wait", g, extra={"instance": g})
        if seat.link is not None:
            seat.link.close()
            seat.link = None
        await loop.run_in_executor(None, handle.close)
        seat.handle = None
        self.ports[g].went_down()
        for observer in self.observers:
            observer.on_instance(g, seat.epoch, "down", reason)
        if self.state.instances["stage"][g] != Stage.DOWN:
            self._happen(new_event(EventKind.INSTANCE_FAILED, self.now_ns, instance=g))
        for number in at_work:
            self._blame(number)
        self._go_on()
        await self._start_again(g)

    def _blame(self, number: int) -> None:
        entry = self.book.get(number)
        if entry is not None:
            entry.faults += 1
            if entry.faults >= MOST_FAULTS:
                self._cancel(entry, End.FAILED)

    async def _start_again(self, g: int) -> None:
        """After a pause that doubles while nothing stays up."""
        seat = self.seats[g]
        if seat.up_s is not None and time.monotonic() - seat.up_s > STEADY_S:
            seat.falls = 0
        first_s, longest_s = BACK_OFF_S
        while True:
            seat.falls += 1
            await asyncio.sleep(min(longest_s, first_s * 2.0 ** min(seat.falls - 1, 16)))
            seat.is_failing = False
            try:
                await self._launch(g)
            except Exception as error:  # whatever a cluster meets, an instance is not given up
                log.error("instance %d: no worker: %s", g, error, extra={"instance": g})
                seat.is_failing = True
            else:
                return

    def latency_p99_s(self) -> float:
        """From a worker's report to the next order sent, of the latest ones; NaN without any."""
        return float(np.percentile(self.latencies_s, 99)) if self.latencies_s else float("nan")


def offsets_of(entry: Entry) -> tuple[int, ...]:
    return () if entry.record is None else entry.record.offsets
