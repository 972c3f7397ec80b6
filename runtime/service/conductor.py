"""Drives the scheduler core: events in, commands out to engines, decisions to whoever decides.

No clock and no I/O: a live controller feeds it what workers report, at the time it arrives; a test
feeds it what scripted engines report, and finds the emulator's journal.
"""

from collections.abc import Callable, Sequence

import numpy as np

from runtime.core import NONE, Command, DecisionKind, EventKind, KvPlace, Stage
from runtime.pool import lists
from runtime.pool.answers import is_answer
from runtime.pool.candidates import next_decision, pose
from runtime.pool.memory import room_for_steps
from runtime.pool.state import EVENT, LISTS_PER_INSTANCE, Record, State, Table
from runtime.pool.transitions import Outcome, apply, release
from runtime.protocol import Engine, Turn

Decide = Callable[[State, int, int, Record], bool]
Note = Callable[[Record], None]

ENDS_STAGE = (
    EventKind.SWITCHED,
    EventKind.KV_IN_DONE,
    EventKind.PREFILLED,
    EventKind.STEPS,
)  # the turn goes on with what the core now holds


def new_event(kind: int, time_ns: int, **fields: float) -> Table:
    """One EVENT row [1]; what is not given is NONE or 0."""
    event = np.zeros(1, EVENT)
    row = event[0]
    row["id"] = row["tag"] = row["instance"] = row["model"] = row["request"] = NONE
    row["kind"], row["time_ns"] = kind, time_ns
    for name, value in fields.items():
        row[name] = value
    return event


def warm(state: State) -> None:
    """Load, or compile, the machine code that a first request would else wait for."""
    copy = state.copy()
    slot = int(copy.pool["free_head"][0])
    apply(copy, new_event(EventKind.ARRIVAL, 0, id=0, model=0, n=1)[0])
    next_decision(copy)
    pose(copy, DecisionKind.TURN.value, 0, np.zeros(1, EVENT)[0])
    room_for_steps(copy, 0, 1)
    release(copy, slot)


class Conductor:
    """One pool.

    Args:
        engines: of each instance.
        decide: overwrites the EVENT that `pose` prepared for (kind, index); False: the answer did
            not come from the policy.
        retry: the same where the core refused the first answer; else what was posed stands.
        note: takes each event that was applied, in order: the journal.
        keep: takes the slot of each request that has ended, just before it is released.
    """

    def __init__(
        self,
        state: State,
        engines: Sequence[Engine],
        decide: Decide,
        note: Note,
        keep: Callable[[int], None],
        retry: Decide | None = None,
    ) -> None:
        self.state, self.engines = state, engines
        self.note, self.keep = note, keep
        self.ask, self.retry = decide, retry
        self.decisions = self.refused = 0
        self._answer = np.zeros(1, EVENT)
        self._first_list = 2 * len(state.models)

    @property
    def now_ns(self) -> int:
        return int(self.state.pool["now_ns"][0])

    def happen(self, events: Table) -> Outcome:
        """Apply what happened at one boundary: an event, then the FINISHED of those it ended. A
        turn under way goes on with what the core then holds."""
        first, rest = events[0], events[1:]
        kind, g = int(first["kind"]), int(first["instance"])
        waits_for_kv = kind == EventKind.KV_IN_DONE and self._stage(g) == Stage.KV_IN
        outcome = self._apply(first)
        if outcome != Outcome.OK:
            return outcome
        for event in rest:
            if self.state.requests["list"][event["request"]] != NONE:  # else cancelled here
                self._apply(event)
        self._carry_out()
        if kind == EventKind.KV_OUT_DONE:
            self.engines[g].move_out(self.outgoing(g))
        elif kind in ENDS_STAGE and not first["goes_on"]:
            if kind != EventKind.KV_IN_DONE or waits_for_kv:
                self._start(g)
        return outcome

    def decide(self) -> bool:
        """Answer the decision that is due; False: none is."""
        kind, index = next_decision(self.state)
        if kind == DecisionKind.NONE:
            return False
        self.decisions += 1
        event = self._answer[0]
        pose(self.state, kind, index, event)
        is_answered = self.ask(self.state, kind, index, event)
        event["time_ns"], event["is_fallback"] = self.now_ns, 0 if is_answered else 1
        if is_answer(self.state, kind, index, event) and self._apply(event) == Outcome.OK:
            self._carry_out()
            return True
        self.refused += 1
        pose(self.state, kind, index, event)
        if self.retry is not None:
            self.retry(self.state, kind, index, event)
        event["is_fallback"] = 1
        self._apply(event)
        self._carry_out()
        return True

    def turn(self, g: int) -> Turn:
        """What the core holds for g now."""
        inst = self.state.instances[g]
        return Turn(
            instance=g,
            model=int(inst["model"]),
            quota_ns=int(inst["quota_ns"]),
            phases=int(inst["turn_phases"]),
            incoming=self.members(g, lists.INCOMING),
            prefill=self.members(g, lists.PREFILL),
            batch=self.members(g, lists.BATCH),
        )

    def members(self, g: int, which: int) -> tuple[int, ...]:
        """Slots of one list of g, in order."""
        following, found = self.state.requests["next"], []
        r = int(self.state.lists["head"][self._first_list + LISTS_PER_INSTANCE * g + which])
        while r != NONE:
            found.append(r)
            r = int(following[r])
        return tuple(found)

    def outgoing(self, g: int) -> tuple[int, ...]:
        """Whose KV may leave g: the host has room for it."""
        kv = self.state.requests["kv"]
        return tuple(r for r in self.members(g, lists.OUTGOING) if kv[r] == KvPlace.MOVING_OUT)

    def _apply(self, event: Record) -> Outcome:
        outcome = Outcome(apply(self.state, event))
        if outcome == Outcome.OK:
            self.note(event)
        return outcome

    def _carry_out(self) -> None:
        commands = self.state.pool["commands"]
        for kind, index in self.state.outbox[: int(commands[0])].tolist():
            if kind == Command.START:
                self._start(index)
            elif kind == Command.JOIN:
                self.engines[index].join(())
            elif kind == Command.LOAD:
                slot = self.state.instances["loading_slot"][index]
                self.engines[index].load(int(self.state.slots["model"][index, slot]))
            elif kind == Command.MOVE_OUT:
                self.engines[index].move_out(self.outgoing(index))
            elif kind == Command.RETIRE:
                self.keep(index)
                release(self.state, index)
            else:
                self.engines[index].share(is_in=kind == Command.SHARE_IN)
        commands[0] = 0

    def _start(self, g: int) -> None:
        """The stage that g is in begins; a BLOCKED one begins nothing."""
        if self._stage(g) != Stage.BLOCKED:
            self.engines[g].start(self.turn(g))

    def _stage(self, g: int) -> int:
        return int(self.state.instances["stage"][g])
