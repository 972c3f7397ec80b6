"""One instance as the core sees it, over messages: commands become orders to its worker, reports
become events.

A worker gets one order at a time, for the stage the core holds; it reports its end and waits. A
port whose worker is gone swallows commands until the core has heard of the failure.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence

import msgspec
import numpy as np

from runtime.core import FOREVER_NS, NONE, NS, EventKind, SlotState, Stage
from runtime.pool.memory import room_for_steps
from runtime.pool.state import State, Table
from runtime.protocol import Turn
from runtime.service.book import Book, Entry
from runtime.service.conductor import new_event
from runtime.service.messages import Forget, Load, MoveOut, Order, Report, Return, Submit
from runtime.service.models import ModelFacts

MOST_STEPS = 1 << 12  # of one order
Lease = Callable[[int, int], tuple[int, ...]]


class StaleError(Exception):
    """A report that fits nothing this worker was asked: it is of no more use."""


class WorkerPort:
    """`runtime.protocol.Engine` of instance `g`. `out` collects messages until they are sent.

    `before` is called ahead of every order: KV that the core gave up is let go of there. `leave`
    makes the worker that knew a request forget it.
    """

    def __init__(
        self,
        g: int,
        state: State,
        book: Book,
        models: Sequence[ModelFacts],
        lease: Lease,
        before: Callable[[], None],
        leave: Callable[[Entry], None],
    ) -> None:
        self.g, self.state, self.book, self.models = g, state, book, models
        self.lease, self.before, self.leave = lease, before, leave
        self.out: list[msgspec.Struct] = []
        self.is_up = False
        self.serial = self.turns = 0
        self.order: Order | None = None  # under way
        self.returned = False
        self.moving_in: tuple[Entry, ...] = ()
        self.leaving: deque[Entry] = deque()
        self.loading: str | None = None
        self.since_s = time.monotonic()  # when what is owed was asked for, or last went on

    @property
    def owes(self) -> bool:
        return self.order is not None or self.loading is not None or bool(self.leaving)

    # Commands of the core

    def start(self, turn: Turn) -> None:
        if not self.is_up:
            return
        self.before()
        stage, model = Stage(self._inst("stage")), self.models[turn.model].name
        if stage is Stage.COMMANDED:
            slot = self._inst("active_slot")
            is_here = self.state.slots["state"][self.g, slot] == SlotState.READY
            if is_here and self.order is None:  # else a prefetch of another model has ended
                self.turns += 1
                self._send(stage, model, ())
        elif stage is Stage.KV_IN:
            self.moving_in = tuple(map(self.book.of, turn.incoming[: self._inst("moving_in")]))
            self._send(stage, model, [e for e in self.moving_in if e.record is not None])
        elif stage is Stage.PREFILL:
            self._prefill(turn, model)
        elif stage is Stage.DECODE:
            self._decode(turn, model)
        elif stage is Stage.ENDING:
            self._send(stage, model, ())

    def join(self, requests: tuple[int, ...]) -> None:
        order = self.order
        if order is not None and order.stage is Stage.DECODE and not self.returned:
            self.returned = True
            self.out.append(Return(serial=order.serial))

    def load(self, model: int) -> None:
        if not self.is_up:
            return
        self._wait()
        self.loading = self.models[model].name
        held = self.state.slots["model"][self.g].tolist()
        kept = tuple(self.models[m].name for m in held if m not in (NONE, model))
        self.out.append(Load(model=self.loading, kept=kept))

    def move_out(self, requests: tuple[int, ...]) -> None:
        fresh = [self.book.of(r) for r in requests]
        fresh = [entry for entry in fresh if entry.lease is None]
        if not self.is_up or not fresh:
            return
        self.before()
        self._wait()
        for entry in fresh:
            assert entry.where == self.g, f"request {entry.ask.id} is not on instance {self.g}"
            blocks = -(-entry.context_tokens // int(self.state.pool["block_tokens"][0]))
            entry.lease = self.lease(entry.block_bytes, blocks)
            self.leaving.append(entry)
            self.out.append(
                MoveOut(ids=(entry.ask.id,), block_bytes=entry.block_bytes, leases=(entry.lease,))
            )

    def share(self, *, is_in: bool) -> None:
        pass

    def poll(self) -> Iterable[Table]:
        return ()

    # Life

    def forget(self, entry: Entry) -> None:
        """The worker need not know this request any more."""
        if entry.where == self.g:
            entry.where, entry.has_kv = NONE, False
            if self.is_up:
                self.out.append(Forget(ids=(entry.ask.id,)))

    def went_down(self) -> None:
        """The worker is gone and reaped: what it held or was lent is nobody's."""
        self.is_up, self.order, self.loading = False, None, None
        self.out.clear()
        self.moving_in = ()
        while self.leaving:
            self.book.settle_lease(self.leaving.popleft(), None)
        for entry in self.book:
            if entry.where == self.g:
                entry.where, entry.has_kv = NONE, False

    def came_up(self) -> None:
        self.is_up, self.since_s = True, time.monotonic()

    # Orders

    def _inst(self, column: str) -> int:
        return int(self.state.instances[column][self.g])

    def _wait(self) -> None:
        if not self.owes:
            self.since_s = time.monotonic()

    def _send(
        self,
        stage: Stage,
        model: str,
        entries: Sequence[Entry],
        *,
        chunk_tokens: int = 0,
        steps: int = 0,
        quota_s: float = 0.0,
    ) -> None:
        assert self.order is None, f"instance {self.g}: order {self.serial} is under way"
        for entry in entries:
            self._introduce(entry)
        self._wait()
        self.serial += 1
        self.returned = False
        self.order = Order(
            serial=self.serial,
            stage=stage,
            model=model,
            ids=tuple([entry.ask.id for entry in entries]),
            chunk_tokens=chunk_tokens,
            steps=steps,
            quota_s=quota_s,
        )
        self.out.append(self.order)

    def _introduce(self, entry: Entry) -> None:
        """Make the worker know a request that it does not, with what it has already."""
        if entry.turn != (self.g, self.turns):
            entry.turn, entry.turns = (self.g, self.turns), entry.turns + 1
        if entry.where == self.g:
            return
        if entry.where != NONE:
            self.leave(entry)
        entry.where, entry.has_kv, entry.last_instance = self.g, False, self.g
        self.out.append(Submit(ask=entry.ask, output=tuple(entry.output), record=entry.record))

    def _prefill(self, turn: Turn, model: str) -> None:
        """One call: the first prompt or a chunk of it, those behind it while the budget lasts."""
        pool, requests = self.state.pool[0], self.state.requests
        chunk, limit = int(pool["prefill_chunk_tokens"]), int(pool["prefill_budget_tokens"])
        limit = min(limit, chunk) if chunk else limit
        chosen, tokens = list[Entry](), 0
        for r in turn.prefill:
            entry, done = self.book.of(r), int(requests["prefilled_tokens"][r])
            length = entry.context_tokens - done
            if chosen and tokens + length > limit:
                break
            if done == 0 and entry.has_kv and entry.where == self.g:
                self.forget(entry)  # what it has of an attempt that was given up
            chosen.append(entry)
            tokens += length
            if len(chosen) == 1 and chunk and length > chunk:
                self._send(Stage.PREFILL, model, chosen, chunk_tokens=chunk)
                return
        self._send(Stage.PREFILL, model, chosen)

    def _decode(self, turn: Turn, model: str) -> None:
        """As many steps as surely fit in memory; one where a prompt waits for its next chunk."""
        steps = 1 if turn.prefill else int(room_for_steps(self.state, self.g, MOST_STEPS))
        left_ns = turn.quota_ns - self._inst("decoded_ns")
        quota_s = 0.0 if turn.quota_ns >= FOREVER_NS else max(1, left_ns) / NS
        entries = [self.book.of(r) for r in turn.batch]
        self._send(Stage.DECODE, model, entries, steps=max(1, steps), quota_s=quota_s)

    # Reports

    def events_of(self, report: Report, now_ns: int) -> Table | None:
        """What a report means to the core: its event and the FINISHED of that boundary; None for
        what the core no longer waits for. Raises StaleError for what nobody asked."""
        kind = report.kind
        self.since_s = time.monotonic()
        if kind is EventKind.WEIGHTS_READY:
            return self._weights_ready(report, now_ns)
        if kind is EventKind.KV_OUT_DONE:
            return self._kv_out_done(report, now_ns)
        order = self.order
        if order is None or report.serial != order.serial or ENDS[order.stage] is not kind:
            raise StaleError(f"{kind.name} of order {report.serial}: expected {order}")
        has_tokens = kind in (EventKind.PREFILLED, EventKind.STEPS)
        if has_tokens:
            self._check_tokens(report, order)
        if not report.goes_on:
            self.order = None
        if has_tokens:
            return self._tokens(report, order, now_ns)
        if kind is EventKind.KV_IN_DONE:
            return self._kv_in_done(now_ns)
        return new_event(kind, now_ns, instance=self.g)

    def _weights_ready(self, report: Report, now_ns: int) -> Table | None:
        if report.model != self.loading:
            return None  # of a load that was dropped
        self.loading = None
        return new_event(EventKind.WEIGHTS_READY, now_ns, instance=self.g)

    def _kv_out_done(self, report: Report, now_ns: int) -> Table:
        for number, record in zip(report.ids, report.records, strict=True):
            if not self.leaving or self.leaving[0].ask.id != number:
                raise StaleError(f"KV_OUT_DONE of request {number}: expected {self.leaving}")
            entry = self.leaving.popleft()
            self.book.settle_lease(entry, record)
            entry.has_kv = record is not None
        return new_event(EventKind.KV_OUT_DONE, now_ns, instance=self.g, n=len(report.ids))

    def _kv_in_done(self, now_ns: int) -> Table:
        """Committed: their blocks in host memory are free."""
        moved, self.moving_in = self.moving_in, ()
        for entry in moved:
            self.book.drop_record(entry)
            entry.has_kv = True
        return new_event(EventKind.KV_IN_DONE, now_ns, instance=self.g, n=len(moved))

    def _check_tokens(self, report: Report, order: Order) -> None:
        """Before any of it counts: one token for each request, the one that comes next."""
        count = len(report.ids)
        whole = 0 if order.chunk_tokens and not count else len(order.ids)
        is_whole = len(report.tokens) == len(report.first) == count
        if report.ids != order.ids[:whole] or not is_whole or report.ended.keys() - {*report.ids}:
            raise StaleError(f"{report.kind.name} of {report.ids}: expected {order.ids}")
        for number, first in zip(report.ids, report.first, strict=True):
            known = len(self.book.entries[number].output)
            if first != known:
                raise StaleError(f"token {first} of request {number}: {known} are known")

    def _tokens(self, report: Report, order: Order, now_ns: int) -> Table:
        events = np.zeros(1 + len(report.ended), new_event(0, 0).dtype)
        is_steps = report.kind is EventKind.STEPS
        events[0] = new_event(
            report.kind,
            now_ns,
            instance=self.g,
            n=1 if is_steps else len(report.ids),
            x=report.seconds,
            goes_on=int(report.goes_on),
        )[0]
        get = self.book.entries
        for number, token in zip(report.ids, report.tokens, strict=True):
            get[number].output.append(token)
        for number in order.ids:
            get[number].has_kv = True
        for row, (number, end) in enumerate(report.ended.items(), 1):
            entry = get[number]
            entry.end = end
            events[row] = new_event(
                EventKind.FINISHED, now_ns, instance=self.g, request=entry.slot, id=number
            )[0]
        return events


ENDS = {
    Stage.COMMANDED: EventKind.SWITCHED,
    Stage.KV_IN: EventKind.KV_IN_DONE,
    Stage.PREFILL: EventKind.PREFILLED,
    Stage.DECODE: EventKind.STEPS,
    Stage.ENDING: EventKind.TURN_ENDED,
}
