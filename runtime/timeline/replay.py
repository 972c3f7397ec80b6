"""From a journal to a timeline: the core replays it, and what changes in its tables is noted.

Spans are read off stages and counters of the tables, not off event kinds, so that a new kind of
event needs no word here as long as it moves an instance through the same stages.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from runtime.core import NONE, NS, Command, EventKind, RequestPhase, SlotState, Stage
from runtime.pool import lists
from runtime.pool.state import LISTS_PER_INSTANCE, Record, State, Table, grow_requests
from runtime.pool.transitions import Outcome, apply, release
from runtime.timeline.spans import LIFE, SERVICE, SPAN, Samples, SpanKind, Timeline

SAMPLE_NS = NS // 50
KIND_OF: dict[int, SpanKind] = {
    Stage.DOWN: SpanKind.DOWN,
    Stage.COMMANDED: SpanKind.SWITCH,
    Stage.BLOCKED: SpanKind.BLOCKED,
    Stage.KV_IN: SpanKind.KV_IN,
    Stage.PREFILL: SpanKind.PREFILL,
    Stage.DECODE: SpanKind.DECODE,
}
NOBODY = np.empty(0, np.int64)
LIST_OF: dict[int, int] = {
    Stage.KV_IN: lists.INCOMING,
    Stage.PREFILL: lists.PREFILL,
    Stage.DECODE: lists.BATCH,
}
QUIET = {  # kinds that end no work and no move
    *(EventKind.ARRIVAL, EventKind.EXPIRE, EventKind.CANCEL, EventKind.FINISHED),
    *(EventKind.TURN, EventKind.IDLE, EventKind.PREFETCH, EventKind.ROUTE, EventKind.INTERRUPT),
}
KV_IN_DONE, KV_OUT_DONE = EventKind.KV_IN_DONE.value, EventKind.KV_OUT_DONE.value
INTERRUPT = EventKind.INTERRUPT.value
COMMANDED, DOWN = Stage.COMMANDED.value, Stage.DOWN.value
OK, TABLE_FULL = Outcome.OK.value, Outcome.TABLE_FULL.value
COPIED = (
    *("id", "model", "arrival_ns", "first_token_ns", "last_token_ns", "phase"),
    *("prompt_tokens", "emitted_tokens", "on_time_tokens"),
)


def timeline(
    state: State, journal: Table, *, start_ns: int = 0, end_ns: int | None = None
) -> Timeline:
    """Replay `journal` on `state`, a fresh pool like the one that wrote it; `state` is used up.

    `end_ns` is how far the journal reaches where that is past its last event: what is under way
    lasts until then. Raises ValueError for a journal of another pool.
    """
    last_ns = int(journal["time_ns"][-1]) if len(journal) else 0
    until_ns = max(start_ns, last_ns if end_ns is None else end_ns)
    replay = Replay(state, start_ns, until_ns)
    for row in range(len(journal)):
        replay.feed(row, journal[row])
    return replay.close(max(last_ns, until_ns))


class Seen(NamedTuple):
    """An instance just before an event, and the requests that its stage, or the move, is about."""

    stage: int
    busy_ns: int
    slots: npt.NDArray[np.int64]
    emitted: npt.NDArray[np.int64]


@dataclass(slots=True)
class OpenTurn:
    decision: int
    model: int
    start_ns: int
    tokens: int = 0
    served: set[int] = field(default_factory=set)


class Replay:
    """Events go in one by one (`feed`), the timeline comes out at the end (`close`)."""

    def __init__(self, state: State, start_ns: int, end_ns: int) -> None:
        self.state, self.start_ns, self.end_ns = state, start_ns, end_ns
        instances = len(state.instances)
        self.stage = state.instances["stage"]
        self.seen_stage = self.stage.copy()
        self.loading_slot = state.instances["loading_slot"]
        self.since_ns = [0] * instances  # when the present stage, or its present part, began
        self.turns: list[OpenTurn | None] = [None] * instances
        self.loads: list[tuple[int, int, int] | None] = [None] * instances
        self.lists = state.lists[2 * len(state.models) : -1].reshape(instances, LISTS_PER_INSTANCE)
        self.outgoing = self.lists["count"][:, lists.OUTGOING]
        self.seen_outgoing = self.outgoing.copy()
        self.out_since_ns = [NONE] * instances
        self.now_ns = 0
        self.spans: list[tuple[int, ...]] = []
        self.lives: list[tuple[int, ...]] = []
        self.services: list[tuple[int, int]] = []
        self.samples: list[tuple[int, int, int, Any, Any]] = []
        self.sample_ns = start_ns

    def feed(self, row: int, event: Record) -> None:
        """Apply the event of that row of the journal, and note what it changed."""
        time_ns, g, kind = int(event["time_ns"]), int(event["instance"]), int(event["kind"])
        if time_ns > self.sample_ns:
            self._sample(time_ns)
        seen = self._look(g, kind) if g != NONE and kind not in QUIET else None
        self._apply(row, event)
        self.now_ns = max(self.now_ns, time_ns)
        if seen is not None:
            self._note_work(g, seen)
            if kind == KV_IN_DONE and seen.stage == Stage.KV_IN:
                self._note_kv_in(g, seen, int(event["n"]))
            if kind == KV_OUT_DONE:
                self._note_kv_out(g, seen, int(event["n"]))
        if kind == INTERRUPT:
            n, model = int(event["n"]), int(event["model"])
            self._add(SpanKind.INTERRUPT, g, self.now_ns, n=n, model=model, decision=row)
        if g != NONE:
            self._note_load(row, g)
        if (self.stage != self.seen_stage).any():
            self._note_stages(row)
        if (self.outgoing != self.seen_outgoing).any():
            self._note_outgoing()
        if self.state.pool["commands"][0]:
            self._retire()

    def close(self, until_ns: int) -> Timeline:
        """End what is under way at `until_ns`, as cut."""
        self._sample(until_ns)
        self.now_ns = max(self.now_ns, until_ns)
        self._end_all()
        live = np.flatnonzero(self.state.requests["phase"] != RequestPhase.FREE)
        for r in live:
            self._keep_life(int(r), NONE)
        lives = np.array(self.lives, LIFE)
        return Timeline(
            start_ns=self.start_ns,
            end_ns=self.end_ns,
            nodes=self.state.instances["node"].copy(),
            spans=np.array(self.spans, SPAN),
            lives=lives[np.lexsort((lives["id"], lives["arrival_ns"]))],
            services=np.array(self.services, SERVICE),
            samples=self._samples(),
        )

    def so_far(self, from_ns: int, until_ns: int) -> Table:
        """Spans that overlap [from_ns, until_ns), those under way as if cut at `until_ns`; the
        replay goes on."""
        mine = len(self.spans), len(self.services), self.now_ns
        open_now = self.turns.copy(), self.loads.copy(), self.out_since_ns.copy()
        self.now_ns = max(self.now_ns, until_ns)
        self._end_all()
        first = len(self.spans)
        while first > 0 and (first > mine[0] or self.spans[first - 1][1] > from_ns):
            first -= 1
        shown = np.array(self.spans[first:], SPAN)
        del self.spans[mine[0] :], self.services[mine[1] :]
        self.now_ns = mine[2]
        self.turns, self.loads, self.out_since_ns = open_now
        return shown[shown["start_ns"] < until_ns]

    def _end_all(self) -> None:
        """End what is under way now, as cut."""
        for g in range(len(self.stage)):
            self._leave_stage(g, is_cut=True)
            self._end_turn(g, is_cut=True)
            self._end_load(g, is_cut=True)
            self._end_outgoing(g)

    def _apply(self, row: int, event: Record) -> None:
        outcome = apply(self.state, event)
        if outcome == TABLE_FULL:
            grow_requests(self.state)
            outcome = apply(self.state, event)
        if outcome != OK:
            kind = EventKind(int(event["kind"])).name
            raise ValueError(f"journal row {row}: {kind} is refused: expected this pool's journal")

    def _retire(self) -> None:
        commands = self.state.pool["commands"]
        for i in range(commands[0]):
            command = self.state.outbox[i]
            if command["kind"] == Command.RETIRE:
                r = int(command["instance"])
                self._keep_life(r, self.now_ns)
                release(self.state, r)
        commands[0] = 0

    # what an event changed

    def _members(self, g: int, which: int) -> npt.NDArray[np.int64]:
        """Slots of one list of instance g, in order."""
        following = self.state.requests["next"]
        r = int(self.lists[g, which]["head"])
        found = []
        while r >= 0:
            found.append(r)
            r = int(following[r])
        return np.array(found, np.int64)

    def _look(self, g: int, kind: int) -> Seen:
        stage = int(self.stage[g])
        which = lists.OUTGOING if kind == KV_OUT_DONE else LIST_OF.get(stage)
        slots = NOBODY if which is None else self._members(g, which)
        emitted = self.state.requests["emitted_tokens"][slots]
        return Seen(stage, int(self.state.instances["busy_ns"][g]), slots, emitted)

    def _note_work(self, g: int, seen: Seen) -> None:
        """Compute time that an instance has more than before ended just now."""
        spent_ns = int(self.state.instances["busy_ns"][g]) - seen.busy_ns
        if spent_ns <= 0:
            return
        tokens = self.state.requests["emitted_tokens"][seen.slots] - seen.emitted
        served = seen.slots[tokens > 0]
        kind = SpanKind.PREFILL if seen.stage == Stage.PREFILL else SpanKind.DECODE
        total = int(tokens.sum())
        span = self._add(kind, g, self.now_ns - spent_ns, n=len(served), tokens=total)
        self.since_ns[g] = self.now_ns
        turn = self.turns[g]
        if turn is not None:
            turn.tokens += total
            self._serve(turn, served, span)

    def _serve(self, turn: OpenTurn, slots: npt.NDArray[np.int64], span: int) -> None:
        for request in self.state.requests["id"][slots].tolist():
            if request not in turn.served:
                turn.served.add(request)
                if span != NONE:
                    self.services.append((request, span))

    def _note_kv_in(self, g: int, seen: Seen, n: int) -> None:
        context = self._context_tokens(seen.slots[:n])
        self._add(SpanKind.KV_IN, g, self.since_ns[g], n=n, tokens=context)
        self.since_ns[g] = self.now_ns

    def _note_kv_out(self, g: int, seen: Seen, n: int) -> None:
        moved = seen.slots[:n]
        models = set(self.state.requests["model"][moved].tolist())
        self._add(
            SpanKind.KV_OUT,
            g,
            self.out_since_ns[g],
            n=n,
            tokens=self._context_tokens(moved),
            model=models.pop() if len(models) == 1 else NONE,
        )
        self.out_since_ns[g] = self.now_ns

    def _context_tokens(self, slots: npt.NDArray[np.int64]) -> int:
        requests = self.state.requests
        return int(requests["prompt_tokens"][slots].sum() + requests["emitted_tokens"][slots].sum())

    def _note_load(self, row: int, g: int) -> None:
        s, load = int(self.loading_slot[g]), self.loads[g]
        if s < 0 and load is None:
            return
        model = int(self.state.slots["model"][g, s]) if s >= 0 else NONE
        if load is not None and load[0] != model:
            is_ready = self.state.slots["state"][g] == SlotState.READY
            held = self.state.slots["model"][g] == load[0]
            self._end_load(g, is_cut=not np.any(is_ready & held))
        if self.loads[g] is None and s >= 0 and self.state.slots["is_ahead"][g, s]:
            self.loads[g] = (model, self.now_ns, row)

    def _end_load(self, g: int, *, is_cut: bool) -> None:
        load, self.loads[g] = self.loads[g], None
        if load is not None:
            model, start_ns, row = load
            self._add(SpanKind.LOAD_AHEAD, g, start_ns, model=model, decision=row, is_cut=is_cut)

    def _note_outgoing(self) -> None:
        """A move begins when something waits for it, or when the move before it ends."""
        for g in np.flatnonzero(self.outgoing != self.seen_outgoing).tolist():
            if self.outgoing[g] == 0:
                self._end_outgoing(g)
            elif self.out_since_ns[g] == NONE:
                self.out_since_ns[g] = self.now_ns
        self.seen_outgoing[:] = self.outgoing

    def _end_outgoing(self, g: int) -> None:
        since_ns, self.out_since_ns[g] = self.out_since_ns[g], NONE
        if since_ns not in (NONE, self.now_ns):
            self._add(SpanKind.KV_OUT, g, since_ns, model=NONE, is_cut=True)

    def _note_stages(self, row: int) -> None:
        for g in np.flatnonzero(self.stage != self.seen_stage).tolist():
            old, new = int(self.seen_stage[g]), int(self.stage[g])
            self._leave_stage(g, is_cut=new == DOWN)
            if old >= COMMANDED > new:
                self._end_turn(g, is_cut=new == DOWN)
            if new >= COMMANDED > old:
                model = int(self.state.instances["model"][g])
                self.turns[g] = OpenTurn(row, model, self.now_ns)
            self.seen_stage[g], self.since_ns[g] = new, self.now_ns

    def _leave_stage(self, g: int, *, is_cut: bool) -> None:
        """A span for the stage left; work and KV_IN that were reported left nothing of it."""
        stage, since_ns = int(self.seen_stage[g]), self.since_ns[g]
        if stage == COMMANDED:
            if self.state.instances["is_switching"][g]:
                self._add(SpanKind.SWITCH, g, since_ns, is_cut=is_cut)
        elif stage in KIND_OF and since_ns < self.now_ns:
            self._add(KIND_OF[stage], g, since_ns, is_cut=is_cut)

    def _end_turn(self, g: int, *, is_cut: bool) -> None:
        turn = self.turns[g]
        if turn is not None:
            self._add(
                SpanKind.TURN,
                g,
                turn.start_ns,
                n=len(turn.served),
                tokens=turn.tokens,
                is_cut=is_cut,
            )
            self.turns[g] = None

    # what is kept

    def _add(
        self,
        kind: SpanKind,
        g: int,
        start_ns: int,
        *,
        n: int = 0,
        tokens: int = 0,
        model: int | None = None,
        decision: int | None = None,
        is_cut: bool = False,
    ) -> int:
        """A span that ends now; its index, or NONE where it is outside the timeline.

        Model and decision default to those of the turn on g.
        """
        is_before = self.now_ns <= self.start_ns and start_ns < self.start_ns
        if is_before or start_ns >= self.end_ns:
            return NONE
        turn = self.turns[g]
        if model is None:
            model = NONE if turn is None else turn.model
        if decision is None:
            beside = turn is None or kind in (SpanKind.KV_OUT, SpanKind.DOWN)
            decision = NONE if turn is None or beside else turn.decision
        span = (start_ns, self.now_ns, tokens, decision, n, g, model, int(kind), int(is_cut))
        self.spans.append(span)
        return len(self.spans) - 1

    def _keep_life(self, r: int, end_ns: int) -> None:
        request = self.state.requests[r]
        if request["arrival_ns"] < self.end_ns and (end_ns == NONE or end_ns > self.start_ns):
            values = {name: int(request[name]) for name in COPIED} | {"end_ns": end_ns}
            self.lives.append(tuple(values[name] for name in LIFE.names or ()))

    def _sample(self, time_ns: int) -> None:
        """The levels at `sample_ns`, the last before an event at `time_ns`."""
        if self.sample_ns >= self.end_ns or time_ns <= self.sample_ns:
            return
        pool, instances, nodes = self.state.pool, self.state.instances, self.state.nodes
        used = np.bincount(instances["node"], instances["kv_used_bytes"], minlength=len(nodes))
        host = nodes["host_kv_used_bytes"].copy()
        levels = int(pool["claimable"][0]), int(pool["in_flight"][0])
        self.samples.append((self.sample_ns, *levels, used.astype(np.int64), host))
        self.sample_ns += (time_ns - self.sample_ns + SAMPLE_NS - 1) // SAMPLE_NS * SAMPLE_NS

    def _samples(self) -> Samples:
        columns: Iterable[Any] = zip(*self.samples, strict=True) if self.samples else ([],) * 5
        time_ns, claimable, in_flight, used, host = (np.array(c, np.int64) for c in columns)
        shape = (-1, len(self.state.nodes))
        return Samples(time_ns, claimable, in_flight, used.reshape(shape), host.reshape(shape))
