"""Who holds what: requests, memory, weights, and what a turn may take."""

import math

from reference.links import Links
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
    Transfer,
    Where,
)
from runtime.core import (
    NONE,
    NS,
    Dispatch,
    HostKvFull,
    KvPlace,
    ModelSpec,
    Phases,
    PoolSpec,
    PrefetchMode,
    RequestPhase,
    Stage,
)


class Pool(Links):
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
        self.asks_ns: list[int | None] = [None] * len(models)  # when one came, to be asked about
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
            if r in inst.batch:
                inst.batch.remove(r)
            if r in inst.outgoing:
                self._take_out(inst, r)
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
            used += self._taken(inst)
        return used

    def _taken(self, inst: Instance) -> int:
        """What those need that its turn took and that are not on the device yet."""
        coming = [r for r in inst.incoming if r.kv == KvPlace.MOVING_IN]
        return sum(self._claim_bytes(r) for r in coming + inst.prefill)

    def _leaving(self, inst: Instance) -> int:
        return sum(self._kv(r) for r in inst.outgoing if r.kv == KvPlace.MOVING_OUT)

    def _host_used(self, d: int) -> int:
        return sum(self._kv(r) for r in self.requests if r.kv in ON_HOST and r.node == d)

    def _has_host_room(self, inst: Instance, r: Request) -> bool:
        return self._host_used(inst.node) + self._kv(r) <= self.spec.host_kv_bytes

    def _queued(self, inst: Instance) -> list[Request]:
        """What must leave once the host has room."""
        return [r for r in inst.outgoing if r.kv == KvPlace.DEVICE]

    def _move_out(self, inst: Instance, r: Request) -> None:
        """To the host, or dropped where the host has no room."""
        if not self._has_host_room(inst, r):
            self._recompute(r)
            return
        r.phase, r.where = RequestPhase.READY, Where.WAY_OUT
        inst.outgoing.append(r)
        self._start_move_out(inst, r)

    def _start_move_out(self, inst: Instance, r: Request) -> None:
        if not self._is_leaving(inst):
            self._before_out_changes(inst)
        r.kv, r.node = KvPlace.MOVING_OUT, inst.node

    def _send_out(self, inst: Instance, r: Request) -> None:
        """Of no use here: it leaves now, or once the host has room."""
        if not self._queued(inst) and self._has_host_room(inst, r):
            self._move_out(inst, r)
        elif self._kv(r) > self.spec.host_kv_bytes:
            self._recompute(r)
        else:
            r.phase, r.where = RequestPhase.READY, Where.WAY_OUT
            inst.outgoing.append(r)

    def _let_out(self) -> None:
        """What waits for host memory leaves, in order of instances, as far as there is room."""
        for inst in self.instances:
            for r in self._queued(inst):
                if not self._has_host_room(inst, r):
                    break
                self._start_move_out(inst, r)

    def _residents(self, inst: Instance, m: int) -> list[Request]:
        """Requests of m whose KV idles on the device."""
        ready = self._open(m, RequestPhase.READY)
        return [r for r in ready if r.kv == KvPlace.DEVICE and r.instance == inst.index]

    def _evict(self, inst: Instance, m: int, *, is_lost: bool) -> None:
        for r in self._residents(inst, m):
            if is_lost:
                self._recompute(r)
            else:
                self._move_out(inst, r)

    def _leave(self, inst: Instance) -> None:
        """What a switch does to the KV of the model that the instance leaves."""
        if self.spec.kv_stays:
            return
        if not self._kv_waits or not self.spec.kv_survives_switch:
            self._evict(inst, inst.model, is_lost=not self.spec.kv_survives_switch)
            return
        for r in self._residents(inst, inst.model):
            if self._has_host_room(inst, r):
                self._move_out(inst, r)

    @property
    def _kv_waits(self) -> bool:
        """KV without host room stays while no turn needs its room."""
        return self.spec.host_kv_full is HostKvFull.WAIT

    def _load_rate(self, inst: Instance, m: int) -> float:
        """Bytes a second, alone on the port; a miss in the host cache is bound by the disk."""
        is_cached = m in self.nodes[inst.node].cached
        return self._h2d if is_cached else min(self._h2d, self.spec.disk_bytes_s)

    def _slot_of(self, inst: Instance, m: int) -> int:
        return next((s for s, slot in enumerate(inst.slots) if slot.model == m), NONE)

    def _empty_slot(self, inst: Instance) -> int:
        return self._slot_of(inst, NONE)

    def _least_used(self, inst: Instance, *, is_ahead: bool) -> int:
        """Of what is there and does not compute, prefetched or not."""
        found = [
            (slot.used_ns, s)
            for s, slot in enumerate(inst.slots)
            if slot.is_ready and slot.is_ahead == is_ahead and s != inst.active
        ]
        return min(found)[1] if found else NONE

    def _victim(self, inst: Instance) -> int:
        """Where a turn's weights go."""
        for s, slot in enumerate(inst.slots):
            if slot.model == NONE or s == inst.loading:
                return s
        oldest = self._least_used(inst, is_ahead=False)
        return inst.active if oldest == NONE else oldest

    def _prefetch_slot(self, inst: Instance) -> int:
        """Where a prefetch goes; NONE: there is only the active slot."""
        found = (
            self._empty_slot(inst),
            self._least_used(inst, is_ahead=False),
            self._least_used(inst, is_ahead=True),
        )
        return next((s for s in found if s != NONE), NONE)

    def _fits_beside_active(self, inst: Instance, m: int) -> bool:
        held = 0 if inst.model == NONE else self.models[inst.model].weight_bytes
        return held + self.models[m].weight_bytes <= self._weight_budget

    def _make_weight_room(self, inst: Instance, m: int, *, is_ahead: bool) -> None:
        """Used residents go first, for a turn the active one, last what was prefetched."""
        need = self.models[m].weight_bytes
        while need + self._resident_bytes(inst) > self._weight_budget:
            s = self._least_used(inst, is_ahead=False)
            is_active_left = inst.active != NONE and inst.slots[inst.active].model != NONE
            if s == NONE and not is_ahead and is_active_left:
                s = inst.active
            if s == NONE:
                s = self._least_used(inst, is_ahead=True)
            inst.slots[s] = Slot()

    def _resident_bytes(self, inst: Instance) -> int:
        return sum(
            self.models[slot.model].weight_bytes for slot in inst.slots if slot.model != NONE
        )

    def _chunk_rest_ns(self, inst: Instance, share: float) -> int:
        """A load that is dropped keeps the link for the rest of its chunk."""
        load, chunk = inst.load, self.spec.load_chunk_bytes
        if load is None or chunk == 0:
            return 0
        chunk_ns = max(1, math.ceil(chunk / (load.share * self._h2d) * 1e9))
        rest = self._rest_ns(load, self._in_flows(inst)) % chunk_ns
        return math.ceil(rest * (load.share / share)) if load.share > share else rest

    def _switch_left_ns(self, inst: Instance, m: int) -> int:
        """Until a turn of m could begin to work, if it was ordered now and the links stay as they
        are."""
        overhead_ns, flows = round(self.spec.turn_overhead_s * NS), self._in_flows(inst)
        s = self._slot_of(inst, m)
        if s == NONE:
            rate = self._load_rate(inst, m)
            left_ns = self._chunk_rest_ns(inst, rate / self._h2d)
            left_ns += math.ceil(self.models[m].weight_bytes / rate * 1e9)
            load = Transfer(left_ns, rate / self._h2d, NONE)
            flows += self._way_in(inst) is None
        elif s == inst.loading:
            assert inst.load is not None
            load = inst.load
        else:
            return overhead_ns
        return overhead_ns + math.ceil(self._rest_ns(load, flows) * self._slow(load, flows))

    def _load(self, inst: Instance, s: int, m: int, *, is_ahead: bool) -> None:
        """A load under way is dropped with its progress."""
        rate = self._load_rate(inst, m)
        share = rate / self._h2d
        left_ns = self._chunk_rest_ns(inst, share)
        left_ns += math.ceil(self.models[m].weight_bytes / rate * 1e9)
        if inst.loading != NONE:
            inst.slots[inst.loading] = Slot()
        inst.slots[s] = Slot()
        self._make_weight_room(inst, m, is_ahead=is_ahead)
        inst.slots[s] = Slot(m, is_ahead=is_ahead)
        inst.loading = s
        self._begin_load(inst, left_ns, share)

    def _place_weights(self, inst: Instance, m: int) -> None:
        s = self._slot_of(inst, m)
        if s == NONE:
            s = self._victim(inst)
            self._load(inst, s, m, is_ahead=False)
            if self.spec.prefetch is PrefetchMode.RETROACTIVE:
                assert inst.load is not None
                credited_ns = inst.load.left_ns - inst.compute_ns
                inst.load.left_ns = max(LEAST_CREDITED_SWITCH_NS, credited_ns)
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

    def _beside(self, inst: Instance, m: int) -> int:
        """Room for KV of m while that of other models stays; m's own does not count."""
        own = sum(self._kv(r) for r in self._residents(inst, m))
        return self._capacity(m) - self._used(inst) + self._leaving(inst) + own

    def _room(self, inst: Instance, m: int, tag: int) -> int:
        """KV bytes that a turn of m may fill; its first request at least must fit."""
        may_stay = self.spec.kv_stays or self._kv_waits
        if not may_stay and not self._queued(inst):
            return self._capacity(m)
        takeable = self._takeable(inst, m, inst.phases, tag)
        if not takeable or self._need(takeable[0]) <= self._beside(inst, m):
            return self._beside(inst, m)
        for other in range(len(self.models)):
            if other != m and may_stay:
                self._evict(inst, other, is_lost=not self.spec.kv_survives_switch)
        while self._queued(inst) and self._need(takeable[0]) > self._beside(inst, m):
            self._recompute(inst.outgoing.pop())
        return self._beside(inst, m)

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
                        if not self._kv_waits or self._has_host_room(inst, r):
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
