"""KV that leaves a device: it moves to the host, waits for room there, or is dropped.

An instance's outgoing list holds what is on its way, then what waits for host room, in order.
"""

from runtime.compiled import inner
from runtime.core import NONE, Command, KvPlace, Phases, RequestPhase
from runtime.pool import lists
from runtime.pool.links import change_outgoing
from runtime.pool.memory import has_host_room, kv_bytes, release_kv
from runtime.pool.open_work import close_request, recount, reopen
from runtime.pool.outbox import emit
from runtime.pool.state import State


@inner
def move_out(state: State, g: int, r: int) -> None:
    """Start to move KV of r (on g, in no list) to the host; without room there it is recomputed."""
    if not has_host_room(state, g, r):
        recompute(state, r)
        return
    state.requests[r].phase = RequestPhase.READY
    lists.append(state, lists.instance_list(state, g, lists.OUTGOING), r)
    start_move_out(state, g, r)


@inner
def start_move_out(state: State, g: int, r: int) -> None:
    """Claim the host's memory for r, which is in g's outgoing list behind none that waits."""
    req, need = state.requests[r], kv_bytes(state, r)
    state.nodes[state.instances[g].node].host_kv_used_bytes += need
    change_outgoing(state, g, need)
    req.node = state.instances[g].node
    req.kv = KvPlace.MOVING_OUT
    emit(state, Command.MOVE_OUT, g)


@inner
def send_out(state: State, g: int, r: int) -> None:
    """KV of r (on g, in no list) is of no use here: it leaves now, or once the host has room.

    What the host could never hold is recomputed.
    """
    inst, need = state.instances[g], kv_bytes(state, r)
    if inst.queued_bytes == 0 and has_host_room(state, g, r):
        move_out(state, g, r)
    elif need > state.nodes[inst.node].host_kv_bytes:
        recompute(state, r)
    else:
        state.requests[r].phase = RequestPhase.READY
        lists.append(state, lists.instance_list(state, g, lists.OUTGOING), r)
        inst.queued_bytes += need
        state.pool[0].queued += 1


@inner
def dequeue(state: State, g: int, r: int) -> None:
    """r no longer waits for room on the host; whoever waits behind it may fit now."""
    state.instances[g].queued_bytes -= kv_bytes(state, r)
    state.pool[0].queued -= 1
    state.pool[0].host_freed = 1


@inner
def first_queued(state: State, g: int) -> int:
    """Behind the requests whose KV leaves g now: the first that waits for host room, or NONE."""
    r = lists.first(state, lists.instance_list(state, g, lists.OUTGOING))
    while r >= 0 and state.requests[r].kv == KvPlace.MOVING_OUT:
        r = state.requests[r].next
    return r


@inner
def let_out(state: State) -> None:
    """Host memory was given back: what waits for it starts to leave, in order of instances."""
    state.pool[0].host_freed = 0
    for g in range(state.instances.shape[0]):
        if state.instances[g].queued_bytes == 0:
            continue
        r = first_queued(state, g)
        while r >= 0 and has_host_room(state, g, r):
            dequeue(state, g, r)
            start_move_out(state, g, r)
            r = state.requests[r].next


@inner
def recompute(state: State, r: int) -> None:
    """Drop the KV of r (in no list): it waits for a prefill of its prompt and emitted tokens."""
    req = state.requests[r]
    state.pool[0].recomputed += 1
    state.pool[0].wakes += 1
    release_kv(state, r)
    req.instance = NONE
    if req.route >= 0 and (state.instances[req.route].role & Phases.PREFILL) == 0:
        req.route = NONE  # where it decoded nobody can prefill it
    reopen(state, r, RequestPhase.WAITING)


@inner
def evict_residents(state: State, g: int, m: int, is_lost: bool) -> None:
    """KV of model m that idles on g starts to leave, or is lost."""
    if state.models[m].bound == 0:
        return
    r = lists.first(state, lists.ready_list(state, m))
    while r >= 0:
        following = state.requests[r].next
        if state.requests[r].kv == KvPlace.DEVICE and state.requests[r].instance == g:
            close_request(state, r)
            if is_lost:
                recompute(state, r)
            else:
                move_out(state, g, r)
        r = following
    recount(state, m)


@inner
def leave_residents(state: State, g: int) -> None:
    """What a switch does to the KV of the model that g leaves: kept, lost, or moved out."""
    pool, m = state.pool[0], state.instances[g].model
    if pool.kv_stays == 0 and pool.host_kv_waits != 0 and pool.kv_survives_switch != 0:
        offer_residents(state, g, m)
    elif pool.kv_stays == 0:
        evict_residents(state, g, m, pool.kv_survives_switch == 0)


@inner
def offer_residents(state: State, g: int, m: int) -> None:
    """KV of model m that idles on g starts to leave, as far as the host has room."""
    r = lists.first(state, lists.ready_list(state, m))
    while r >= 0:
        following = state.requests[r].next
        if state.requests[r].kv == KvPlace.DEVICE and state.requests[r].instance == g:
            if has_host_room(state, g, r):
                close_request(state, r)
                move_out(state, g, r)
        r = following
    recount(state, m)
