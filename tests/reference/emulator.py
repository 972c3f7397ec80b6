"""A reference emulator: the physics of docs/physics.md in plain Python, one decode step at a time.

Objects, lists and sums counted anew at every use; no tables, no counters kept by adding, no closed
forms. From the project it takes the vocabulary alone (runtime.core).

Step j of a run of decode steps ends round((x*j + y*j*(j-1)/2) * 1e9) ns after the run began. The
scheduler learns of a run's tokens when the run breaks: its batch, quota, memory or step time
changes, or a request waits to join. What a failure or the horizon cuts off was never reported.

Not covered: features, gap histogram, qos, placements made before the start.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from enum import IntEnum
from itertools import pairwise
from typing import Any, NamedTuple

from runtime.core import (
    NONE,
    NS,
    DecisionKind,
    Dispatch,
    EventKind,
    KvPlace,
    ModelSpec,
    Phases,
    PoolSpec,
    PrefetchMode,
    RequestPhase,
    Stage,
)

ON_DEVICE = (KvPlace.DEVICE, KvPlace.MOVING_OUT, KvPlace.MOVING_IN)
ON_HOST = (KvPlace.HOST, KvPlace.MOVING_OUT, KvPlace.MOVING_IN)
LEAST_CREDITED_SWITCH_NS = NS // 100
ENDLESS_NS = 1 << 62
STARVING = 1 << 20  # ranks above every priority
MOST_EVENTS = 100_000


class StuckError(RuntimeError):
    """Requests wait and nothing is pending."""


class Where(IntEnum):
    """Who holds a request."""

    NOBODY = 0  # not there yet, or ended
    ROUTER = 1
    OPEN = 2  # any turn may take it
    TURN = 3
    WAY_OUT = 4  # its KV is moving to the host


class Cost(NamedTuple):
    """Seconds, as in a profile; `table` are pairs (batch, seconds) that replace `decode_batch`."""

    prefill: float
    prefill_token: float
    prefill_token2: float
    decode: float
    decode_context: float
    decode_batch: float
    table: tuple[tuple[float, float], ...]


class Slo(NamedTuple):
    ttft_ns: int
    tbt_ns: int


class Outside(NamedTuple):
    """A cancelled request (by id), or an instance that fails or returns."""

    time_ns: int
    kind: int
    which: int


class Candidate(NamedTuple):
    model: int
    oldest_ns: int  # earliest arrival among its open requests


class Question(NamedTuple):
    """What a policy is asked, with all that it may see; `index` is an instance or a request id."""

    time_ns: int
    kind: int
    index: int
    candidates: tuple[Candidate, ...]
    routes: tuple[int, ...]
    can_idle: bool
    kv_bytes: tuple[int, ...]  # on each device
    host_kv_bytes: tuple[int, ...]  # in the host memory of each node
    residents: tuple[tuple[int, ...], ...]  # models by slot


class Answer(NamedTuple):
    kind: int
    model: int = NONE
    quota_ns: int = ENDLESS_NS
    phases: int = Phases.BOTH
    joins: int = 1
    tag: int = NONE
    instance: int = NONE


class Row(NamedTuple):
    """A row of the journal, as far as it means anything for its kind."""

    time_ns: int
    kind: int
    instance: int = NONE
    id: int = NONE
    model: int = NONE
    n: int = 0
    x: float = 0.0
    y: float = 0.0
    quota_ns: int = 0
    is_fallback: int = 0


Rule = Callable[[Question, int], Answer]  # (question, its number)


@dataclass(slots=True, eq=False)
class Request:
    id: int
    model: int
    arrival_ns: int
    prompt: int
    output: int
    priority: int
    phase: int = RequestPhase.FREE
    where: int = Where.NOBODY
    kv: int = KvPlace.NOWHERE
    instance: int = NONE
    route: int = NONE
    node: int = NONE
    tag: int = NONE
    tokens: list[int] = field(default_factory=list)  # time of each token, ns
    reported: int = 0  # tokens that the scheduler knows of
    partial: int = 0  # tokens of a prefill that chunks left unfinished
    is_cancelled: bool = False

    @property
    def context(self) -> int:
        return self.prompt + self.reported

    @property
    def order(self) -> tuple[int, int, int]:
        return (-self.priority, self.arrival_ns, self.id)


@dataclass(slots=True)
class Slot:
    model: int = NONE
    is_ready: bool = False
    ready_ns: int = 0
    is_ahead: bool = False  # prefetched, and no turn has used it yet


@dataclass(slots=True)
class Work:
    """What an instance computes: a switch, a move in, a prefill call, or the next decode step."""

    end_ns: int
    kind: int
    began_ns: int
    n: int = 0  # requests, or decode steps done
    x: float = 0.0
    y: float = 0.0
    room_bytes: int = 0  # for the KV of a run of steps
    must_break: bool = False


@dataclass(slots=True)
class Instance:
    index: int
    node: int
    role: int
    slots: list[Slot]
    stage: int = Stage.FREE
    model: int = NONE
    active: int = NONE
    loading: int = NONE
    load_left_ns: int = 0
    load_since_ns: int = NONE  # NONE: nothing loads, or it waits for the link
    prefill: list[Request] = field(default_factory=list)
    batch: list[Request] = field(default_factory=list)
    incoming: list[Request] = field(default_factory=list)
    outgoing: list[Request] = field(default_factory=list)
    group: int = 0  # of the outgoing requests: how many move now
    group_end_ns: int = 0
    waits_for_room: bool = False  # its turn's KV is claimed once the outgoing moves end
    work: Work | None = None
    phases: int = 0
    quota_ns: int = 0
    tag: int = NONE
    joins: int = 0
    is_switching: bool = False
    ordered_ns: int = 0
    decoded_ns: int = 0
    compute_ns: int = 0  # since its last switch
    wants_prefetch: bool = False
    seen_wakes: int = NONE
    seen_arrivals: int = NONE
    owes_step: bool = False  # its batch decodes a step before the next chunk of a prompt
    draws: int = 0
    switches: int = 0
    prefetched_switches: int = 0
    busy_ns: int = 0

    @property
    def is_in_turn(self) -> bool:
        return self.stage >= Stage.COMMANDED


@dataclass(slots=True)
class Node:
    cached: list[int]  # models whose weights are in host memory
    used_ns: list[int]


def step_end_ns(x: float, y: float, j: int) -> int:
    return round((x * j + y * (0.5 * j * (j - 1))) * 1e9)


def hashed(*words: int) -> int:
    """64 bits from splitmix64, chained over the words."""
    state = 0
    for word in words:
        state = ((state ^ word) + 0x9E3779B97F4A7C15) % 2**64
        for shift, multiplier in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
            state = (state ^ (state >> shift)) * multiplier % 2**64
        state ^= state >> 31
    return state


def uniform(*words: int) -> float:
    return ((hashed(*words) >> 11) + 0.5) / 2**53


class Emulator:
    """One trace on one pool under one rule. `run`, then read `requests`, `instances`, `journal`
    and `questions`."""

    def __init__(
        self,
        spec: PoolSpec,
        models: tuple[ModelSpec, ...],
        costs: tuple[Cost, ...],
        slos: tuple[Slo, ...],
        requests: list[Request],
        rule: Rule,
        *,
        outside: tuple[Outside, ...] = (),
        horizon_ns: int = ENDLESS_NS,
    ) -> None:
        self.spec, self.models, self.costs, self.slos = spec, models, costs, slos
        self.requests, self.rule, self.outside = requests, rule, outside
        self.horizon_ns, self.now_ns = horizon_ns, 0
        self.come = 0  # requests that have arrived
        roles = spec.roles or (Phases.BOTH,) * spec.instances
        self.instances = [
            Instance(g, g // spec.instances_per_node, roles[g], self._empty_slots())
            for g in range(spec.instances)
        ]
        sizes = [model.weight_bytes for model in models]
        first = [m for m in range(len(models)) if sum(sizes[: m + 1]) <= spec.host_weight_bytes]
        self.nodes = [Node(list(first), [0] * len(models)) for _ in range(spec.nodes)]
        self.waiting_since: list[int | None] = [None] * len(models)
        self.wakes = self.refused = self.recomputed = 0
        self.journal: list[Row] = []
        self.questions: list[Question] = []

    def _empty_slots(self) -> list[Slot]:
        return [Slot() for _ in range(self.spec.weight_slots)]

    # -- time

    def run(self) -> None:
        """To the end or the horizon. Raises StuckError."""
        for _ in range(MOST_EVENTS):
            event = min(self._pending(), default=None)
            if event is None or event[0] > self.now_ns:
                question = self._question()
                if question is not None:
                    self._decide(question)
                    continue
                if event is None and self._is_stuck():
                    raise StuckError
                if event is None or event[0] > self.horizon_ns:
                    return
            self.now_ns = max(self.now_ns, event[0])
            self._fire(*event[1:])
            self._close_event()
        raise StuckError("it decides for ever")

    def _is_stuck(self) -> bool:
        is_down = all(inst.stage == Stage.DOWN for inst in self.instances)
        return bool(self._live()) and not is_down

    def _pending(self) -> Iterator[tuple[int, int, int]]:
        for inst in self.instances:
            if inst.group:
                yield inst.group_end_ns, EventKind.KV_OUT_DONE, inst.index
            if inst.load_since_ns != NONE:
                end_ns = inst.load_since_ns + inst.load_left_ns
                yield end_ns, EventKind.WEIGHTS_READY, inst.index
            if inst.work is not None:
                yield inst.work.end_ns, inst.work.kind, inst.index
        has_more = self.come < len(self.requests)
        if has_more:
            yield self.requests[self.come].arrival_ns, EventKind.ARRIVAL, self.come
        if self.spec.ttft_timeout_s > 0:
            for r in self._live():
                if r.phase == RequestPhase.WAITING and not r.tokens:
                    due_ns = r.arrival_ns + round(self.spec.ttft_timeout_s * NS)
                    yield max(self.now_ns, due_ns), EventKind.EXPIRE, r.id
        if self.outside and (has_more or self._live()):
            yield self.outside[0].time_ns, self.outside[0].kind, 0

    def _fire(self, kind: int, index: int) -> None:
        if kind == EventKind.ARRIVAL:
            self._arrive(self.requests[index])
        elif kind == EventKind.EXPIRE:
            self._note(kind, id=index)
            self._end(self.requests[index], RequestPhase.FAILED)
        elif kind >= EventKind.CANCEL:
            self._fire_outside()
        else:
            inst = self.instances[index]
            {
                EventKind.KV_OUT_DONE: self._moved_out,
                EventKind.WEIGHTS_READY: self._loaded,
                EventKind.SWITCHED: self._switched,
                EventKind.KV_IN_DONE: self._moved_in,
                EventKind.PREFILLED: self._prefilled,
                EventKind.STEPS: self._stepped,
                EventKind.TURN_ENDED: self._end_turn,
            }[EventKind(kind)](inst)

    def _note(self, kind: int, **columns: Any) -> None:
        self.journal.append(Row(self.now_ns, int(kind), **columns))

    def _close_event(self) -> None:
        """What follows from an event: idle links take what is queued; nothing waits of no model."""
        for inst in self.instances:
            if inst.outgoing and not inst.group:
                self._start_group(inst)
        for m in range(len(self.models)):
            if not self._open(m):
                self.waiting_since[m] = None

    # -- requests

    def _live(self) -> list[Request]:
        return [r for r in self.requests if r.where != Where.NOBODY]

    def _open(self, m: int, phase: int | None = None) -> list[Request]:
        """Requests of a model that no turn owns, in the order in which turns take them."""
        found = [r for r in self.requests if r.where == Where.OPEN and r.model == m]
        return sorted((r for r in found if phase in (None, r.phase)), key=lambda r: r.order)

    def _routing(self) -> list[Request]:
        found = [r for r in self.requests if r.where == Where.ROUTER]
        return sorted(found, key=lambda r: r.order)

    def _arrive(self, r: Request) -> None:
        self.come += 1
        self.wakes += 1
        self._note(EventKind.ARRIVAL, id=r.id, model=r.model, n=r.prompt)
        queued = [o for o in self.requests if o.where in (Where.OPEN, Where.ROUTER)]
        need = self._bytes(r.model, r.prompt + 1 + self.spec.lookahead_tokens)
        if 0 < self.spec.max_queue <= len(queued):
            self._end(r, RequestPhase.SHED)
        elif need > self._capacity(r.model):
            self._end(r, RequestPhase.FAILED)
        else:
            self._offer(r, RequestPhase.WAITING)
            self._try_join(r)

    def _offer(self, r: Request, phase: int) -> None:
        """Nobody owns r: turns may take it, or a router must place it first."""
        r.phase = phase
        if r.is_cancelled:
            self._end(r, RequestPhase.CANCELLED)
        elif self.spec.dispatch is Dispatch.PUSH and r.route == NONE:
            r.where = Where.ROUTER
        else:
            r.where = Where.OPEN
            if self.waiting_since[r.model] is None:
                self.waiting_since[r.model] = self.now_ns

    def _end(self, r: Request, phase: int) -> None:
        for inst in self.instances:
            for members in (inst.batch, inst.outgoing):
                if r in members:
                    members.remove(r)
        r.phase, r.where, r.kv = phase, Where.NOBODY, KvPlace.NOWHERE

    def _recompute(self, r: Request) -> None:
        """Its KV is dropped: it waits for a prefill of its prompt and the tokens it has."""
        self.recomputed += 1
        self.wakes += 1
        r.kv, r.instance = KvPlace.NOWHERE, NONE
        if r.route != NONE and not self.instances[r.route].role & Phases.PREFILL:
            r.route = NONE
        self._offer(r, RequestPhase.WAITING)

    def _give_back(self, inst: Instance, r: Request) -> None:
        """Out of a turn that has done nothing for it yet."""
        (inst.incoming if r in inst.incoming else inst.prefill).remove(r)
        was_moving, r.partial = r.kv == KvPlace.MOVING_IN, 0
        r.kv, r.instance = KvPlace.HOST if was_moving else KvPlace.NOWHERE, NONE
        self._offer(r, RequestPhase.READY if was_moving else RequestPhase.WAITING)
        self.wakes += 1

    # -- memory

    def _capacity(self, m: int) -> int:
        sizes = [model.weight_bytes for model in self.models]
        reserved = self.spec.weight_slots * max(sizes) if self.spec.slots_reserved else sizes[m]
        return int(self.spec.kv_fraction * (self.spec.tp * self.spec.vram_bytes - reserved))

    def _bytes(self, m: int, tokens: int) -> int:
        blocks = math.ceil(tokens / self.spec.block_tokens)
        return blocks * self.spec.block_tokens * self.models[m].kv_token_bytes

    def _kv(self, r: Request) -> int:
        return self._bytes(r.model, r.context)

    def _need(self, r: Request) -> int:
        """What must be free before a turn takes r."""
        return self._bytes(r.model, r.context + max(1, self.spec.lookahead_tokens))

    def _claim_bytes(self, r: Request) -> int:
        """What r, in a turn, will hold before its next decode step."""
        return self._kv(r) if r.kv == KvPlace.MOVING_IN else self._bytes(r.model, r.context + 1)

    def _growth(self, members: list[Request], steps: int) -> int:
        return sum(self._bytes(r.model, r.context + steps) - self._kv(r) for r in members)

    def _used(self, inst: Instance) -> int:
        held = [r for r in self.requests if r.instance == inst.index]
        used = sum(self._kv(r) for r in held if r.kv in (KvPlace.DEVICE, KvPlace.MOVING_OUT))
        if not inst.waits_for_room:
            used += sum(self._claim_bytes(r) for r in inst.incoming + inst.prefill)
        return used

    def _leaving(self, inst: Instance) -> int:
        return sum(self._kv(r) for r in inst.outgoing)

    def _host_used(self, d: int) -> int:
        return sum(self._kv(r) for r in self.requests if r.kv in ON_HOST and r.node == d)

    def _moved_bytes(self, r: Request) -> int:
        per_token = self.spec.kv_move_token_bytes
        return r.context * per_token if per_token > 0 else self._kv(r)

    # -- KV moves

    def _move_out(self, inst: Instance, r: Request) -> None:
        if self._host_used(inst.node) + self._kv(r) > self.spec.host_kv_bytes:
            self._recompute(r)
            return
        r.phase, r.where, r.kv, r.node = (
            RequestPhase.READY,
            Where.WAY_OUT,
            KvPlace.MOVING_OUT,
            inst.node,
        )
        inst.outgoing.append(r)

    def _start_group(self, inst: Instance) -> None:
        moved = sum(self._moved_bytes(r) for r in inst.outgoing)
        seconds = moved / (self.spec.tp * self.spec.d2h_bytes_s)
        took_ns = 0 if self.spec.kv_out_free else math.ceil(seconds * 1e9)
        inst.group, inst.group_end_ns = len(inst.outgoing), self.now_ns + took_ns

    def _moved_out(self, inst: Instance) -> None:
        self._note(EventKind.KV_OUT_DONE, instance=inst.index, n=inst.group)
        moved, inst.group = inst.outgoing[: inst.group], 0
        for r in moved:
            inst.outgoing.remove(r)
            r.kv, r.instance = KvPlace.HOST, NONE
            self._offer(r, RequestPhase.READY)
            self._try_join(r)
        if not inst.outgoing:
            inst.waits_for_room = False
        if inst.stage == Stage.BLOCKED:
            self._settle(inst)
        self.wakes += 1

    def _moved_in(self, inst: Instance) -> None:
        assert inst.work is not None
        self._note(EventKind.KV_IN_DONE, instance=inst.index, n=inst.work.n)
        for r in inst.incoming[: inst.work.n]:
            inst.incoming.remove(r)
            inst.batch.append(r)
            r.kv = KvPlace.DEVICE
        self._drop_cancelled(inst)
        self._settle(inst)

    def _evict(self, inst: Instance, m: int, *, is_lost: bool) -> None:
        """KV of m that idles on the device leaves for the host, or is lost."""
        for r in self._open(m, RequestPhase.READY):
            if r.kv == KvPlace.DEVICE and r.instance == inst.index:
                if is_lost:
                    self._recompute(r)
                else:
                    self._move_out(inst, r)

    # -- weights

    def _load_ns(self, inst: Instance, m: int) -> int:
        rate = self.spec.tp * self.spec.h2d_bytes_s
        if m not in self.nodes[inst.node].cached:
            rate = min(rate, self.spec.disk_bytes_s)
        return math.ceil(self.models[m].weight_bytes / rate * 1e9)

    def _slot_of(self, inst: Instance, m: int) -> int:
        return next((s for s, slot in enumerate(inst.slots) if slot.model == m), NONE)

    def _oldest_slot(self, inst: Instance, *, may_be_ahead: bool) -> int:
        """Not the active one; the least recently loaded."""
        others = [
            (slot.ready_ns, s)
            for s, slot in enumerate(inst.slots)
            if s != inst.active and (may_be_ahead or not slot.is_ahead)
        ]
        return min(others)[1] if others else NONE

    def _victim(self, inst: Instance) -> int:
        """Where a turn's weights go."""
        for s, slot in enumerate(inst.slots):
            if slot.model == NONE or s == inst.loading:
                return s
        oldest = self._oldest_slot(inst, may_be_ahead=False)
        return inst.active if oldest == NONE else oldest

    def _load(self, inst: Instance, s: int, m: int, *, is_ahead: bool) -> None:
        """A load under way is dropped with its progress."""
        if inst.loading != NONE:
            inst.slots[inst.loading] = Slot(ready_ns=inst.slots[inst.loading].ready_ns)
        inst.slots[s] = Slot(m, is_ahead=is_ahead, ready_ns=inst.slots[s].ready_ns)
        inst.loading, inst.load_left_ns = s, self._load_ns(inst, m)
        inst.load_since_ns = NONE if inst.stage == Stage.KV_IN else self.now_ns

    def _place_weights(self, inst: Instance, m: int) -> None:
        s = self._slot_of(inst, m)
        if s == NONE:
            s = self._victim(inst)
            self._load(inst, s, m, is_ahead=False)
            if self.spec.prefetch is PrefetchMode.RETROACTIVE:
                credited_ns = inst.load_left_ns - inst.compute_ns
                inst.load_left_ns = max(LEAST_CREDITED_SWITCH_NS, credited_ns)
        elif inst.slots[s].is_ahead:
            inst.slots[s].is_ahead = False
            inst.prefetched_switches += 1
        inst.active = s

    def _loaded(self, inst: Instance) -> None:
        self._note(EventKind.WEIGHTS_READY, instance=inst.index)
        slot = inst.slots[inst.loading]
        slot.is_ready, slot.ready_ns = True, self.now_ns
        inst.loading = inst.load_since_ns = NONE
        self._cache(self.nodes[inst.node], slot.model)
        if inst.stage == Stage.COMMANDED and inst.slots[inst.active].is_ready:
            self._begin_work(inst)
        self.wakes += 1

    def _cache(self, node: Node, m: int) -> None:
        """Host memory keeps what was used last."""
        size, limit = self.models[m].weight_bytes, self.spec.host_weight_bytes
        node.used_ns[m] = self.now_ns
        if m in node.cached or size > limit:
            return
        while sum(self.models[o].weight_bytes for o in node.cached) + size > limit:
            node.cached.remove(min(node.cached, key=lambda o: (node.used_ns[o], o)))
        node.cached.append(m)

    # -- turns

    def _can_take(self, inst: Instance, r: Request, tag: int = NONE) -> bool:
        """May a turn on it take the open request (its role apart)?"""
        if tag not in (NONE, r.tag):
            return False
        if self.spec.dispatch is Dispatch.PUSH and r.route != inst.index:
            return False
        if r.kv == KvPlace.DEVICE:
            return r.instance == inst.index
        is_near = r.node == inst.node or self.spec.network_bytes_s > 0
        return r.kv != KvPlace.HOST or is_near

    def _takeable(self, inst: Instance, m: int, phases: int, tag: int = NONE) -> list[Request]:
        """READY before WAITING, in order."""
        ready = self._open(m, RequestPhase.READY) if phases & Phases.DECODE else []
        waiting = self._open(m, RequestPhase.WAITING) if phases & Phases.PREFILL else []
        return [r for r in ready + waiting if self._can_take(inst, r, tag)]

    def _begin_turn(self, inst: Instance, answer: Answer) -> None:
        m, spec = answer.model, self.spec
        inst.is_switching = inst.model != m
        if inst.is_switching and inst.model != NONE and not spec.kv_stays:
            self._evict(inst, inst.model, is_lost=not spec.kv_survives_switch)
        inst.model, inst.stage, inst.wants_prefetch = m, Stage.COMMANDED, False
        inst.phases, inst.tag, inst.joins = answer.phases & inst.role, answer.tag, answer.joins
        inst.quota_ns = answer.quota_ns if spec.token_preempt else ENDLESS_NS
        inst.ordered_ns, inst.decoded_ns, inst.owes_step = self.now_ns, 0, False
        inst.waits_for_room = True  # until it is known that what it takes fits
        room = self._room(inst, m, answer.tag)
        self._take(inst, m, answer.tag, room)
        taken = sum(self._claim_bytes(r) for r in inst.incoming + inst.prefill)
        if self._used(inst) - self._leaving(inst) + taken > self._capacity(m):
            self._evict(inst, m, is_lost=False)
        inst.waits_for_room = taken > 0 and self._used(inst) + taken > self._capacity(m)
        self.waiting_since[m] = self.now_ns
        self._place_weights(inst, m)
        self._begin_work(inst)

    def _room(self, inst: Instance, m: int, tag: int) -> int:
        """KV bytes that a turn of m may fill."""
        if not self.spec.kv_stays:
            return self._capacity(m)
        own = [r for r in self._open(m) if r.kv == KvPlace.DEVICE and r.instance == inst.index]
        others = self._used(inst) - self._leaving(inst) - sum(self._kv(r) for r in own)
        beside = self._capacity(m) - others
        takeable = self._takeable(inst, m, inst.phases, tag)
        if not takeable or self._need(takeable[0]) <= beside:
            return beside
        for other in range(len(self.models)):
            if other != m:
                self._evict(inst, other, is_lost=not self.spec.kv_survives_switch)
        return self._capacity(m)

    def _take(self, inst: Instance, m: int, tag: int, room: int) -> None:
        """All that fits, in order; residents behind the first that does not leave for the host."""
        is_full = False
        for phases in (Phases.DECODE, Phases.PREFILL):
            for r in self._takeable(inst, m, phases & inst.phases, tag):
                if is_full and phases == Phases.PREFILL:
                    return
                need = self._need(r)
                if need > self._capacity(m):
                    self._end(r, RequestPhase.FAILED)
                elif need <= room and not is_full:
                    room -= need
                    self._claim(inst, r)
                else:
                    is_full = True
                    if r.kv == KvPlace.DEVICE:
                        self._move_out(inst, r)

    def _claim(self, inst: Instance, r: Request) -> None:
        if r.phase == RequestPhase.WAITING:
            inst.prefill.append(r)
        elif r.kv == KvPlace.DEVICE:
            inst.batch.append(r)
        else:
            r.kv = KvPlace.MOVING_IN
            inst.incoming.append(r)
        r.phase, r.where, r.instance = RequestPhase.RUNNING, Where.TURN, inst.index

    def _can_join(self, inst: Instance, r: Request) -> bool:
        is_running = inst.is_in_turn and inst.stage != Stage.ENDING and not inst.waits_for_room
        phase = Phases.PREFILL if r.phase == RequestPhase.WAITING else Phases.DECODE
        if not is_running or not inst.joins or inst.model != r.model or not inst.phases & phase:
            return False
        if not self._can_take(inst, r, inst.tag):
            return False
        held = self._used(inst) + self._growth(inst.batch + inst.incoming, 1)
        return held + self._need(r) <= self._capacity(r.model)

    def _try_join(self, r: Request) -> None:
        """The smallest batch of its model takes it, at its next step boundary."""
        if r.where != Where.OPEN:
            return
        able = [(len(i.batch), i.index) for i in self.instances if self._can_join(i, r)]
        if able:
            inst = self.instances[min(able)[1]]
            self._claim(inst, r)
            self._break_run(inst)

    def _break_run(self, inst: Instance) -> None:
        """Return to the scheduler at the next step boundary: now, if one is now."""
        work = inst.work
        if work is None or work.kind != EventKind.STEPS:
            return
        work.must_break = True
        if work.n > 0 and self._step_end_ns(work, work.n) == self.now_ns:
            work.n -= 1
            work.end_ns = self.now_ns
            for r in inst.batch:
                if len(r.tokens) > r.reported:
                    r.tokens.pop()

    def _settle(self, inst: Instance) -> None:
        """What the turn does next, at a token boundary; KV has the link before a load."""
        inst.stage = self._next_stage(inst)
        if inst.loading != NONE:
            if inst.stage == Stage.KV_IN and inst.load_since_ns != NONE:
                spent_ns = self.now_ns - inst.load_since_ns
                inst.load_left_ns = max(0, inst.load_left_ns - spent_ns)
                inst.load_since_ns = NONE
            elif inst.stage != Stage.KV_IN and inst.load_since_ns == NONE:
                inst.load_since_ns = self.now_ns
        self._begin_work(inst)

    def _next_stage(self, inst: Instance) -> Stage:
        if inst.waits_for_room:
            return Stage.BLOCKED
        if inst.incoming:
            return Stage.KV_IN
        may_decode = bool(inst.batch) and inst.decoded_ns < inst.quota_ns
        room = self._capacity(inst.model) - self._used(inst)
        has_room = self._growth(inst.batch, 1) <= room
        if inst.prefill:
            return Stage.DECODE if inst.owes_step and may_decode and has_room else Stage.PREFILL
        if may_decode:
            if has_room:
                return Stage.DECODE
            if inst.outgoing:
                return Stage.BLOCKED
        return Stage.ENDING

    def _end_turn(self, inst: Instance) -> None:
        self._note(EventKind.TURN_ENDED, instance=inst.index)
        members, inst.batch = inst.batch, []
        for r in members:
            if self.spec.kv_reload_every_turn:
                self._move_out(inst, r)
            else:
                self._offer(r, RequestPhase.READY)
        inst.stage, inst.work, inst.wants_prefetch = Stage.FREE, None, False
        self.wakes += 1

    # -- work

    def _begin_work(self, inst: Instance) -> None:
        now, stage = self.now_ns, inst.stage
        inst.work = None
        if stage == Stage.COMMANDED and inst.slots[inst.active].is_ready:
            placed_ns = inst.slots[inst.active].ready_ns
            start_ns = max(placed_ns, inst.ordered_ns + round(self.spec.command_s * NS))
            end_ns = start_ns + round(self.spec.turn_overhead_s * NS)
            inst.work = Work(end_ns, EventKind.SWITCHED, now)
        elif stage == Stage.KV_IN:
            end_ns = now + self._kv_in_ns(inst)
            inst.work = Work(end_ns, EventKind.KV_IN_DONE, now, n=len(inst.incoming))
        elif stage == Stage.PREFILL:
            n, seconds = self._prefill_call(inst)
            x = self._truncated(seconds) * self._noise(inst)
            inst.work = Work(now + step_end_ns(x, 0.0, 1), EventKind.PREFILLED, now, n=n, x=x)
        elif stage == Stage.DECODE:
            self._begin_run(inst)
        elif stage == Stage.ENDING:
            inst.work = Work(now, EventKind.TURN_ENDED, now)

    def _switched(self, inst: Instance) -> None:
        self._note(EventKind.SWITCHED, instance=inst.index)
        if inst.is_switching:
            inst.switches += 1
            inst.compute_ns = 0
        inst.wants_prefetch, inst.seen_arrivals = True, NONE
        self._settle(inst)

    def _kv_in_ns(self, inst: Instance) -> int:
        if self.spec.kv_reload_every_turn and inst.decoded_ns > 0:
            return 0  # paid at the turn's start
        link_bytes_s, quantum = self.spec.tp * self.spec.h2d_bytes_s, self.spec.step_quantum_s
        near = sum(self._moved_bytes(r) for r in inst.incoming if r.node == inst.node)
        far = sum(self._moved_bytes(r) for r in inst.incoming if r.node != inst.node)
        seconds = near / link_bytes_s
        if far:
            seconds += far / min(link_bytes_s, self.spec.network_bytes_s)
        if quantum > 0:
            seconds = math.floor(seconds / quantum + 1e-9) * quantum
        return math.ceil(seconds * 1e9 - 1e-3)

    def _prefill_call(self, inst: Instance) -> tuple[int, float]:
        """A chunk of the first prompt; or requests in order while the token budget lasts, at least
        one. How many, and predicted seconds."""
        cost, chunk = self.costs[inst.model], self.spec.prefill_chunk_tokens
        budget = self.spec.prefill_budget_tokens
        budget = min(budget, chunk) if chunk > 0 else budget
        first, tokens, seconds, n = inst.prefill[0], 0, cost.prefill, 0
        if 0 < chunk < first.context - first.partial:
            return 0, seconds + self._part_s(cost, first.partial, first.partial + chunk)
        for r in inst.prefill:
            if n > 0 and tokens + r.context - r.partial > budget:
                break
            n, tokens = n + 1, tokens + r.context - r.partial
            seconds += self._part_s(cost, r.partial, r.context)
        return n, seconds

    def _part_s(self, cost: Cost, start: int, end: int) -> float:
        return self._prompt_s(cost, float(end)) - self._prompt_s(cost, float(start))

    def _prompt_s(self, cost: Cost, tokens: float) -> float:
        if cost.prefill_token2 < 0:
            tokens = min(tokens, -0.5 * cost.prefill_token / cost.prefill_token2)
        return cost.prefill_token * tokens + cost.prefill_token2 * tokens * tokens

    def _step_s(self, cost: Cost, context: int, batch: int) -> float:
        seconds = cost.decode + self.spec.step_overhead_s + cost.decode_context * context
        if not cost.table:
            return seconds + cost.decode_batch * batch
        pairs = list(pairwise(cost.table))
        (low, low_s), (high, high_s) = next((p for p in pairs if batch <= p[1][0]), pairs[-1])
        return seconds + (low_s + (batch - low) / (high - low) * (high_s - low_s))

    def _truncated(self, seconds: float) -> float:
        quantum = self.spec.step_quantum_s
        if quantum <= 0:
            return seconds
        return max(1.0, math.floor(seconds / quantum + 1e-9)) * quantum

    def _noise(self, inst: Instance) -> float:
        inst.draws += 1
        if self.spec.noise <= 0:
            return 1.0
        s2, seed = math.log(1.0 + self.spec.noise**2), self.spec.seed
        u, v = (uniform(seed, inst.index, 2 * inst.draws + i) for i in (0, 1))
        z = math.sqrt(-2.0 * math.log(u)) * math.cos(2.0 * math.pi * v)
        return math.exp(math.sqrt(s2) * z - 0.5 * s2)

    def _prefilled(self, inst: Instance) -> None:
        work = inst.work
        assert work is not None
        self._note(EventKind.PREFILLED, instance=inst.index, n=work.n, x=work.x)
        self._count_compute(inst, self.now_ns - work.began_ns)
        inst.owes_step = self.spec.prefill_chunk_tokens > 0
        if work.n == 0:
            inst.prefill[0].partial += self.spec.prefill_chunk_tokens
        done, inst.prefill = inst.prefill[: work.n], inst.prefill[work.n :]
        for r in done:
            r.partial = 0
            r.tokens.append(self.now_ns)
            r.reported += 1
            r.kv = KvPlace.DEVICE
            if inst.phases & Phases.DECODE:
                inst.batch.append(r)
            elif inst.role & Phases.DECODE:
                self._offer(r, RequestPhase.READY)
            else:
                r.route = NONE
                self._move_out(inst, r)
        self._drop_cancelled(inst)
        self._finish(done)
        self._settle(inst)

    def _begin_run(self, inst: Instance) -> None:
        cost = self.costs[inst.model]
        x = self._run_step_s(inst, 0)
        y = 0.0 if self.spec.step_quantum_s > 0 else cost.decode_context * len(inst.batch)
        if self.spec.noise > 0:  # whole ns a step
            noise = self._noise(inst)
            x, y = round(x * noise * 1e9) / 1e9, round(y * noise * 1e9) / 1e9
        room = self._capacity(inst.model) - self._used(inst)
        inst.work = Work(0, EventKind.STEPS, self.now_ns, x=x, y=y, room_bytes=room)
        inst.work.end_ns = self._step_end_ns(inst.work, 1)
        inst.work.must_break = bool(inst.prefill)  # one step between two chunks

    def _run_step_s(self, inst: Instance, done: int) -> float:
        """Predicted time of the next step of a run, `done` steps after it began."""
        context = sum(r.context + done for r in inst.batch)
        return self._truncated(self._step_s(self.costs[inst.model], context, len(inst.batch)))

    def _step_end_ns(self, work: Work, j: int) -> int:
        return work.began_ns + step_end_ns(work.x, work.y, j)

    def _stepped(self, inst: Instance) -> None:
        """One more token for each request of the batch; then the next step, if nothing changes."""
        work = inst.work
        assert work is not None
        work.n += 1
        for r in inst.batch:
            r.tokens.append(self.now_ns)
        if self._goes_on(inst, work):
            work.end_ns = self._step_end_ns(work, work.n + 1)
            return
        self._note(EventKind.STEPS, instance=inst.index, n=work.n, x=work.x, y=work.y)
        took_ns = self.now_ns - work.began_ns
        self._count_compute(inst, took_ns)
        inst.decoded_ns += took_ns
        inst.owes_step = False
        done = list(inst.batch)
        for r in done:
            r.reported = len(r.tokens)
        self._drop_cancelled(inst)
        while self._used(inst) > self._capacity(inst.model):  # by growth: the latest to join yield
            self._give_back(inst, (inst.prefill or inst.incoming)[-1])
        self._finish(done)
        self._settle(inst)

    def _goes_on(self, inst: Instance, work: Work) -> bool:
        if work.must_break or any(len(r.tokens) >= r.output for r in inst.batch):
            return False
        if inst.decoded_ns + self.now_ns - work.began_ns >= inst.quota_ns:
            return False
        if self._growth(inst.batch, work.n + 1) > work.room_bytes:
            return False
        is_quantised = self.spec.step_quantum_s > 0
        return not is_quantised or self._run_step_s(inst, work.n) == self._run_step_s(inst, 0)

    def _count_compute(self, inst: Instance, took_ns: int) -> None:
        inst.compute_ns += took_ns
        inst.busy_ns += took_ns

    def _drop_cancelled(self, inst: Instance) -> None:
        for r in [r for r in inst.batch if r.is_cancelled]:
            self._end(r, RequestPhase.CANCELLED)
        for r in [r for r in inst.prefill if r.is_cancelled]:
            self._give_back(inst, r)

    def _finish(self, members: list[Request]) -> None:
        for r in members:
            if r.where != Where.NOBODY and r.reported >= r.output:
                self._note(EventKind.FINISHED, id=r.id)
                self._end(r, RequestPhase.DONE)

    # -- from outside

    def _fire_outside(self) -> None:
        event, self.outside = self.outside[0], self.outside[1:]
        if event.kind == EventKind.CANCEL:
            r = self.requests[event.which]
            if r.where != Where.NOBODY and not r.is_cancelled:
                self._note(event.kind, id=r.id)
                self._cancel(r)
            return
        inst = self.instances[event.which]
        if (inst.stage == Stage.DOWN) == (event.kind == EventKind.INSTANCE_JOINED):
            self._note(event.kind, instance=inst.index)
            if event.kind == EventKind.INSTANCE_FAILED:
                self._fail(inst)
            else:
                inst.stage = Stage.FREE
            self.wakes += 1

    def _cancel(self, r: Request) -> None:
        """At once if nobody owns it, else at the next boundary."""
        if r.where in (Where.OPEN, Where.ROUTER):
            self._end(r, RequestPhase.CANCELLED)
            return
        r.is_cancelled = True
        if r.where == Where.TURN:
            self._break_run(self.instances[r.instance])

    def _fail(self, inst: Instance) -> None:
        """All that was on the device is lost, with what no report told of."""
        inst.stage = Stage.DOWN
        for r in self._live():
            is_held = r.instance == inst.index
            if not is_held and r.route != inst.index:
                continue
            if is_held:
                r.kv = KvPlace.HOST if r.kv == KvPlace.MOVING_IN else KvPlace.NOWHERE
                r.instance, r.partial = NONE, 0
                del r.tokens[r.reported :]
            if r.route == inst.index:
                r.route = NONE
            is_ready = r.kv == KvPlace.HOST
            self._offer(r, RequestPhase.READY if is_ready else RequestPhase.WAITING)
        inst.prefill, inst.batch, inst.incoming, inst.outgoing = [], [], [], []
        inst.slots = [Slot(ready_ns=slot.ready_ns) for slot in inst.slots]
        inst.model = inst.active = inst.loading = inst.load_since_ns = NONE
        inst.group, inst.waits_for_room, inst.work = 0, False, None
        inst.compute_ns, inst.wants_prefetch = 0, False

    # -- decisions

    def _is_starving(self, m: int) -> bool:
        since, bound_ns = self.waiting_since[m], round(self.spec.max_wait_s * NS)
        return bound_ns > 0 and since is not None and self.now_ns - since > bound_ns

    def _starving_model(self, inst: Instance) -> int:
        """The model that a pull pool must serve now: the one that starves longest."""
        if self.spec.dispatch is Dispatch.PUSH:
            return NONE
        able = [m for m in self._able(inst) if self._is_starving(m)]
        order = [(self.waiting_since[m] or 0, self._urgent_ns(m), m) for m in able]
        return min(order)[2] if order else NONE

    def _urgent_ns(self, m: int) -> int:
        """Earliest next deadline of its open requests."""
        slo = self.slos[m]
        return min(r.arrival_ns + slo.ttft_ns + r.reported * slo.tbt_ns for r in self._open(m))

    def _able(self, inst: Instance) -> list[int]:
        """Models with work that it could take."""
        return [m for m in range(len(self.models)) if self._takeable(inst, m, inst.role)]

    def _rank(self, inst: Instance, m: int) -> int:
        if self._is_starving(m):
            return STARVING
        return max(r.priority for r in self._takeable(inst, m, inst.role))

    def _turn_candidates(self, inst: Instance) -> list[int]:
        able = self._able(inst)
        top = max((self._rank(inst, m) for m in able), default=0)
        return [m for m in able if self._rank(inst, m) == top]

    def _prefetch_candidates(self, inst: Instance) -> list[int]:
        return [m for m in self._able(inst) if self._may_prefetch(inst, m)]

    def _may_prefetch(self, inst: Instance, m: int) -> bool:
        s = self._slot_of(inst, m)
        if s != NONE and s == inst.active:
            return False
        is_kept = s != NONE and inst.slots[s].is_ahead
        return is_kept or self._wants_prefetch(m)

    def _wants_prefetch(self, m: int) -> bool:
        """Has it more open requests than instances that hold it ahead of need?"""
        slots = [slot for inst in self.instances for slot in inst.slots]
        return sum(slot.model == m and slot.is_ahead for slot in slots) < len(self._open(m))

    def _can_route(self, r: Request, inst: Instance) -> bool:
        is_far = r.kv == KvPlace.HOST and r.node != inst.node and self.spec.network_bytes_s <= 0
        phase = Phases.PREFILL if r.phase == RequestPhase.WAITING else Phases.DECODE
        return not is_far and inst.stage != Stage.DOWN and bool(inst.role & phase)

    def _routes(self, r: Request) -> tuple[int, ...]:
        return tuple(inst.index for inst in self.instances if self._can_route(r, inst))

    def _can_idle(self, inst: Instance) -> bool:
        if self._starving_model(inst) != NONE:
            return False
        return any(i.is_in_turn or i.outgoing or i.loading != NONE for i in self.instances)

    def _question(self) -> Question | None:
        """Routes first, then turns, then prefetches."""
        for r in self._routing():
            if self._routes(r):
                return self._ask(DecisionKind.ROUTE, r.id, [], self._routes(r))
        if not any(r.where == Where.OPEN for r in self.requests):
            return None
        for inst in self.instances:
            if inst.stage in (Stage.FREE, Stage.IDLE) and self._asks_turn(inst):
                return self._ask(DecisionKind.TURN, inst.index, self._turn_candidates(inst))
        if self.spec.prefetch is PrefetchMode.CAUSAL and self.spec.weight_slots > 1:
            if any(self._wants_prefetch(m) for m in range(len(self.models)) if self._open(m)):
                for inst in self.instances:
                    if inst.wants_prefetch and self._asks_prefetch(inst):
                        found = self._prefetch_candidates(inst)
                        return self._ask(DecisionKind.PREFETCH, inst.index, found)
        return None

    def _asks_turn(self, inst: Instance) -> bool:
        """An idle instance is asked again once something has changed."""
        if inst.stage == Stage.IDLE and inst.seen_wakes == self.wakes:
            return False
        if self._able(inst):
            return True
        inst.stage, inst.seen_wakes = Stage.IDLE, self.wakes
        return False

    def _asks_prefetch(self, inst: Instance) -> bool:
        """Without a candidate it waits for the next arrival."""
        if inst.loading != NONE or inst.seen_arrivals == self.come:
            return False
        has_slot = self._oldest_slot(inst, may_be_ahead=True) != NONE
        if has_slot and self._prefetch_candidates(inst):
            return True
        inst.seen_arrivals = self.come
        return False

    def _ask(
        self, kind: DecisionKind, index: int, models: list[int], routes: tuple[int, ...] = ()
    ) -> Question:
        oldest = [min(r.arrival_ns for r in self._open(m)) for m in models]
        return Question(
            time_ns=self.now_ns,
            kind=int(kind),
            index=index,
            candidates=tuple(map(Candidate, models, oldest)),
            routes=routes,
            can_idle=kind == DecisionKind.TURN and self._can_idle(self.instances[index]),
            kv_bytes=tuple(self._used(inst) for inst in self.instances),
            host_kv_bytes=tuple(self._host_used(d) for d in range(self.spec.nodes)),
            residents=tuple(tuple(s.model for s in inst.slots) for inst in self.instances),
        )

    def _decide(self, question: Question) -> None:
        """Carry out the rule's answer; one that is not possible is replaced by the plainest."""
        self.questions.append(question)
        answer = self.rule(question, len(self.questions) - 1)
        if self._carry_out(question, answer, 0):
            return
        self.refused += 1
        plain = {
            DecisionKind.TURN: Answer(EventKind.IDLE),
            DecisionKind.PREFETCH: Answer(EventKind.PREFETCH),
            DecisionKind.ROUTE: Answer(EventKind.ROUTE, instance=min(question.routes or (NONE,))),
        }[DecisionKind(question.kind)]
        if question.kind == DecisionKind.TURN:
            starving = self._starving_model(self.instances[question.index])
            if starving != NONE:
                plain = Answer(EventKind.TURN, starving, quota_ns=NS)
        assert self._carry_out(question, plain, 1)

    def _carry_out(self, question: Question, answer: Answer, is_fallback: int) -> bool:
        row = {"is_fallback": is_fallback}
        if answer.kind == EventKind.ROUTE:
            self._note(EventKind.ROUTE, id=question.index, instance=answer.instance, **row)
            self._route(self.requests[question.index], answer)
            self._close_event()
            return True
        inst = self.instances[question.index]
        starving = self._starving_model(inst)
        if answer.kind == EventKind.IDLE:
            if starving != NONE:
                return False
            self._note(EventKind.IDLE, instance=inst.index, **row)
            inst.stage, inst.seen_wakes = Stage.IDLE, self.wakes
        elif answer.kind == EventKind.PREFETCH:
            return self._prefetch(inst, answer.model, row)
        else:
            phases = answer.phases & inst.role
            if not self._takeable(inst, answer.model, phases, answer.tag):
                return False
            if starving != NONE and not self._is_starving(answer.model):
                return False
            row["quota_ns"] = answer.quota_ns
            self._note(EventKind.TURN, instance=inst.index, model=answer.model, **row)
            self._begin_turn(inst, answer)
            self._close_event()
        return True

    def _route(self, r: Request, answer: Answer) -> None:
        if answer.instance == NONE:
            self._end(r, RequestPhase.SHED)
            return
        r.route, r.tag = answer.instance, answer.tag
        self._offer(r, r.phase)
        self._try_join(r)
        self.wakes += 1

    def _prefetch(self, inst: Instance, m: int, row: dict[str, int]) -> bool:
        s = self._oldest_slot(inst, may_be_ahead=True)
        if m != NONE and (s == NONE or m == inst.model):
            return False
        self._note(EventKind.PREFETCH, instance=inst.index, model=m, **row)
        if m == NONE:
            inst.seen_arrivals = self.come
            return True
        inst.wants_prefetch = False
        held = self._slot_of(inst, m)
        if held == NONE:
            self._load(inst, s, m, is_ahead=True)
        else:
            inst.slots[held].is_ahead = True
        return True
