"""The life of a turn: who takes part, what comes next, and what is left at its end.

DECIDE -> COMMANDED -> (BLOCKED) -> KV_IN -> PREFILL -> DECODE -> ENDING -> FREE. The core fixes a
turn's contents; the engine executes stage after stage and reports each boundary.
"""

from runtime.compiled import inner, kernel
from runtime.core import (
    FOREVER_NS,
    NONE,
    Command,
    KvPlace,
    Phases,
    RequestPhase,
    Stage,
)
from runtime.pool import bits, lists
from runtime.pool.links import begin_kv_in
from runtime.pool.memory import (
    admission_bytes,
    can_step,
    capacity_bytes,
    context_tokens,
    has_host_room,
    kv_bytes,
    next_step_bytes,
    prefill_bytes,
    release_kv,
)
from runtime.pool.occupancy import occupy, vacate
from runtime.pool.open_work import close_request, end_request, has_open_work, recount, reopen
from runtime.pool.outbox import emit
from runtime.pool.outgoing import (
    dequeue,
    evict_residents,
    leave_residents,
    move_out,
    recompute,
)
from runtime.pool.state import State
from runtime.pool.weights import place_weights


@inner
def is_claimable(state: State, g: int, r: int) -> bool:
    """May a turn on g take the unowned request r (role and tag apart)?"""
    req, pool = state.requests[r], state.pool[0]
    if pool.is_push != 0 and req.route != g:
        return False
    if req.kv == KvPlace.DEVICE:
        return req.instance == g
    if req.kv == KvPlace.HOST:
        return req.node == state.instances[g].node or pool.network_bytes_s > 0.0
    return True


@inner
def matches(state: State, r: int, tag: int) -> bool:
    return tag == NONE or state.requests[r].tag == tag


@inner
def claim(state: State, g: int, r: int) -> int:
    """Give r to the turn on g; returns the device bytes it newly needs."""
    req = state.requests[r]
    close_request(state, r)
    req.instance = g
    if req.phase == RequestPhase.WAITING:
        need = prefill_bytes(state, r)
        lists.append(state, lists.instance_list(state, g, lists.PREFILL), r)
    elif req.kv == KvPlace.DEVICE:
        need = 0
        lists.append(state, lists.instance_list(state, g, lists.BATCH), r)
        state.instances[g].batch_context_tokens += context_tokens(state, r)
    else:
        need = kv_bytes(state, r)
        req.kv = KvPlace.MOVING_IN
        lists.append(state, lists.instance_list(state, g, lists.INCOMING), r)
    req.phase = RequestPhase.RUNNING
    return need


@inner
def unclaim(state: State, g: int, r: int) -> None:
    """Take r, still without device KV of its own, out of the turn on g and offer it again."""
    req, inst = state.requests[r], state.instances[g]
    lists.remove(state, r)
    req.instance = NONE
    if req.kv == KvPlace.MOVING_IN:
        inst.kv_used_bytes -= kv_bytes(state, r)
        req.kv = KvPlace.HOST
        reopen(state, r, RequestPhase.READY)
    else:
        inst.kv_used_bytes -= prefill_bytes(state, r)
        req.prefilled_tokens = 0
        reopen(state, r, RequestPhase.WAITING)
    state.pool[0].wakes += 1


@inner
def yield_to_growth(state: State, g: int) -> None:
    """Requests that joined during a run whose growth took their room go back, latest first."""
    inst = state.instances[g]
    prefill = lists.instance_list(state, g, lists.PREFILL)
    incoming = lists.instance_list(state, g, lists.INCOMING)
    while inst.kv_used_bytes > capacity_bytes(state, inst.model):
        r = state.lists[prefill].tail
        unclaim(state, g, r if r != NONE else state.lists[incoming].tail)


@inner
def first_claimable(state: State, g: int, lst: int, tag: int) -> int:
    """The oldest request of an open list that a turn on g may take, or NONE."""
    r = lists.first(state, lst)
    while r >= 0 and not (is_claimable(state, g, r) and matches(state, r, tag)):
        r = state.requests[r].next
    return r


@inner
def bytes_beside(state: State, g: int, m: int) -> int:
    """Room for KV of m on g while the KV of other models stays; m's own does not count."""
    inst = state.instances[g]
    room = capacity_bytes(state, m) - inst.kv_used_bytes + inst.outgoing_bytes
    r = lists.first(state, lists.ready_list(state, m))
    while r >= 0:
        if state.requests[r].kv == KvPlace.DEVICE and state.requests[r].instance == g:
            room += kv_bytes(state, r)
        r = state.requests[r].next
    return room


@inner
def make_room(state: State, g: int, m: int, phases: int, tag: int) -> int:
    """KV bytes that a turn of m may fill. What stays of other models leaves only where the first
    request does not fit beside it, so that every turn has something to do."""
    pool, inst = state.pool[0], state.instances[g]
    if pool.kv_stays == 0 and pool.host_kv_waits == 0 and inst.queued_bytes == 0:
        return capacity_bytes(state, m)
    room, r = bytes_beside(state, g, m), NONE
    if phases & Phases.DECODE:
        r = first_claimable(state, g, lists.ready_list(state, m), tag)
    if r == NONE and phases & Phases.PREFILL:
        r = first_claimable(state, g, lists.waiting_list(state, m), tag)
    if r == NONE or admission_bytes(state, r) <= room:
        return room
    if pool.kv_stays != 0 or pool.host_kv_waits != 0:
        for other in range(state.models.shape[0]):
            if other != m:
                evict_residents(state, g, other, pool.kv_survives_switch == 0)
    need = admission_bytes(state, r)
    while inst.queued_bytes > 0 and need > bytes_beside(state, g, m):
        last = state.lists[lists.instance_list(state, g, lists.OUTGOING)].tail
        dequeue(state, g, last)
        lists.remove(state, last)
        recompute(state, last)
    return bytes_beside(state, g, m)


@inner
def take_requests(state: State, g: int, m: int, phases: int, tag: int) -> int:
    """Claim, oldest first, all that fits: READY before WAITING. Returns bytes newly needed.

    Residents that no longer fit leave for the host: the tail of a split batch (paper 4.3).
    A request that cannot fit alone fails.
    """
    room, promised = make_room(state, g, m, phases, tag), 0
    is_full, waits = False, state.pool[0].host_kv_waits != 0
    if phases & Phases.DECODE:
        r = lists.first(state, lists.ready_list(state, m))
        while r >= 0:
            following = state.requests[r].next
            if is_claimable(state, g, r) and matches(state, r, tag):
                need = admission_bytes(state, r)
                if need > capacity_bytes(state, m):
                    fail_open(state, r)
                elif need <= room and not is_full:
                    room -= need
                    promised += claim(state, g, r)
                else:
                    is_full = True
                    is_here = state.requests[r].kv == KvPlace.DEVICE
                    if is_here and (not waits or has_host_room(state, g, r)):
                        close_request(state, r)
                        move_out(state, g, r)
            r = following
    if phases & Phases.PREFILL:
        r = lists.first(state, lists.waiting_list(state, m))
        while r >= 0 and not is_full:
            following = state.requests[r].next
            if is_claimable(state, g, r) and matches(state, r, tag):
                need = admission_bytes(state, r)
                if need > capacity_bytes(state, m):
                    fail_open(state, r)
                elif need <= room:
                    room -= need
                    promised += claim(state, g, r)
                else:
                    is_full = True
            r = following
    return promised


@inner
def fail_open(state: State, r: int) -> None:
    close_request(state, r)
    release_kv(state, r)
    end_request(state, r, RequestPhase.FAILED)


@inner
def begin_turn(
    state: State, g: int, m: int, phases: int, quota_ns: int, tag: int, joins: int
) -> None:
    inst, model, now = state.instances[g], state.models[m], state.pool[0].now_ns
    inst.is_switching = 1 if inst.model != m else 0
    if inst.model != m and inst.model >= 0:
        leave_residents(state, g)
    occupy(state, g, m)
    inst.turn_phases = phases & inst.role
    inst.quota_ns = quota_ns if state.pool[0].token_preempt != 0 else FOREVER_NS
    inst.turn_tag = tag
    inst.joins = joins
    inst.turn_start_ns = now
    inst.decoded_ns, inst.owes_step = 0, 0
    promised = take_requests(state, g, m, inst.turn_phases, tag)
    recount(state, m)
    held = inst.kv_used_bytes - inst.outgoing_bytes + promised
    if held + next_step_bytes(state, g) > capacity_bytes(state, m):
        evict_residents(state, g, m, False)  # residents that take no part yield their room
    if inst.kv_used_bytes + promised <= capacity_bytes(state, m):
        inst.kv_used_bytes += promised
    else:
        inst.kv_promised_bytes = promised
    model.waiting_since_ns = now if has_open_work(state, m) else FOREVER_NS
    place_weights(state, g, m)
    emit(state, Command.START, g)


@inner
def can_join(state: State, g: int, r: int) -> bool:
    """May the open request r join the turn that runs on g?"""
    inst, req = state.instances[g], state.requests[r]
    if inst.stage < Stage.COMMANDED or inst.stage == Stage.ENDING or inst.joins == 0:
        return False
    phase = Phases.PREFILL if req.phase == RequestPhase.WAITING else Phases.DECODE
    if inst.model != req.model or (inst.turn_phases & phase) == 0 or inst.kv_promised_bytes > 0:
        return False
    if not is_claimable(state, g, r) or not matches(state, r, inst.turn_tag):
        return False
    room = capacity_bytes(state, req.model) - inst.kv_used_bytes - admission_bytes(state, r)
    size = lists.count(state, lists.instance_list(state, g, lists.BATCH))
    size += lists.count(state, lists.instance_list(state, g, lists.INCOMING))
    if size * state.models[req.model].block_bytes <= room:
        return True
    return bool(room >= 0 and next_step_bytes(state, g) <= room)  # the others must not stop


@inner
def try_join(state: State, r: int) -> None:
    """Let r join the smallest running turn that takes it (ties: lowest instance)."""
    best, best_size = NONE, 0
    g = state.models[state.requests[r].model].running_head
    while g >= 0:
        if can_join(state, g, r):
            size = lists.count(state, lists.instance_list(state, g, lists.BATCH))
            if best == NONE or size < best_size or (size == best_size and g < best):
                best, best_size = g, size
        g = state.instances[g].next_running
    if best >= 0:
        state.instances[best].kv_used_bytes += claim(state, best, r)
        recount(state, state.requests[r].model)
        emit(state, Command.JOIN, best)


@kernel
def next_stage(state: State, g: int) -> int:
    """What the turn on g does next, at a token boundary."""
    inst = state.instances[g]
    if inst.kv_promised_bytes > 0:
        return Stage.BLOCKED
    is_incoming = lists.count(state, lists.instance_list(state, g, lists.INCOMING)) > 0
    if is_incoming and state.pool[0].kv_in_overlaps == 0:
        return Stage.KV_IN
    has_batch = lists.count(state, lists.instance_list(state, g, lists.BATCH)) > 0
    may_decode = has_batch and inst.decoded_ns < inst.quota_ns
    if lists.count(state, lists.instance_list(state, g, lists.PREFILL)) > 0:
        is_between_chunks = inst.owes_step != 0 and may_decode and can_step(state, g)
        return Stage.DECODE if is_between_chunks else Stage.PREFILL
    if may_decode:
        if can_step(state, g):
            return Stage.DECODE
        if inst.outgoing_bytes > 0 and not is_incoming:
            return Stage.BLOCKED  # ending would start the same turn again, for ever
    return Stage.KV_IN if is_incoming else Stage.ENDING


@inner
def welcome(state: State, g: int) -> None:
    """Incoming requests whose KV is there join the batch, at a token boundary."""
    incoming = lists.instance_list(state, g, lists.INCOMING)
    r = lists.first(state, incoming)
    while r >= 0 and state.requests[r].kv == KvPlace.DEVICE:
        lists.remove(state, r)
        lists.append(state, lists.instance_list(state, g, lists.BATCH), r)
        state.instances[g].batch_context_tokens += context_tokens(state, r)
        r = lists.first(state, incoming)


@inner
def settle(state: State, g: int) -> None:
    """Enter the next stage; what came to join begins to move in, if nothing does."""
    inst = state.instances[g]
    inst.stage, inst.stage_ns = next_stage(state, g), state.pool[0].now_ns
    works = inst.stage == Stage.PREFILL or inst.stage == Stage.DECODE
    if inst.stage == Stage.KV_IN or (works and state.pool[0].kv_in_overlaps != 0):
        size = lists.count(state, lists.instance_list(state, g, lists.INCOMING))
        if inst.moving_in == 0 and size > 0:
            begin_kv_in(state, g, size)


@inner
def end_turn(state: State, g: int) -> None:
    """Reopen the batch; its KV stays on the device until another model needs the room."""
    inst = state.instances[g]
    batch = lists.instance_list(state, g, lists.BATCH)
    r = lists.first(state, batch)
    while r >= 0:
        lists.remove(state, r)
        leaves = state.pool[0].kv_reload_every_turn != 0
        if leaves and (state.pool[0].host_kv_waits == 0 or has_host_room(state, g, r)):
            move_out(state, g, r)
        else:
            reopen(state, r, RequestPhase.READY)
        r = lists.first(state, batch)
    inst.batch_context_tokens = 0
    state.slots[g, inst.active_slot].used_ns = state.pool[0].now_ns
    inst.served_ns = state.pool[0].now_ns
    vacate(state, g)
    inst.stage = Stage.FREE
    bits.add(state.vacant, g)
    state.pool[0].wakes += 1
