"""A reference emulator: the physics of docs/physics.md in plain Python, one decode step at a time.

Objects, lists and sums counted anew at every use; no tables, no counters kept by adding, no closed
forms. From the project it takes the vocabulary alone (runtime.core).

Step j of a run of decode steps ends round((x*j + y*j*(j-1)/2) * 1e9) ns after the run began. The
scheduler learns of a run's tokens when the run breaks: its batch, quota, memory or step time
changes, or a request waits to join. What a failure or the horizon cuts off was never reported.

Not covered: features, gap histogram, qos, rows beyond 64, placements made before the start, and
streams of requests.
"""

from collections.abc import Iterator
from typing import Any

from reference.decisions import Decisions
from reference.nouns import (
    ENDLESS_NS,
    MOST_EVENTS,
    Answer,
    Instance,
    Question,
    Request,
    Row,
    StuckError,
    Where,
    Work,
)
from reference.physics import step_end_ns
from runtime.core import (
    NONE,
    NS,
    DecisionKind,
    EventKind,
    KvPlace,
    Phases,
    RequestPhase,
    Stage,
)


class Emulator(Decisions):
    """One trace on one pool under one rule. `run`, then read `requests`, `instances`, `journal`
    and `questions`."""

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
            if inst.kv_out is not None:
                end_ns = self._end_ns(inst.kv_out, self._out_flows(inst))
                yield end_ns, EventKind.KV_OUT_DONE, inst.index
            comes_in = self._way_in(inst)
            if comes_in is not None:
                is_kv = inst.kv_in is not None
                kind = EventKind.KV_IN_DONE if is_kv else EventKind.WEIGHTS_READY
                yield self._end_ns(comes_in, self._in_flows(inst)), kind, inst.index
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
        self._let_out()
        for inst in self.instances:
            self._start_group(inst)
        for m in range(len(self.models)):
            if not self._open(m):
                self.waiting_since[m] = None

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
            if r.where != Where.TURN and self.spec.interrupt_slack_s > 0:
                self.asks_ns[r.model] = self.now_ns

    def _moved_out(self, inst: Instance) -> None:
        assert inst.kv_out is not None
        n, inst.kv_out = inst.kv_out.n, None
        self._note(EventKind.KV_OUT_DONE, instance=inst.index, n=n)
        for r in inst.outgoing[:n]:
            self._take_out(inst, r)
            r.kv, r.instance = KvPlace.HOST, NONE
            self._offer(r, RequestPhase.READY)
            self._try_join(r)
        if not self._is_leaving(inst):
            inst.waits_for_room = False
        if inst.stage == Stage.BLOCKED:
            self._settle(inst)
        self.wakes += 1

    def _moved_in(self, inst: Instance) -> None:
        """They join the batch at the next step boundary."""
        assert inst.kv_in is not None
        n = inst.kv_in.n
        self._note(EventKind.KV_IN_DONE, instance=inst.index, n=n)
        for r in [r for r in inst.incoming if r.kv == KvPlace.MOVING_IN][:n]:
            r.kv = KvPlace.DEVICE
        self._end_kv_in(inst)
        if inst.stage == Stage.KV_IN:
            self._welcome(inst)
            self._drop_cancelled(inst)
            self._settle(inst)
        else:
            self._break_run(inst)

    def _welcome(self, inst: Instance) -> None:
        for r in [r for r in inst.incoming if r.kv == KvPlace.DEVICE]:
            inst.incoming.remove(r)
            inst.batch.append(r)

    def _loaded(self, inst: Instance) -> None:
        self._note(EventKind.WEIGHTS_READY, instance=inst.index)
        slot = inst.slots[inst.loading]
        slot.is_ready, slot.ready_ns, slot.used_ns = True, self.now_ns, self.now_ns
        inst.loading = NONE
        self._end_load(inst)
        self._cache(self.nodes[inst.node], slot.model)
        if inst.stage == Stage.COMMANDED and inst.slots[inst.active].is_ready:
            self._begin_work(inst)
        self.wakes += 1

    def _begin_turn(self, inst: Instance, answer: Answer) -> None:
        m, spec = answer.model, self.spec
        inst.is_switching = inst.model != m
        if inst.is_switching and inst.model != NONE:
            self._leave(inst)
        inst.model, inst.stage, inst.wants_prefetch = m, Stage.COMMANDED, False
        inst.phases, inst.tag, inst.joins = answer.phases & inst.role, answer.tag, answer.joins
        inst.quota_ns = answer.quota_ns if spec.token_preempt else ENDLESS_NS
        inst.ordered_ns, inst.decoded_ns, inst.owes_step = self.now_ns, 0, False
        inst.waits_for_room = True  # until it is known that what it takes fits
        room = self._room(inst, m, answer.tag)
        self._take(inst, m, answer.tag, room)
        taken = self._taken(inst)
        held = self._used(inst) - self._leaving(inst) + taken
        if held + self._growth(inst.batch + inst.incoming, 1) > self._capacity(m):
            self._evict(inst, m, is_lost=False)
        inst.waits_for_room = taken > 0 and self._used(inst) + taken > self._capacity(m)
        self.waiting_since[m] = self.now_ns
        self._place_weights(inst, m)
        self._begin_work(inst)

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
        self._choose_stage(inst)
        self._begin_work(inst)

    def _choose_stage(self, inst: Instance) -> None:
        """What the turn does next, at a token boundary; what came to join begins to move in."""
        inst.stage = self._next_stage(inst)
        works = inst.stage in (Stage.PREFILL, Stage.DECODE)
        if inst.stage == Stage.KV_IN or (works and self.spec.kv_in_overlaps):
            if inst.kv_in is None and inst.incoming:
                self._begin_kv_in(inst)

    def _next_stage(self, inst: Instance) -> Stage:
        if inst.waits_for_room:
            return Stage.BLOCKED
        if inst.incoming and not self.spec.kv_in_overlaps:
            return Stage.KV_IN
        may_decode = bool(inst.batch) and inst.decoded_ns < inst.quota_ns
        room = self._capacity(inst.model) - self._used(inst)
        has_room = self._growth(inst.batch, 1) <= room
        if inst.prefill:
            return Stage.DECODE if inst.owes_step and may_decode and has_room else Stage.PREFILL
        if may_decode:
            if has_room:
                return Stage.DECODE
            if self._is_leaving(inst) and not inst.incoming:
                return Stage.BLOCKED
        return Stage.KV_IN if inst.incoming else Stage.ENDING

    def _end_turn(self, inst: Instance) -> None:
        self._note(EventKind.TURN_ENDED, instance=inst.index)
        members, inst.batch = inst.batch, []
        for r in members:
            leaves = self.spec.kv_reload_every_turn
            if leaves and (not self._kv_waits or self._has_host_room(inst, r)):
                self._move_out(inst, r)
            else:
                self._offer(r, RequestPhase.READY)
        inst.slots[inst.active].used_ns = self.now_ns
        inst.stage, inst.work, inst.wants_prefetch = Stage.FREE, None, False
        self.wakes += 1

    def _begin_work(self, inst: Instance) -> None:
        now, stage = self.now_ns, inst.stage
        inst.work = None
        if stage == Stage.COMMANDED and inst.slots[inst.active].is_ready:
            placed_ns = inst.slots[inst.active].ready_ns
            start_ns = max(placed_ns, inst.ordered_ns + round(self.spec.command_s * NS))
            end_ns = start_ns + round(self.spec.turn_overhead_s * NS)
            inst.work = Work(end_ns, EventKind.SWITCHED, now)
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
                self._send_out(inst, r)
        self._welcome(inst)
        self._drop_cancelled(inst)
        self._close_boundary(inst, done)

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
        self._welcome(inst)
        self._drop_cancelled(inst)
        while self._used(inst) > self._capacity(inst.model):  # by growth: the latest to join yield
            self._give_back(inst, (inst.prefill or inst.incoming)[-1])
        self._close_boundary(inst, done)

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

    def _close_boundary(self, inst: Instance, members: list[Request]) -> None:
        """Members that met their end leave one by one; then the turn goes on."""
        self._choose_stage(inst)
        for r in members:
            if r.where != Where.NOBODY and r.reported >= r.output:
                self._let_out()
                self._note(EventKind.FINISHED, id=r.id)
                is_here = r.instance == inst.index
                self._end(r, RequestPhase.DONE)
                if is_here:
                    self._choose_stage(inst)
        self._begin_work(inst)

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
        is_queued = r.where == Where.WAY_OUT and r.kv == KvPlace.DEVICE
        if r.where in (Where.OPEN, Where.ROUTER) or is_queued:
            self._end(r, RequestPhase.CANCELLED)
            return
        r.is_cancelled = True
        if r.where == Where.TURN:
            self._break_run(self.instances[r.instance])

    def _fail(self, inst: Instance) -> None:
        """All that was on the device is lost, with what no report told of."""
        inst.stage = Stage.DOWN
        self._lose_transfers(inst)
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
        inst.slots = self._empty_slots()
        inst.model = inst.active = NONE
        inst.waits_for_room, inst.work = False, None
        inst.compute_ns, inst.wants_prefetch = 0, False

    def _lose_transfers(self, inst: Instance) -> None:
        inst.loading, load, inst.load = NONE, inst.load, None
        if inst.kv_in is not None:
            self._end_kv_in(inst)
        elif load is not None:
            inst.load = load
            self._end_load(inst)
        if self._is_leaving(inst):
            self._before_out_changes(inst)
        inst.kv_out = None

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
        elif answer.kind == EventKind.INTERRUPT:
            self._note(answer.kind, instance=inst.index, model=answer.model, n=answer.stops)
            self._interrupt(inst, answer)
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

    def _interrupt(self, inst: Instance, answer: Answer) -> None:
        """A turn that stops has no quota from now on, and nothing joins it."""
        self.asks_ns[answer.model] = None
        if answer.stops:
            inst.quota_ns, inst.joins = 0, 0
            self._break_run(inst)

    def _prefetch(self, inst: Instance, m: int, row: dict[str, int]) -> bool:
        s, held = self._prefetch_slot(inst), self._slot_of(inst, m)
        if m != NONE and (s == NONE or m == inst.model):
            return False
        if m != NONE and held == NONE and not self._fits_beside_active(inst, m):
            return False
        self._note(EventKind.PREFETCH, instance=inst.index, model=m, **row)
        if m == NONE:
            inst.seen_arrivals = self.come
            return True
        inst.wants_prefetch = False
        if held == NONE:
            self._load(inst, s, m, is_ahead=True)
        else:
            inst.slots[held].is_ahead = True
        return True
