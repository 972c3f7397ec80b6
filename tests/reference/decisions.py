"""Which decision is due, and what may be chosen."""

from reference.nouns import STARVING, Candidate, Instance, Question, Request, Where
from reference.pool import Pool
from runtime.core import (
    NONE,
    NS,
    DecisionKind,
    Dispatch,
    KvPlace,
    Phases,
    PrefetchMode,
    RequestPhase,
    Stage,
)


class Decisions(Pool):
    """Routes come first, then turns, then interrupts, then prefetches, each by lowest index."""

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
        if not is_kept and not self._wants_prefetch(m):
            return False
        return s != NONE or self._fits_beside_active(inst, m)

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
        return any(i.is_in_turn or self._is_leaving(i) or i.loading != NONE for i in self.instances)

    def _question(self) -> Question | None:
        """Routes first, then turns, then interrupts, then prefetches."""
        for r in self._routing():
            if self._routes(r):
                return self._ask(DecisionKind.ROUTE, r.id, [], self._routes(r))
        if not any(r.where == Where.OPEN for r in self.requests):
            return None
        for inst in self.instances:
            if inst.stage in (Stage.FREE, Stage.IDLE) and self._asks_turn(inst):
                return self._ask(DecisionKind.TURN, inst.index, self._turn_candidates(inst))
        for m in self._newcomers():
            inst = self._turn_to_stop(m)
            if inst is not None:
                return self._ask(DecisionKind.INTERRUPT, inst.index, [m])
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

    def _newcomers(self) -> list[int]:
        """Models of which a request came just now, that no turn runs; most urgent first."""
        running = {inst.model for inst in self.instances if inst.is_in_turn}
        came = [m for m, asks_ns in enumerate(self.asks_ns) if asks_ns == self.now_ns]
        found = [m for m in came if self._open(m) and m not in running]
        return sorted(found, key=lambda m: (self._urgent_ns(m), m))

    def _turn_to_stop(self, m: int) -> Instance | None:
        """Whose turn an arrival of m may interrupt: the one that could begin soonest once it stops
        (ties: the longest turn, the lowest index), if the arrival is urgent."""
        able = [inst for inst in self.instances if self._can_prefill(inst, m)]
        if not able or any(not inst.is_in_turn for inst in able):
            return None
        waits_ns = [self._quota_left_ns(i) + self._switch_left_ns(i, m) for i in able]
        if self.slos[m].ttft_ns - min(waits_ns) >= round(self.spec.interrupt_slack_s * NS):
            return None
        keys = [(self._switch_left_ns(i, m), i.ordered_ns, i.index) for i in able if self._ends(i)]
        if not keys or min(keys)[0] >= min(waits_ns):
            return None
        return self.instances[min(keys)[2]]

    def _can_prefill(self, inst: Instance, m: int) -> bool:
        is_up = inst.stage != Stage.DOWN
        return is_up and bool(self._takeable(inst, m, inst.role & Phases.PREFILL))

    def _quota_left_ns(self, inst: Instance) -> int:
        is_run = inst.work is not None and inst.stage == Stage.DECODE
        run_ns = self.now_ns - inst.work.began_ns if is_run else 0
        return max(0, inst.quota_ns - inst.decoded_ns - run_ns)

    def _ends(self, inst: Instance) -> bool:
        """Would its turn end at the next step, without a quota, and not with it?"""
        is_decoding = inst.stage == Stage.DECODE and not inst.prefill and not inst.incoming
        return self.spec.token_preempt and is_decoding and self._quota_left_ns(inst) > 0

    def _asks_prefetch(self, inst: Instance) -> bool:
        """Without a candidate it waits for the next arrival."""
        if inst.loading != NONE or inst.seen_arrivals == self.come:
            return False
        has_slot = self._prefetch_slot(inst) != NONE
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
