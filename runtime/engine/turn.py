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
from runtime.engine.sampling import Sampled, sample

if TYPE_CHECKING:
    from runtime.engine.engine import Engine


class Call(NamedTuple):
    """What a prefill call computes: the next `count` tokens of each request."""

    lives: list[Live]
    counts: list[int]


class Turn:
    """The state of one turn: who still waits for KV or prefill, who decodes, time decoded."""

    def __init__(self, engine: Engine, plan: Plan) -> None:
        self.engine, self.plan, self.kv = engine, plan, engine.kv
        self.served = engine.served(plan.model)
        self.incoming: list[Live] = []
        self.prefill: list[Live] = []
        self.batch: list[Live] = []
        self.done: list[Live] = []  # prefilled in a turn that does not decode
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
                if self.incoming:
                    self._wait_for_kv()
                    continue
                break
            yield from self._decode()
        yield self._end(began_s)

    # Boundaries

    def _boundary(self) -> Iterator[TurnEvent]:
        """Take in who joined, who was cancelled, whose KV has come."""
        inbox = self.engine.inbox
        joined = [drained(queue) for queue in (inbox.incoming, inbox.prefill, inbox.batch)]
        if any(joined):
            self._add(*joined)
            self._start_moves()
        for name in drained(inbox.cancelled):
            if name in self.engine.lives:
                yield self._finish(self.engine.lives[name], Ending.CANCELLED)
        while self.incoming and self.kv.is_ready(self.incoming[0].request.id):
            live = self.incoming.pop(0)
            self.batch.append(live)
            yield self._event(EventKind.KV_IN_DONE, [live])

    def _add(
        self,
        incoming: Sequence[RequestId],
        prefill: Sequence[RequestId],
        batch: Sequence[RequestId],
    ) -> None:
        lives = self.engine.lives
        self.incoming += [lives[name] for name in incoming]
        self.prefill += [lives[name] for name in prefill]
        self.batch += [lives[name] for name in batch]

    def _start_moves(self) -> None:
        """Start to move in what is in host memory; where room lacks, its request waits here."""
        for live in self.incoming:
            if not self.kv.is_on_device(live.request.id):
                try:
                    self.kv.move_in(live.request.id)
                except KvFullError:
                    break

    def _wait_for_kv(self) -> None:
        """Block until the next incoming request is on the device."""
        name = self.incoming[0].request.id
        if not self.kv.is_on_device(name):
            self.kv.settle()
            self.kv.move_in(name)
        self.kv.wait_for([name])
        self.engine.device.compute.synchronize()

    def _may_decode(self) -> bool:
        return bool(self.batch) and self.plan.decodes and self.decoded_s < self.plan.quota_s

    def _finish(self, live: Live, ending: Ending) -> TurnEvent:
        for group in (self.incoming, self.prefill, self.batch, self.done):
            if live in group:
                group.remove(live)
        self.engine.release(live.request.id)
        return self._event(EventKind.FINISHED, [live], ending=ending)

    def _end(self, began_s: float) -> TurnEvent:
        left = [*self.batch, *self.done, *self.incoming, *self.prefill]
        if self.plan.moves_out:
            names = [live.request.id for live in left if live.has_kv]
            self.engine.move_out([name for name in names if self.kv.is_on_device(name)])
        now_s = time.perf_counter()
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
        if live.has_kv:
            return True
        try:
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
        sampled = self._sample(logits if len(whole) == len(call.lives) else logits[whole], lives)
        self.prefill = [live for live in self.prefill if live not in lives]
        (self.batch if self.plan.decodes else self.done).extend(lives)
        yield from self._emit(EventKind.PREFILLED, lives, sampled)

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
        sampled = self._sample(logits, lives)
        for live in lives:
            live.cached += 1
        tokens = sampled.tokens.tolist()
        self.decoded_s += time.perf_counter() - before_s
        yield from self._emit(EventKind.STEPS, lives, sampled, tokens)

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
        return spilled

    # Events

    def _sample(self, logits: torch.Tensor, lives: Sequence[Live]) -> Sampled:
        with self.engine.device.computing(), torch.inference_mode():
            return sample(logits, [live.chance for live in lives])

    def _emit(
        self, kind: EventKind, lives: list[Live], sampled: Sampled, tokens: list[int] | None = None
    ) -> Iterator[TurnEvent]:
        """One token more for each request, then the ends of those for which it was the last."""
        tokens = sampled.tokens.tolist() if tokens is None else tokens
        endings = [live.append(token) for live, token in zip(lives, tokens, strict=True)]
        yield self._event(kind, lives, tuple(tokens), sampled)
        for live, ending in zip(lives, endings, strict=True):
            if ending is not None and live.request.id in self.engine.lives:
                yield self._finish(live, ending)

    def _event(
        self,
        kind: EventKind,
        lives: Sequence[Live] = (),
        tokens: tuple[int, ...] = (),
        sampled: Sampled | None = None,
        ending: Ending | None = None,
    ) -> TurnEvent:
        now_s = time.perf_counter()
        took_s, self._since_s = now_s - self._since_s, now_s
        logprobs = () if sampled is None else sampled.logprobs
        return TurnEvent(kind, now_s, took_s, ids(lives), tokens, logprobs, ending)


def ids(lives: Sequence[Live]) -> tuple[RequestId, ...]:
    return tuple(live.request.id for live in lives)


def drained(queue: object) -> list[RequestId]:
    """Everything in a deque that other threads append to."""
    taken: list[RequestId] = []
    while queue:
        taken.append(queue.popleft())  # type: ignore[attr-defined]
    return taken
