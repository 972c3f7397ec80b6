"""Who holds what: requests, memory, weights, and what a turn may take."""

import math

from reference.nouns import (
    ENDLESS_NS,
    LEAST_CREDITED_SWITCH_NS,
    ON_HOST,
    Cost,
    Instance,
    Node,
    Outside,
    Question,
    Request,
    Row,
    Rule,
    Slo,
    Slot,
    Where,
)
from reference.physics import Physics
from runtime.core import (
    NONE,
    Dispatch,
    KvPlace,
    ModelSpec,
    Phases,
    PoolSpec,
    PrefetchMode,
    RequestPhase,
    Stage,
)


class Pool(Physics):
    """Requests and instances; sums are counted anew at every use."""

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
        super().__init__(spec, models, costs)
        self.slos = slos
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

    def _live(self) -> list[Request]:
        return [r for r in self.requests if r.where != Where.NOBODY]

    def _open(self, m: int, phase: int | None = None) -> list[Request]:
        """Requests of a model that no turn owns, in the order in which turns take them."""
        found = [r for r in self.requests if r.where == Where.OPEN and r.model == m]
        return sorted((r for r in found if phase in (None, r.phase)), key=lambda r: r.order)

    def _routing(self) -> list[Request]:
        found = [r for r in self.requests if r.where == Where.ROUTER]
        return sorted(found, key=lambda r: r.order)

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

    def _evict(self, inst: Instance, m: int, *, is_lost: bool) -> None:
        """KV of m that idles on the device leaves for the host, or is lost."""
        for r in self._open(m, RequestPhase.READY):
            if r.kv == KvPlace.DEVICE and r.instance == inst.index:
                if is_lost:
                    self._recompute(r)
                else:
                    self._move_out(inst, r)

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

    def _cache(self, node: Node, m: int) -> None:
        """Host memory keeps what was used last."""
        size, limit = self.models[m].weight_bytes, self.spec.host_weight_bytes
        node.used_ns[m] = self.now_ns
        if m in node.cached or size > limit:
            return
        while sum(self.models[o].weight_bytes for o in node.cached) + size > limit:
            node.cached.remove(min(node.cached, key=lambda o: (node.used_ns[o], o)))
        node.cached.append(m)

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
