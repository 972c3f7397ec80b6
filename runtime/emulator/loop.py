"""Virtual time over the core: one loop owns the clock.

The next event is the smallest (time, kind, index); kinds are ordered as in EventKind, so ties are
defined. All events of an instant are applied before a decision is asked, so waiting takes time.
"""

from enum import IntEnum

from runtime.compiled import inner, kernel
from runtime.core import (
    FOREVER_NS,
    NONE,
    Command,
    DecisionKind,
    EventKind,
    RequestPhase,
    Stage,
)
from runtime.emulator.agenda import schedule
from runtime.emulator.physics import cut_run, plan_stage
from runtime.emulator.tables import Sim
from runtime.emulator.transport import lose_transfers, plan_in, plan_out, replan_in, replan_out
from runtime.pool import lists
from runtime.pool.answers import is_answer
from runtime.pool.candidates import next_decision, pose
from runtime.pool.state import State
from runtime.pool.transitions import Outcome, apply, release
from runtime.slo import qos_of

BOUNDARY_ROWS = 4  # journal rows of one boundary and one answer, FINISHED apart


class Signal(IntEnum):
    """Why `advance` returned."""

    DECISION = 0  # control.decision_kind / decision_index say which
    END = 1  # nothing will ever happen again, or the horizon is reached
    SLOTS_FULL = 2
    JOURNAL_FULL = 3
    STUCK = 4  # requests in flight, nothing pending: a policy that never serves them
    ARRIVALS_OUT = 5  # the next chunk of a stream is due


@kernel
def advance(sim: Sim) -> int:
    """Run until a decision is due; returns a Signal. Call again after the answer is applied."""
    state, control = sim.state, sim.control[0]
    while True:
        room = sim.journal.shape[0] - control.journal_rows - state.pool[0].in_flight
        if control.is_journaling != 0 and room < BOUNDARY_ROWS:
            return Signal.JOURNAL_FULL
        if control.cursor == sim.arrivals.time_ns.shape[0] and control.has_more != 0:
            return Signal.ARRIVALS_OUT
        time_ns, kind, index = next_timer(sim)
        if time_ns > state.pool[0].now_ns:
            decision, which = next_decision(state)
            if decision != DecisionKind.NONE:
                control.decision_kind, control.decision_index = decision, which
                control.decisions += 1
                pose(state, decision, which, sim.event[0])
                return Signal.DECISION
            if time_ns == FOREVER_NS:
                is_over = state.pool[0].in_flight == 0 or not has_live_instance(state)
                return Signal.END if is_over else Signal.STUCK
            if time_ns > control.horizon_ns:
                return Signal.END
        if kind == EventKind.ARRIVAL and state.pool[0].free_head == NONE:
            return Signal.SLOTS_FULL
        _fire(sim, time_ns, kind, index)


@inner
def next_timer(sim: Sim) -> tuple[int, int, int]:
    """The earliest pending event as (time, kind, index); ties by kind, then index."""
    index = sim.agenda[1]
    best, kind = sim.timers[index].due_ns, sim.timers[index].due_kind
    cursor = sim.control[0].cursor
    if cursor < sim.arrivals.time_ns.shape[0]:
        due = sim.arrivals.time_ns[cursor]
        if due < best or (due == best and kind > EventKind.ARRIVAL):
            best, kind, index = due, EventKind.ARRIVAL.value, cursor
    limit = sim.control[0].ttft_timeout_ns
    if limit > 0:
        oldest = _oldest_waiting(sim)
        if oldest >= 0:  # its limit may have passed while a turn owned it
            due = max(sim.state.pool[0].now_ns, sim.arrivals.time_ns[oldest] + limit)
            if due < best:
                best, kind, index = due, EventKind.EXPIRE.value, oldest
    row = sim.control[0].scripted
    if row < sim.script.shape[0]:
        has_work = cursor < sim.arrivals.time_ns.shape[0] or sim.state.pool[0].in_flight > 0
        due, due_kind = sim.script[row].time_ns, sim.script[row].kind
        if has_work and (due < best or (due == best and kind > due_kind)):
            best, kind, index = due, due_kind, row
    return best, kind, index


@inner
def has_live_instance(state: State) -> bool:
    down = 0
    for g in range(state.instances.shape[0]):
        down += 1 if state.instances[g].stage == Stage.DOWN else 0
    return bool(down < state.instances.shape[0])


@inner
def _oldest_waiting(sim: Sim) -> int:
    """The oldest admitted request that still waits, unowned, for its first token; or NONE."""
    control = sim.control[0]
    while control.expired < control.cursor:
        r = sim.slot[control.expired]
        req = sim.state.requests[r]
        if req.id == control.base + control.expired and req.phase == RequestPhase.WAITING:
            if req.emitted_tokens == 0:
                return control.expired
        if req.id == control.base + control.expired and req.phase == RequestPhase.RUNNING:
            if req.emitted_tokens == 0:
                return _later_waiting(sim)
        control.expired += 1
    return NONE


@inner
def _later_waiting(sim: Sim) -> int:
    """Behind a request whose prefill is under way: the next that waits unowned, or NONE."""
    for i in range(sim.control[0].expired, sim.control[0].cursor):
        req = sim.state.requests[sim.slot[i]]
        if (
            req.id == sim.control[0].base + i
            and req.phase == RequestPhase.WAITING
            and req.emitted_tokens == 0
        ):
            return i
    return NONE


@inner
def _fire(sim: Sim, time_ns: int, kind: int, index: int) -> None:
    """Make the event of a timer and apply it with all that follows at its boundary."""
    event, timers = sim.event[0], sim.timers
    event.time_ns, event.kind = time_ns, kind
    event.id, event.tag, event.n, event.quota_ns = NONE, NONE, 0, 0
    event.instance, event.model, event.request = NONE, NONE, NONE
    event.x, event.y, event.phases, event.joins, event.is_fallback = 0.0, 0.0, 0, 0, 0
    event.goes_on = 0
    if kind == EventKind.ARRIVAL:
        _arrive(sim, index)
        return
    if kind == EventKind.EXPIRE:
        event.request, event.id = sim.slot[index], sim.control[0].base + index
        commit(sim)
        return
    if kind >= EventKind.CANCEL:
        _fire_script(sim, index)
        return
    timer = timers[index]
    event.instance = index
    if kind == EventKind.KV_OUT_DONE:
        event.n, timer.out_ns = timer.out_n, FOREVER_NS
        schedule(timers, sim.agenda, index)
        commit(sim)
        plan_out(sim, index)
        return
    if kind == EventKind.WEIGHTS_READY:
        timer.in_ns = FOREVER_NS
        schedule(timers, sim.agenda, index)
        commit(sim)
        return
    if kind == EventKind.KV_IN_DONE:
        _fire_kv_in(sim, index)
        return
    event.n, timer.compute_ns = timer.n, FOREVER_NS
    if kind == EventKind.STEPS or kind == EventKind.PREFILLED:
        event.x = timer.x
        event.y = timer.y if kind == EventKind.STEPS else 0.0
        _fire_tokens(sim, index, kind, timer.n)
    else:
        commit(sim)
    plan_stage(sim, index)
    plan_in(sim, index)


@inner
def _fire_kv_in(sim: Sim, g: int) -> None:
    """The incoming group is there; the stage goes on unless it waited for it."""
    timer, inst = sim.timers[g], sim.state.instances[g]
    was_waiting = inst.stage == Stage.KV_IN
    sim.event[0].n = inst.moving_in
    timer.in_ns, timer.in_since_ns = FOREVER_NS, NONE
    commit(sim)
    if was_waiting:
        plan_stage(sim, g)
    plan_in(sim, g)


@inner
def _arrive(sim: Sim, index: int) -> None:
    event, arrivals, control = sim.event[0], sim.arrivals, sim.control[0]
    event.id, event.model = control.base + index, arrivals.model[index]
    event.n, event.tag = arrivals.prompt_tokens[index], arrivals.priority[index]
    sim.slot[index] = sim.state.pool[0].free_head
    control.cursor += 1
    commit(sim)


@inner
def _fire_script(sim: Sim, row: int) -> None:
    """An event from outside, if it still finds what it is about."""
    event, due, control = sim.event[0], sim.script[row], sim.control[0]
    control.scripted += 1
    if due.kind == EventKind.CANCEL:
        if due.id < control.cursor:
            r = sim.slot[due.id]
            req = sim.state.requests[r]
            if req.id == due.id and req.list != NONE and req.is_cancelled == 0:
                event.id, event.request = due.id, r
                commit(sim)
        return
    g = due.instance
    is_down = sim.state.instances[g].stage == Stage.DOWN
    if is_down != (due.kind == EventKind.INSTANCE_JOINED):
        return
    event.instance = g
    sim.timers[g].compute_ns = FOREVER_NS
    lose_transfers(sim, g)
    commit(sim)


@inner
def _fire_tokens(sim: Sim, g: int, kind: int, n: int) -> None:
    """Apply STEPS or PREFILLED, then FINISHED for each request that met its end there."""
    if kind == EventKind.STEPS and n < sim.timers[g].end_n:
        commit(sim)
        return
    state, event = sim.state, sim.event[0]
    which = lists.PREFILL if kind == EventKind.PREFILLED else lists.BATCH
    r = lists.first(state, lists.instance_list(state, g, which))
    touched = 0
    while r >= 0 and (kind == EventKind.STEPS or touched < n):
        sim.touched[touched] = r
        touched += 1
        r = state.requests[r].next
    record(sim)
    event.kind, event.n, event.x, event.y = EventKind.FINISHED, 0, 0.0, 0.0
    for i in range(touched):
        r = sim.touched[i]
        req = state.requests[r]
        is_live = req.list != NONE  # not cancelled at this boundary
        if (
            is_live
            and req.emitted_tokens >= sim.arrivals.output_tokens[req.id - sim.control[0].base]
        ):
            event.request, event.id = r, req.id
            record(sim)
    drain(sim)


@inner
def record(sim: Sim) -> int:
    """Apply the event in `sim.event` and journal it; a refused one leaves no trace."""
    outcome = apply(sim.state, sim.event[0])
    if outcome != Outcome.OK:
        sim.control[0].refused += 1
        return outcome
    control = sim.control[0]
    control.events += 1
    if control.is_journaling != 0:
        sim.journal[control.journal_rows] = sim.event[0]
        control.journal_rows += 1
    return outcome


@inner
def commit(sim: Sim) -> int:
    """`record`, then carry out the commands that followed."""
    outcome = record(sim)
    if outcome == Outcome.OK:
        drain(sim)
    return outcome


@inner
def drain(sim: Sim) -> None:
    state = sim.state
    for i in range(state.pool[0].commands):
        command, index = state.outbox[i].kind, state.outbox[i].instance
        if command == Command.START:
            plan_stage(sim, index)
            plan_in(sim, index)
        elif command == Command.JOIN:
            cut_run(sim, index)
        elif command == Command.LOAD:
            plan_in(sim, index)
        elif command == Command.MOVE_OUT:
            plan_out(sim, index)
        elif command == Command.SHARE_IN:
            replan_in(sim, index)
        elif command == Command.SHARE_OUT:
            replan_out(sim, index)
        else:
            retire(sim, index)
    state.pool[0].commands = 0


@inner
def retire(sim: Sim, r: int) -> None:
    """Keep the record of an ended request and recycle its slot."""
    keep(sim, r)
    release(sim.state, r)


@inner
def keep(sim: Sim, r: int) -> None:
    req = sim.state.requests[r]
    result = sim.results[req.id - sim.control[0].base]
    result.first_token_ns, result.last_token_ns = req.first_token_ns, req.last_token_ns
    result.stall_ns, result.phase = req.stall_ns, req.phase
    result.emitted_tokens, result.on_time_tokens = req.emitted_tokens, req.on_time_tokens
    result.qos = qos_of(sim.state.requests, r, req.phase == RequestPhase.DONE)
    sim.control[0].missed_tokens += result.due_tokens - result.on_time_tokens


@kernel
def missed_deadlines(sim: Sim) -> int:
    """Token deadlines missed up to now, over ended and live requests.

    At the end of a run this is exactly tokens due minus tokens on time. A request that ended
    without all its tokens has them counted at its end.
    """
    state, total = sim.state, sim.control[0].missed_tokens
    now, live, slot = state.pool[0].now_ns, state.pool[0].in_flight, 0
    while live > 0:  # they lie in the lowest slots that were free
        req = state.requests[slot]
        slot += 1
        if req.phase == RequestPhase.FREE:
            continue
        live -= 1
        total += req.emitted_tokens - req.on_time_tokens
        model = state.models[req.model]
        overdue_ns = now - req.arrival_ns - model.ttft_ns
        if overdue_ns > 0:
            due = min(
                sim.arrivals.output_tokens[req.id - sim.control[0].base],
                (overdue_ns - 1) // model.tbt_ns + 1,
            )
            total += max(0, due - req.emitted_tokens)
    return total


@kernel
def keep_unfinished(sim: Sim) -> None:
    """Record what the requests still in flight got so far."""
    for r in range(sim.state.requests.shape[0]):
        if sim.state.requests[r].phase != RequestPhase.FREE:
            keep(sim, r)


@kernel
def answer(sim: Sim) -> int:
    """Apply the policy's answer in `sim.event` (TURN, IDLE, PREFETCH, ROUTE, INTERRUPT) now.

    What is refused is replaced by the plainest answer, marked as a fallback, so that no answer can
    stop the clock: IDLE, no prefetch, the first able instance, the turn kept. Refusals are counted.
    """
    event, state, control = sim.event[0], sim.state, sim.control[0]
    event.time_ns = state.pool[0].now_ns
    outcome = Outcome.REFUSED.value
    if is_answer(state, control.decision_kind, control.decision_index, event):
        outcome = commit(sim)
    else:
        control.refused += 1
    if outcome != Outcome.OK:
        pose(state, control.decision_kind, control.decision_index, event)
        event.is_fallback = 1
        commit(sim)
    return outcome
