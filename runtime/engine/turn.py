"""One turn from its weights to its end: the loop behind `Engine.run_turn`."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch

from runtime.core import EventKind
from runtime.engine.kv import KvFullError
from runtime.engine.live import Live
from runtime.engine.plan import Ending, Plan, RequestId, TurnEvent
from runtime.engine.sampling import Logprobs, sample

if TYPE_CHECKING:
    from runtime.engine.engine import Engine


class Call(NamedTuple):
    """What a prefill call computes: the next `count` tokens of each request."""

    lives: list[Live]
    counts: list[int]


class Chosen(NamedTuple):
    """What a step gave each of its requests, on the host."""

    tokens: tuple[int, ...] = ()
    logprobs: tuple[Logprobs | None, ...] = ()


NOTHING = Chosen()


class Turn:
    """The state of one turn: who still waits for KV or prefill, who decodes, time decoded."""

    def __init__(self, engine: Engine, plan: Plan) -> None:
        self.engine, self.plan, self.kv = engine, plan, engine.kv
        self.served = engine.served(plan.model)
        self.incoming: list[Live] = []
        self.prefill: list[Live] = []
        self.batch: list[Live] = []
        self.done: list[Live] = []  # prefilled in a turn that does not decode
        self.spilled: list[Live] = []  # there was no more room for their KV
        self.decoded_s = 0.0
        self._since_s = time.perf_counter()  # the last boundary
        self._add(plan.incoming, plan.prefill, plan.batch)

    def run(self) -> Iterator[TurnEvent]:
        began_s = self._since_s
        self._start_moves()
        self.engine.activate(self.plan.model)
        yield self._event(EventKind.SWITCHED)
        while True:
            yield from self._boundary()
            if self.engine.inbox.stop:
                break
            if self.prefill and (call := self._prefill_call()) is not None:
                yield from self._prefill(call)
                if not self.plan.prefill_chunk_tokens or not self._may_decode():
                    continue
            if not self._may_decode():
                if self.incoming and not self._is_spent() and self._wait_for_kv():
                    continue
                break
            yield from self._decode()
        yield self._end(began_s)

    # Boundaries

    def _boundary(self) -> Iterator[TurnEvent]:
        """Take in who joined, who was cancelled, whose KV has come."""
        if self._take_joined():
            self._start_moves()
        for live in self._left():
            if live.ending is not None:  # its turn was given up before it could say so
                yield self._finish(live, live.ending)
        for name in drained(self.engine.inbox.cancelled):
            if name in self.engine.lives:
                yield self._finish(self.engine.lives[name], Ending.CANCELLED)
        while self.incoming and self.kv.is_ready(self.incoming[0].request.id):
            live = self.incoming.pop(0)
            self._place(live)
            yield self._event(EventKind.KV_IN_DONE, [live])

    def _take_joined(self) -> bool:
        inbox = self.engine.inbox
        joined = [drained(queue) for queue in (inbox.incoming, inbox.prefill, inbox.batch)]
        self._add(*joined)
        return any(joined)

    def _add(
        self,
        incoming: Sequence[RequestId],
        prefill: Sequence[RequestId],
        batch: Sequence[RequestId],
    ) -> None:
        """KV that is in host memory comes in first, whatever its request is named for."""
        for name in (*incoming, *prefill, *batch):
            live = self.engine.lives.get(name)
            if live is None:  # cancelled since it was named
                continue
            if live.has_kv and (name in incoming or not self.kv.is_on_device(name)):
                self.incoming.append(live)
            else:
                self._place(live)

    def has(self, request: RequestId) -> bool:
        """Whether the turn may still work on this request, or it waits to join."""
        inbox = self.engine.inbox
        if request in (*inbox.incoming, *inbox.prefill, *inbox.batch):
            return True
        return any(live.request.id == request for live in self._left())

    def _left(self) -> list[Live]:
        return [*self.batch, *self.done, *self.incoming, *self.prefill, *self.spilled]

    def _place(self, live: Live) -> None:
        """Among those that decode, or, where tokens lack KV still, among the prefills."""
        (self.batch if live.has_kv and live.missing == 1 else self.prefill).append(live)

    def _start_moves(self) -> None:
        """Start to move in what is in host memory; where room lacks, its request waits here."""
        for live in self.incoming:
            if not self.kv.is_on_device(live.request.id):
                try:
                    self.kv.move_in(live.request.id)
                except KvFullError:
                    break

    def _wait_for_kv(self) -> bool:
        """Block until the next incoming request is on the device; False: it has no room there."""
        name = self.incoming[0].request.id
        if not self.kv.is_on_device(name):
            self.kv.settle()
            try:
                self.kv.move_in(name)
            except KvFullError:
                return False
        self.kv.wait_for([name])
        self.engine.device.compute.synchronize()
        return True

    def _is_spent(self) -> bool:
        return self.plan.decodes and 0 < self.decoded_s >= self.plan.quota_s

    def _may_decode(self) -> bool:
        return bool(self.batch) and self.plan.decodes and not self._is_spent()

    def _finish(self, live: Live, ending: Ending) -> TurnEvent:
        for group in (self.incoming, self.prefill, self.batch, self.done, self.spilled):
            if live in group:
                group.remove(live)
        self.engine.release(live.request.id)
        return self._event(EventKind.FINISHED, [live], ending=ending)

    def _end(self, began_s: float) -> TurnEvent:
        self._take_joined()
        left = self._left()
        if self.plan.moves_out:
            names = [live.request.id for live in left if live.has_kv]
            self.engine.move_out([name for name in names if self.kv.is_on_device(name)])
        now_s = time.perf_counter()
        self.engine.turn = None
        return TurnEvent(EventKind.TURN_ENDED, now_s, now_s - began_s, ids(left))

    # Prefill

    def _prefill_call(self) -> Call | None:
        """The next prompts, or a chunk of them, within the budget; None while none has room."""
        plan = self.plan
        most = plan.prefill_chunk_tokens or 1 << 62
        left = plan.prefill_budget_tokens
        call = Call([], [])
        for live in self.prefill:
            if call.lives and left <= 0:
                break
            if not self._has_room(live):
                break
            count = min(live.missing, most)
            if plan.prefill_budget_tokens:
                count = min(count, left)
            call.lives.append(live)
            call.counts.append(count)
            left -= count
        return call if call.lives else None

    def _has_room(self, live: Live) -> bool:
        try:
            if live.has_kv:
                self.kv.extend(live.request.id, len(live.tokens))
                return True
            self.kv.allocate(live.request.id, len(live.tokens), self.served.spec)
        except KvFullError:
            return False
        live.has_kv = True
        return True

    def _prefill(self, call: Call) -> Iterator[TurnEvent]:
        logits = self.engine.logits(self.served, call.lives, call.counts)
        for live, count in zip(call.lives, call.counts, strict=True):
            live.cached += count
        whole = [i for i, live in enumerate(call.lives) if live.missing == 0]
        lives = [call.lives[i] for i in whole]
        if not lives:
            self.engine.device.compute.synchronize()
            yield self._event(EventKind.PREFILLED)
            return
        chosen = self._sample(logits, lives, None if len(whole) == len(call.lives) else whole)
        self.prefill = [live for live in self.prefill if live not in lives]
        (self.batch if self.plan.decodes else self.done).extend(lives)
        yield from self._emit(EventKind.PREFILLED, lives, chosen)

    # Decode

    def _decode(self) -> Iterator[TurnEvent]:
        before_s = self._since_s = time.perf_counter()
        spilled = self._extend()
        if spilled:
            yield self._event(EventKind.KV_OUT_DONE, spilled)
        if not self.batch:
            return
        lives = list(self.batch)
        logits = self.engine.logits(self.served, lives, [1] * len(lives))
        chosen = self._sample(logits, lives)
        for live in lives:
            live.cached += 1
        self.decoded_s += time.perf_counter() - before_s
        yield from self._emit(EventKind.STEPS, lives, chosen)

    def _extend(self) -> list[Live]:
        """Room for one more token each; when KV is full the batch's tail moves to host memory,
        or where that is full too, waits for a prefill."""
        spilled: list[Live] = []
        at = 0
        while at < len(self.batch):
            live = self.batch[at]
            try:
                self.kv.extend(live.request.id, len(live.tokens))
                at += 1
            except KvFullError:
                tail = self.batch.pop()
                if not self.engine.move_out([tail.request.id]):
                    self.engine.drop_kv(tail.request.id)
                spilled.append(tail)
        self.spilled += spilled
        return spilled

    # Events

    def _sample(
        self, logits: torch.Tensor, lives: Sequence[Live], rows: list[int] | None = None
    ) -> Chosen:
        """The next token of each; `rows` are theirs among the logits. Waits for the step: only
        the stream that computes may read what it computed."""
        with self.engine.device.computing():
            theirs = logits if rows is None else logits[rows]
            sampled = sample(theirs, [live.chance for live in lives])
            return Chosen(tuple(sampled.tokens.tolist()), sampled.logprobs)

    def _emit(self, kind: EventKind, lives: list[Live], chosen: Chosen) -> Iterator[TurnEvent]:
        """One token more for each request, then the ends of those for which it was the last."""
        endings = [live.append(token) for live, token in zip(lives, chosen.tokens, strict=True)]
        yield self._event(kind, lives, chosen)
        for live, ending in zip(lives, endings, strict=True):
            if ending is not None and live.request.id in self.engine.lives:
                yield self._finish(live, ending)

    def _event(
        self,
        kind: EventKind,
        lives: Sequence[Live] = (),
        chosen: Chosen = NOTHING,
        ending: Ending | None = None,
    ) -> TurnEvent:
        now_s = time.perf_counter()
        took_s, self._since_s = now_s - self._since_s, now_s
        return TurnEvent(kind, now_s, took_s, ids(lives), chosen.tokens, chosen.logprobs, ending)


def ids(lives: Sequence[Live]) -> tuple[RequestId, ...]:
    return tuple(live.request.id for live in lives)


def drained(queue: object) -> list[RequestId]:
    """Everything in a deque that other threads append to."""
    taken: list[RequestId] = []
    while queue:
        taken.append(queue.popleft())  # type: ignore[attr-defined]
    return taken
