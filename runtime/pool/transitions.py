"""`apply`: one event, one pure transition. Drivers only order events; nothing here reads a clock.

Contract with a driver: after each event it applies the FINISHED events of that boundary, drains
the outbox, retires ended requests with `release`, then asks `next_decision` until none is due.
"""

from enum import IntEnum

import numpy as np

from runtime.compiled import inner, kernel
from runtime.core import (
    NONE,
    Command,
    EventKind,
    KvPlace,
    Phases,
    RequestPhase,
    Stage,
)
from runtime.pool import bits, lists
from runtime.pool.candidates import can_route, has_turn_work, is_starving, starving_model
from runtime.pool.interrupts import can_stop, note_arrival, stop_turn
from runtime.pool.links import advance_kv_in, change_outgoing, end_kv_in, end_load
from runtime.pool.memory import (
    bytes_for,
    capacity_bytes,
    context_tokens,
    drop_host_kv,
    grown_blocks,
    kv_bytes,
    moved_bytes,
    release_kv,
)
from runtime.pool.occupancy import vacate
from runtime.pool.open_work import close_request, end_request, open_request, recount, reopen
from runtime.pool.outbox import emit
from runtime.pool.outgoing import dequeue, let_out, send_out
from runtime.pool.state import Record, State
from runtime.pool.turns import (
    begin_turn,
    end_turn,
    fail_open,
    settle,
    try_join,
    unclaim,
    welcome,
    yield_to_growth,
)
from runtime.pool.weights import (
    clear_slot,
    finish_load,
    fits_beside_active,
    prefetch_slot,
    slot_of,
    start_load,
    weights_in_place,
)
from runtime.slo import account_ends, account_run, count_gaps, curve_ns

RATE_TAU_S = 60.0


class Outcome(IntEnum):
    OK = 0
    TABLE_FULL = 1  # nothing changed: grow the request table and apply the event again
    REFUSED = 2  # nothing changed: the answer was not possible


@kernel
def apply(state: State, event: Record) -> int:
    """Apply one EVENT record; returns an Outcome. `pool.now_ns` never goes back."""
    outcome = _dispatch(state, event)
    if state.pool[0].host_freed != 0 and state.pool[0].queued > 0:
        let_out(state)
    return outcome


@inner
def _dispatch(state: State, event: Record) -> int:
    kind, g = event.kind, event.instance
    pool = state.pool[0]
    pool.now_ns = max(pool.now_ns, event.time_ns)
    if kind == EventKind.STEPS:
        return _steps(state, g, event.n, event.x, event.y, event.goes_on)
    if kind == EventKind.FINISHED:
        return _finished(state, event.request)
    if kind == EventKind.TURN_ENDED:
        end_turn(state, g)
        return Outcome.OK
    if kind == EventKind.TURN:
        return _turn(state, event)
    if kind == EventKind.SWITCHED:
        return _switched(state, g)
    if kind == EventKind.KV_IN_DONE:
        return _kv_in_done(state, g, event.n)
    if kind == EventKind.PREFILLED:
        return _prefilled(state, g, event.n, event.x)
    if kind == EventKind.KV_OUT_DONE:
        return _kv_out_done(state, g, event.n)
    if kind == EventKind.WEIGHTS_READY:
        return _weights_ready(state, g)
    if kind == EventKind.PREFETCH:
        return _prefetch(state, g, event.model)
    if kind == EventKind.ARRIVAL:
        return _arrival(state, event)
    if kind == EventKind.ROUTE:
        return _route(state, event.request, g, event.tag)
    if kind == EventKind.IDLE:
        return _idle(state, g)
    if kind == EventKind.EXPIRE:
        return _expire(state, event.request)
    if kind == EventKind.CANCEL:
        return _cancel(state, event.request)
    if kind == EventKind.INTERRUPT:
        return _interrupt(state, g, event.model, event.n)
    if kind == EventKind.INSTANCE_FAILED:
        return _instance_failed(state, g)
    return _instance_joined(state, g)


@kernel
def release(state: State, r: int) -> None:
    """Recycle the slot of an ended request."""
    req, pool = state.requests[r], state.pool[0]
    req.phase = RequestPhase.FREE
    req.next = pool.free_head
    pool.free_head = r
    pool.in_flight -= 1


@inner
def _arrival(state: State, event: Record) -> int:
    pool, m = state.pool[0], event.model
    if pool.free_head == NONE:
        return Outcome.TABLE_FULL
    r = pool.free_head
    req, model = state.requests[r], state.models[m]
    pool.free_head = req.next
    pool.in_flight += 1
    req.generation += 1
    req.id, req.arrival_ns, req.model = event.id, event.time_ns, m
    req.prompt_tokens, req.priority = event.n, event.tag if pool.priorities != 0 else 0
    req.first_token_ns, req.last_token_ns = NONE, event.time_ns
    req.tag, req.instance, req.route, req.node = NONE, NONE, NONE, NONE
    req.prefilled_tokens = 0
    req.emitted_tokens, req.on_time_tokens, req.stall_ns = 0, 0, 0
    req.qos_ns, req.qos_start_ns, req.qos_covered_ns, req.qos_target_ns = 0, 0, 0, model.ttft_ns
    req.kv, req.is_cancelled = KvPlace.NOWHERE, 0
    gap_s = (event.time_ns - model.rate_at_ns) / 1e9
    model.rate_rps = model.rate_rps * np.exp(-gap_s / RATE_TAU_S) + 1.0 / RATE_TAU_S
    model.rate_at_ns = event.time_ns
    gap_s = (event.time_ns - pool.rate_at_ns) / 1e9
    pool.rate_rps = pool.rate_rps * np.exp(-gap_s / RATE_TAU_S) + 1.0 / RATE_TAU_S
    pool.rate_at_ns = event.time_ns
    pool.wakes += 1
    pool.arrivals += 1
    queued = pool.claimable + lists.count(state, lists.routing_list(state))
    if pool.max_queue > 0 and queued >= pool.max_queue:
        end_request(state, r, RequestPhase.SHED)
    elif bytes_for(state, m, event.n + 1 + pool.lookahead_tokens) > capacity_bytes(state, m):
        end_request(state, r, RequestPhase.FAILED)
    else:
        reopen(state, r, RequestPhase.WAITING)
        if pool.is_push == 0:
            try_join(state, r)
        note_arrival(state, r)
    return Outcome.OK


@inner
def _route(state: State, r: int, g: int, tag: int) -> int:
    """Send r to g; with g NONE the policy has no place for it, and it is shed."""
    if state.requests[r].list != lists.routing_list(state):
        return Outcome.REFUSED
    if g != NONE and not can_route(state, r, g):
        return Outcome.REFUSED
    lists.remove(state, r)
    if g == NONE:
        release_kv(state, r)
        end_request(state, r, RequestPhase.SHED)
        return Outcome.OK
    state.requests[r].route = g
    state.requests[r].tag = tag
    open_request(state, r)
    try_join(state, r)
    state.pool[0].wakes += 1
    return Outcome.OK


@inner
def _idle(state: State, g: int) -> int:
    inst = state.instances[g]
    if inst.stage != Stage.FREE and inst.stage != Stage.IDLE:
        return Outcome.REFUSED
    if starving_model(state, g) != NONE:
        return Outcome.REFUSED
    inst.stage = Stage.IDLE
    inst.seen_wake = state.pool[0].wakes
    return Outcome.OK


@inner
def _turn(state: State, event: Record) -> int:
    g, m = event.instance, event.model
    stage = state.instances[g].stage
    is_free = stage == Stage.FREE or stage == Stage.IDLE
    if not is_free or not has_turn_work(state, g, m, event.phases, event.tag):
        return Outcome.REFUSED
    if not is_starving(state, m) and starving_model(state, g) != NONE:
        return Outcome.REFUSED
    begin_turn(state, g, m, event.phases, event.quota_ns, event.tag, event.joins)
    return Outcome.OK


@inner
def _interrupt(state: State, g: int, m: int, n: int) -> int:
    """Keep the turn on g (n = 0), or end it at its next token boundary as if its quota was over."""
    if state.models[m].asks_ns != state.pool[0].now_ns or (n != 0 and not can_stop(state, g)):
        return Outcome.REFUSED
    state.models[m].asks_ns = NONE
    if n != 0:
        stop_turn(state, g)
    return Outcome.OK


@inner
def _switched(state: State, g: int) -> int:
    inst = state.instances[g]
    if inst.is_switching != 0:
        inst.switches += 1
        inst.switch_ns += state.pool[0].now_ns - inst.turn_start_ns
        inst.compute_ns = 0
    bits.add(state.prefetch_due, g)
    inst.seen_arrivals = NONE
    settle(state, g)
    return Outcome.OK


@inner
def _kv_in_done(state: State, g: int, n: int) -> int:
    """n more of the incoming group are on g; a run under way ends for them at its next step."""
    inst = state.instances[g]
    r = lists.first(state, lists.instance_list(state, g, lists.INCOMING))
    while r >= 0 and state.requests[r].kv == KvPlace.DEVICE:
        r = state.requests[r].next
    for _ in range(n):
        if state.requests[r].node != inst.node:
            state.pool[0].network_bytes += moved_bytes(state, r)
        drop_host_kv(state, r)
        state.requests[r].kv = KvPlace.DEVICE
        r = state.requests[r].next
    advance_kv_in(state, g, n)
    if inst.stage == Stage.KV_IN:
        welcome(state, g)
        _drop_cancelled(state, g)
        settle(state, g)
    elif inst.stage == Stage.DECODE:
        emit(state, Command.JOIN, g)
    return Outcome.OK


@inner
def _prefilled(state: State, g: int, n: int, seconds: float) -> int:
    inst = state.instances[g]
    duration = curve_ns(seconds, 0.0, 1)
    begin = state.pool[0].now_ns - duration
    inst.busy_ns += duration
    inst.compute_ns += duration
    queue = lists.instance_list(state, g, lists.PREFILL)
    chunk = state.pool[0].prefill_chunk_tokens
    inst.owes_step = 1 if chunk > 0 else 0
    if n == 0:
        state.requests[lists.first(state, queue)].prefilled_tokens += chunk
    for _ in range(n):
        r = lists.first(state, queue)
        req, model = state.requests[r], state.models[inst.model]
        if req.emitted_tokens > 0:
            gap_s = (state.pool[0].now_ns - req.last_token_ns) / 1e9
            count_gaps(state.gaps, gap_s, 0.0, 1, 1)
        account_run(state.requests, r, model.ttft_ns, model.tbt_ns, begin, seconds, 0.0, 1)
        req.kv, req.prefilled_tokens = KvPlace.DEVICE, 0
        lists.remove(state, r)
        if inst.turn_phases & Phases.DECODE:
            lists.append(state, lists.instance_list(state, g, lists.BATCH), r)
            inst.batch_context_tokens += context_tokens(state, r)
        elif inst.role & Phases.DECODE:
            reopen(state, r, RequestPhase.READY)
        else:
            req.route = NONE
            send_out(state, g, r)
    welcome(state, g)
    _drop_cancelled(state, g)
    settle(state, g)
    return Outcome.OK


@inner
def _steps(state: State, g: int, k: int, x: float, y: float, goes_on: int) -> int:
    """k steps of the batch; where the run `goes_on`, only tokens and memory are counted: what else
    has changed takes effect at the boundary that ends it."""
    inst, requests = state.instances[g], state.requests
    model = state.models[inst.model]
    duration, step_ns = curve_ns(x, y, k), curve_ns(x, y, 1)
    ends_ns = step_ns, curve_ns(x, y, max(1, k - 1)), duration
    begin = state.pool[0].now_ns - duration
    inst.busy_ns += duration
    inst.compute_ns += duration
    inst.decoded_ns += duration
    inst.owes_step = 0
    batch = lists.instance_list(state, g, lists.BATCH)
    size, went_on, grown = lists.count(state, batch), 0, 0
    r = lists.first(state, batch)
    while r >= 0:
        grown += grown_blocks(state, r, k)
        if requests[r].last_token_ns == begin:
            went_on += 1
        else:
            gap_s = (begin + step_ns - requests[r].last_token_ns) / 1e9
            count_gaps(state.gaps, gap_s, 0.0, 1, 1)
        account_ends(requests, r, model.ttft_ns, model.tbt_ns, begin, x, y, k, ends_ns)
        r = requests[r].next
    inst.kv_used_bytes += grown * model.block_bytes
    if went_on > 0:
        count_gaps(state.gaps, step_ns / 1e9, 0.0, 1, went_on)
    if k > 1:
        count_gaps(state.gaps, x + y, y, k - 1, size)
    inst.batch_context_tokens += k * size
    if goes_on != 0:
        inst.stage_ns = state.pool[0].now_ns
        yield_to_growth(state, g)
        return Outcome.OK
    welcome(state, g)
    _drop_cancelled(state, g)
    yield_to_growth(state, g)
    settle(state, g)
    return Outcome.OK


@inner
def _finished(state: State, r: int) -> int:
    """The engine met the end of r at the boundary just reported; it may have been cancelled."""
    if state.requests[r].list == NONE:
        return Outcome.REFUSED
    g = state.requests[r].instance
    _take_from_instance(state, max(0, g), r)
    end_request(state, r, RequestPhase.DONE)
    if g >= 0 and state.instances[g].stage > Stage.COMMANDED:
        settle(state, g)
    return Outcome.OK


@inner
def _take_from_instance(state: State, g: int, r: int) -> None:
    """Remove r from g's batch or outgoing list, or from the open lists; its KV is released."""
    lst = state.requests[r].list
    if lst == lists.instance_list(state, g, lists.BATCH):
        state.instances[g].batch_context_tokens -= context_tokens(state, r)
        lists.remove(state, r)
    elif lst == lists.instance_list(state, g, lists.OUTGOING) or lst == lists.routing_list(state):
        if lst != lists.routing_list(state) and state.requests[r].kv == KvPlace.DEVICE:
            dequeue(state, g, r)
        lists.remove(state, r)
    else:
        close_request(state, r)
        recount(state, state.requests[r].model)
    release_kv(state, r)


@inner
def _drop_cancelled(state: State, g: int) -> None:
    """Let go of members whose cancellation came while the turn computed."""
    if state.pool[0].cancelling == 0:
        return
    r = lists.first(state, lists.instance_list(state, g, lists.BATCH))
    while r >= 0:
        following = state.requests[r].next
        if state.requests[r].is_cancelled != 0:
            _take_from_instance(state, g, r)
            end_request(state, r, RequestPhase.CANCELLED)
        r = following
    r = lists.first(state, lists.instance_list(state, g, lists.PREFILL))
    while r >= 0:
        following = state.requests[r].next
        if state.requests[r].is_cancelled != 0:
            unclaim(state, g, r)
        r = following


@inner
def _kv_out_done(state: State, g: int, n: int) -> int:
    inst = state.instances[g]
    outgoing = lists.instance_list(state, g, lists.OUTGOING)
    for _ in range(n):
        r = lists.first(state, outgoing)
        req = state.requests[r]
        lists.remove(state, r)
        inst.kv_used_bytes -= kv_bytes(state, r)
        change_outgoing(state, g, -kv_bytes(state, r))
        req.kv = KvPlace.HOST
        req.instance = NONE
        reopen(state, r, RequestPhase.READY)
        if req.list != NONE and req.list != lists.routing_list(state):
            try_join(state, r)
    if inst.kv_promised_bytes > 0 and inst.outgoing_bytes == 0:
        inst.kv_used_bytes += inst.kv_promised_bytes
        inst.kv_promised_bytes = 0
    if inst.stage == Stage.BLOCKED:
        settle(state, g)
        if inst.stage != Stage.BLOCKED:
            emit(state, Command.START, g)
    state.pool[0].wakes += 1
    return Outcome.OK


@inner
def _weights_ready(state: State, g: int) -> int:
    finish_load(state, g)
    inst = state.instances[g]
    if inst.stage == Stage.COMMANDED and weights_in_place(state, g):
        emit(state, Command.START, g)
    state.pool[0].wakes += 1
    return Outcome.OK


@inner
def _prefetch(state: State, g: int, m: int) -> int:
    inst = state.instances[g]
    if m == NONE:
        inst.seen_arrivals = state.pool[0].arrivals
        return Outcome.OK
    s = prefetch_slot(state, g)
    if not bits.contains(state.prefetch_due, g) or s == NONE or m == inst.model:
        return Outcome.REFUSED
    held = slot_of(state, g, m)
    if held == NONE and not fits_beside_active(state, g, m):
        return Outcome.REFUSED
    bits.discard(state.prefetch_due, g)
    if held == NONE:
        start_load(state, g, s, m, 1)
    elif state.slots[g, held].is_ahead == 0:
        state.slots[g, held].is_ahead = 1
        state.models[m].prefetched_on += 1
    return Outcome.OK


@inner
def _expire(state: State, r: int) -> int:
    req = state.requests[r]
    if req.emitted_tokens > 0 or req.phase != RequestPhase.WAITING:
        return Outcome.REFUSED
    if req.list == lists.routing_list(state):
        lists.remove(state, r)
        end_request(state, r, RequestPhase.FAILED)
        return Outcome.OK
    fail_open(state, r)
    recount(state, req.model)
    return Outcome.OK


@inner
def _cancel(state: State, r: int) -> int:
    """An unowned request ends at once; one that a turn or a move holds ends at its boundary."""
    req = state.requests[r]
    if req.is_cancelled != 0:
        return Outcome.REFUSED
    if req.phase != RequestPhase.RUNNING and req.kv != KvPlace.MOVING_OUT:
        if req.list == NONE:
            return Outcome.REFUSED
        _take_from_instance(state, max(0, req.instance), r)
        end_request(state, r, RequestPhase.CANCELLED)
        return Outcome.OK
    req.is_cancelled = 1
    state.pool[0].cancelling += 1
    if req.phase == RequestPhase.RUNNING:
        emit(state, Command.JOIN, req.instance)
    return Outcome.OK


@inner
def _instance_failed(state: State, g: int) -> int:
    """All KV on g is lost: its requests wait for a prefill of prompt and emitted tokens."""
    inst = state.instances[g]
    if inst.stage == Stage.DOWN:
        return Outcome.REFUSED
    if inst.stage >= Stage.COMMANDED:
        vacate(state, g)
    for r in range(state.requests.shape[0]):
        req = state.requests[r]
        if req.list < 0:
            continue
        is_held = req.instance == g and req.phase != RequestPhase.WAITING
        if not is_held and req.route != g:
            continue
        in_turn = is_held and req.phase == RequestPhase.RUNNING
        is_outgoing = req.list == lists.instance_list(state, g, lists.OUTGOING)
        is_moving = req.kv == KvPlace.MOVING_OUT
        if in_turn or is_outgoing or is_moving or req.list == lists.routing_list(state):
            if is_outgoing and req.kv == KvPlace.DEVICE:
                dequeue(state, g, r)
            lists.remove(state, r)
        else:
            close_request(state, r)
        if is_held:
            _lose_kv(state, r)
        if req.route == g:
            req.route = NONE
        on_host = req.kv == KvPlace.HOST
        reopen(state, r, RequestPhase.READY if on_host else RequestPhase.WAITING)
    for s in range(state.slots.shape[1]):
        clear_slot(state, g, s)
    _lose_transfers(state, g)
    inst.epoch += 1
    inst.stage, inst.model = Stage.DOWN, NONE
    inst.active_slot = NONE
    inst.kv_used_bytes, inst.kv_promised_bytes = 0, 0
    inst.batch_context_tokens, inst.compute_ns = 0, 0
    bits.discard(state.vacant, g)
    for m in range(state.models.shape[0]):
        recount(state, m)
    state.pool[0].wakes += 1
    return Outcome.OK


@inner
def _lose_transfers(state: State, g: int) -> None:
    inst = state.instances[g]
    inst.loading_slot = NONE
    if inst.moving_in > 0:
        end_kv_in(state, g)
    end_load(state, g)
    change_outgoing(state, g, -inst.outgoing_bytes)


@inner
def _lose_kv(state: State, r: int) -> None:
    """The device copy is gone; a host copy survives only while it was the source."""
    req = state.requests[r]
    if req.kv == KvPlace.MOVING_OUT:
        drop_host_kv(state, r)
    req.kv = KvPlace.HOST if req.kv == KvPlace.MOVING_IN else KvPlace.NOWHERE
    req.prefilled_tokens = 0
    req.instance = NONE


@inner
def _instance_joined(state: State, g: int) -> int:
    if state.instances[g].stage != Stage.DOWN:
        return Outcome.REFUSED
    state.instances[g].stage = Stage.FREE
    bits.add(state.vacant, g)
    state.pool[0].wakes += 1
    return Outcome.OK
