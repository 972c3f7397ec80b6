"""Who answers the core's questions: the policy, in its process and within its budget, or else the
fallback, here. A pool never waits for more than the budget and never goes without an answer.

`decide` blocks the controller for the time of the answer: a round trip over the event loop would
cost more. While the policy owes an answer it is not asked again.
"""

import logging
import time
from collections.abc import Callable
from enum import StrEnum
from typing import Any

import numpy as np

from runtime.core import NONE, DecisionKind, EventKind, PoolSpec
from runtime.errors import UserError
from runtime.pool.answers import is_possible
from runtime.pool.candidates import ROWS, fill_rows, pose
from runtime.pool.state import EVENT, Record, State
from runtime.protocol import Policy
from runtime.service.policy_handle import Process
from runtime.service.policy_process import Answer
from runtime.service.sources import check_same_pool, make
from runtime.service.spec import PolicySource

log = logging.getLogger("aegaeon_rl.policy")
STALL_S = 1.0  # an answer owed this long: the process is ended
START_S = 180.0  # the same of a start, which may compile
BACK_OFF_S = (0.25, 30.0)  # between restarts: first, longest; doubled each time
STEADY_S = 30.0  # without a fault: the next restart is a first one again
COPIED = ("kind", "n", "tag", "quota_ns", "instance", "model", "phases", "joins")


class Source(StrEnum):
    """Who answered, or why it was the fallback."""

    POLICY = "policy"
    LATE = "late"  # not within the budget
    BUSY = "busy"  # it still owes an answer
    DOWN = "down"  # its process starts, or waits to
    RAISED = "raised"
    DIED = "died"
    IMPOSSIBLE = "impossible"  # a masked row, an index of nothing, a pool that would stand still
    REFUSED = "refused"  # by the core


class Decider:
    """`observe(source, seconds)` hears of every answer, `answers` counts them by source.

    `policy` is the one that set the pool up (made by `sources.make`); `opening` the pool before its
    first event, placement included: each start of the process makes its memory from that.
    """

    def __init__(
        self,
        source: PolicySource,
        policy: Policy,
        pool: PoolSpec,
        opening: State,
        observe: Callable[[Source, float], None] = lambda source, seconds: None,
    ) -> None:
        self.source, self.name, self.pool = source, source.name, pool
        self.opening, self.observe = opening.copy(), observe
        self.fallback = make(source.factory, source.fallback, "policy.fallback")
        self.fallback_memory = self.fallback.memory(opening)
        self._warm(opening.copy())
        self.answers = dict.fromkeys(Source, 0)
        self.restarts, self.last_error = 0, ""
        self.serial, self.faults = 0, 0
        self.fault_s = self.restart_s = time.monotonic()
        self.process: Process | None = None
        self.coming: Process | None = None  # takes over once it is ready

    # life

    def start(self, wait_s: float = 0.0) -> None:
        """Begin; wait up to `wait_s` for the policy. Raises UserError if it cannot be made."""
        self._launch(self.name)
        deadline = time.monotonic() + wait_s
        while self.process is None and self.coming is not None:
            left_s = deadline - time.monotonic()
            if left_s <= 0:
                return
            self._welcome(min(left_s, 0.25))
        if self.process is None and wait_s > 0:
            raise UserError(f"policy.name={self.name}: {self.last_error}")

    def change(self, name: str) -> None:
        """Another policy, from when its process is ready. Raises UserError where that cannot be."""
        check_same_pool(make(self.source.factory, name), self.pool)
        if self.coming is not None:
            self.coming.end()
            self.coming = None
        self.name, self.faults = name, 0
        self._launch(name)

    def tick(self) -> None:
        """To be called several times a second: late answers, stalls, ends, restarts."""
        now_s = time.monotonic()
        if self.coming is not None:
            self._welcome(0.0)
            owed = self.coming.owed if self.coming else None
            if self.coming and owed and now_s - owed.since_s > START_S:
                self._give_up(self.coming, f"not ready within {START_S:g} s", Source.LATE)
        if self.process is not None:
            self._hear(self.process)
        if self.process is None and self.coming is None and now_s >= self.restart_s:
            self._launch(self.name)

    def close(self) -> None:
        for process in (self.process, self.coming):
            if process is not None:
                process.end()
        self.process = self.coming = None

    @property
    def in_charge(self) -> str:
        """The policy that answers, or would if it were up."""
        return self.process.name if self.process else self.name

    def status(self) -> dict[str, Any]:
        """For operators: plain values."""
        is_up = self.process is not None
        return {
            "name": self.in_charge,
            "next": self.coming.name if self.coming and is_up else None,
            "is_up": is_up,
            "pid": self.process.child.pid if self.process else None,
            "fallback": self.source.fallback,
            "budget_s": self.source.budget_s,
            "answers": {source.value: count for source, count in self.answers.items()},
            "restarts": self.restarts,
            "last_error": self.last_error,
        }

    # answers

    def decide(self, state: State, kind: int, index: int, event: Record) -> Source:
        """Answer the decision that is due into `event`, as `pose` left it."""
        began_s = time.perf_counter()
        source = self._asked(state, kind, index, event, began_s)
        if source is not Source.POLICY:
            self._fall_back(state, kind, index, event)
        self.answers[source] += 1
        self.observe(source, time.perf_counter() - began_s)
        return source

    def fall_back(self, state: State, kind: int, index: int, event: Record) -> Source:
        """The fallback's answer, to a decision whose first answer the core refused."""
        pose(state, kind, index, event)
        self._fall_back(state, kind, index, event)
        self.answers[Source.REFUSED] += 1
        return Source.REFUSED

    def _asked(self, state: State, kind: int, index: int, event: Record, began_s: float) -> Source:
        process = self.process
        if process is None:
            return Source.DOWN
        if process.owed is not None:
            self._hear(process)
            if self.process is not process:
                return Source.DIED
            if process.owed is not None:
                return Source.BUSY
        self.serial += 1
        try:
            process.ask(self.serial, state, kind, index, event)
        except OSError as error:
            return self._give_up(process, str(error), Source.DIED)
        return self._awaited(process, state, kind, index, event, began_s)

    def _awaited(
        self, process: Process, state: State, kind: int, index: int, event: Record, began_s: float
    ) -> Source:
        deadline_s = began_s + self.source.budget_s
        while True:
            try:
                answer = process.take(deadline_s - time.perf_counter())
            except EOFError:
                return self._give_up(process, "its process ended", Source.DIED)
            if answer is None or time.perf_counter() > deadline_s:
                if answer is not None and answer.error:
                    return self._give_up(process, answer.error, Source.RAISED, answer.where)
                return Source.LATE
            if answer.serial != self.serial:
                continue  # of an earlier question
            if answer.error:
                return self._give_up(process, answer.error, Source.RAISED, answer.where)
            return self._copied(answer, state, kind, index, event)

    def _copied(self, answer: Answer, state: State, kind: int, index: int, event: Record) -> Source:
        """The fields that are the policy's to fill, if they make a possible answer."""
        if len(answer.event) != EVENT.itemsize:
            return Source.IMPOSSIBLE
        given = np.frombuffer(answer.event, EVENT)
        is_finite = np.isfinite(given["x"][0]) and np.isfinite(given["y"][0])
        if not is_finite or given["request"][0] != event["request"]:
            return Source.IMPOSSIBLE
        if not is_possible(state, kind, index, given[0]):
            return Source.IMPOSSIBLE
        for name in COPIED:
            event[name] = given[name][0]
        return Source.POLICY

    def _fall_back(self, state: State, kind: int, index: int, event: Record) -> None:
        """The fallback's answer; if that is none, the first candidate; at worst what was posed."""
        try:
            self.fallback.decide(state, kind, index, event, self.fallback_memory)
            is_answered = is_possible(state, kind, index, event)
        except Exception:  # a policy's mistake must not stop the pool
            log.exception("the fallback policy raised")
            is_answered = False
        if not is_answered:
            pose(state, kind, index, event)
            if kind == DecisionKind.TURN and not is_possible(state, kind, index, event):
                _take_first(state, index, event)
        event["is_fallback"] = 1

    def _warm(self, state: State) -> None:
        """Load the machine code that answers need, before requests wait for it."""
        memory, event = self.fallback.memory(state), np.zeros(1, EVENT)
        for kind in (DecisionKind.TURN, DecisionKind.PREFETCH):
            pose(state, kind.value, 0, event[0])
            self.fallback.decide(state, kind.value, 0, event[0], memory)
            is_possible(state, kind.value, 0, event[0])
        _take_first(state, 0, event[0])

    # faults

    def _launch(self, name: str) -> None:
        try:
            self.coming = Process(self.source, name, self.opening)
        except OSError as error:
            self._count_fault(f"no process: {error}")

    def _welcome(self, wait_s: float) -> None:
        """Let the coming process take over if it is ready."""
        coming = self.coming
        assert coming is not None
        try:
            answer = coming.take(wait_s)
        except EOFError:
            self._give_up(coming, "its process ended at its start", Source.DIED)
            return
        if answer is None:
            return
        if answer.error:
            self._give_up(coming, answer.error, Source.RAISED, answer.where)
            return
        if self.process is not None:
            self.process.end()
        self.process, self.coming = coming, None

    def _hear(self, process: Process) -> None:
        """Take what a process still owes, or end it for its silence."""
        try:
            answer = process.take(0.0)
        except EOFError:
            self._give_up(process, "its process ended", Source.DIED)
            return
        if answer is not None and answer.error:
            self._give_up(process, answer.error, Source.RAISED, answer.where)
        elif process.owed and time.monotonic() - process.owed.since_s > STALL_S:
            self._give_up(process, f"no answer within {STALL_S:g} s", Source.LATE)

    def _give_up(self, process: Process, why: str, source: Source, where: str = "") -> Source:
        process.end()
        if process is self.process:
            self.process = None
        if process is self.coming:
            self.coming = None
        self._count_fault(why, where)
        return source

    def _count_fault(self, why: str, where: str = "") -> None:
        now_s = time.monotonic()
        self.faults = 1 if now_s - self.fault_s > STEADY_S else self.faults + 1
        self.fault_s, self.last_error = now_s, why
        self.restarts += 1
        first_s, longest_s = BACK_OFF_S
        self.restart_s = now_s + min(longest_s, first_s * 2.0 ** min(self.faults - 1, 16))
        log.warning("policy %s: %s; the fallback answers", self.name, why, extra={"where": where})


def _take_first(state: State, g: int, event: Record) -> None:
    """A turn of the first candidate; a pool with work must not stand still."""
    rows = np.full(ROWS, NONE, np.int64)
    count, _ = fill_rows(state, DecisionKind.TURN.value, g, rows)
    if count:
        event["kind"], event["model"] = EventKind.TURN, rows[0]
