"""Weight slots of an instance and the host cache behind them."""

from runtime.compiled import inner
from runtime.core import NONE, Command, SlotState
from runtime.pool.costs import MIN_SWITCH_NS, dropped_rest_ns, load_ns, load_share
from runtime.pool.links import begin_load, end_load
from runtime.pool.outbox import emit
from runtime.pool.state import State


@inner
def slot_of(state: State, g: int, m: int) -> int:
    """The slot of g that holds or loads model m, or NONE."""
    for s in range(state.slots.shape[1]):
        if state.slots[g, s].model == m:
            return s
    return NONE


@inner
def least_used(state: State, g: int, is_ahead: int) -> int:
    """Of the residents of g that do not compute, prefetched ones or others: the one that was used
    least recently (ties: the lowest slot), or NONE."""
    best = NONE
    for s in range(state.slots.shape[1]):
        slot = state.slots[g, s]
        if slot.state == SlotState.READY and slot.is_ahead == is_ahead:
            if s != state.instances[g].active_slot:
                if best == NONE or slot.used_ns < state.slots[g, best].used_ns:
                    best = s
    return best


@inner
def victim_slot(state: State, g: int) -> int:
    """Where the weights of a turn go: an empty slot, the slot of a dropped load, else the least
    recently used one that neither computes nor was prefetched, else the active one."""
    inst = state.instances[g]
    for s in range(state.slots.shape[1]):
        if state.slots[g, s].state == SlotState.EMPTY or s == inst.loading_slot:
            return s
    best = least_used(state, g, 0)
    return inst.active_slot if best == NONE else best


@inner
def prefetch_slot(state: State, g: int) -> int:
    """Where a prefetch goes while nothing loads: an empty slot, the least recently used one, else
    an earlier prefetch that no turn has used; NONE when there is only the active slot."""
    for s in range(state.slots.shape[1]):
        if state.slots[g, s].state == SlotState.EMPTY:
            return s
    best = least_used(state, g, 0)
    return least_used(state, g, 1) if best == NONE else best


@inner
def resident_bytes(state: State, g: int) -> int:
    total = 0
    for s in range(state.slots.shape[1]):
        if state.slots[g, s].model >= 0:
            total += state.models[state.slots[g, s].model].weight_bytes
    return total


@inner
def fits_beside_active(state: State, g: int, m: int) -> bool:
    """May m become resident while the active model of g stays?"""
    active = state.instances[g].model
    held = state.models[active].weight_bytes if active >= 0 else 0
    return bool(held + state.models[m].weight_bytes <= state.pool[0].weight_budget_bytes)


@inner
def make_weight_room(state: State, g: int, m: int, is_ahead: int) -> None:
    """Evict residents of g until m fits the budget: used ones, for a turn the active one, and
    last those that were prefetched and not used."""
    need, inst = state.models[m].weight_bytes, state.instances[g]
    while resident_bytes(state, g) + need > state.pool[0].weight_budget_bytes:
        s = least_used(state, g, 0)
        if s == NONE and is_ahead == 0 and inst.active_slot >= 0:
            if state.slots[g, inst.active_slot].model >= 0:
                s = inst.active_slot
        clear_slot(state, g, least_used(state, g, 1) if s == NONE else s)


@inner
def clear_slot(state: State, g: int, s: int) -> None:
    slot = state.slots[g, s]
    if slot.is_ahead != 0:
        state.models[slot.model].prefetched_on -= 1
    slot.is_ahead = 0
    slot.model = NONE
    slot.state = SlotState.EMPTY


@inner
def start_load(state: State, g: int, s: int, m: int, is_ahead: int) -> None:
    """Begin to load m into slot s of g, once the chunk of a load under way is there: that load is
    dropped with its progress."""
    inst = state.instances[g]
    rest_ns, share = dropped_rest_ns(state, g, m), load_share(state, g, m)
    if inst.loading_slot >= 0:
        clear_slot(state, g, inst.loading_slot)
    clear_slot(state, g, s)
    make_weight_room(state, g, m, is_ahead)
    slot = state.slots[g, s]
    slot.model = m
    slot.state = SlotState.LOADING
    slot.is_ahead = is_ahead
    state.models[m].prefetched_on += is_ahead
    inst.loading_slot = s
    inst.load_left_ns = rest_ns + load_ns(state, g, m)
    begin_load(state, g)
    inst.load_share = share
    emit(state, Command.LOAD, g)


@inner
def place_weights(state: State, g: int, m: int) -> None:
    """Make m the active model of g: from a slot, from a load under way, or by a load now."""
    inst = state.instances[g]
    s = slot_of(state, g, m)
    if s == NONE:
        s = victim_slot(state, g)
        start_load(state, g, s, m, 0)
        if state.pool[0].credits_compute != 0:
            inst.load_left_ns = max(MIN_SWITCH_NS, inst.load_left_ns - inst.compute_ns)
    elif state.slots[g, s].is_ahead != 0:
        state.slots[g, s].is_ahead = 0
        state.models[m].prefetched_on -= 1
        inst.prefetched_switches += 1
    inst.active_slot = s


@inner
def weights_in_place(state: State, g: int) -> bool:
    inst = state.instances[g]
    return bool(state.slots[g, inst.active_slot].state == SlotState.READY)


@inner
def finish_load(state: State, g: int) -> None:
    inst = state.instances[g]
    slot = state.slots[g, inst.loading_slot]
    slot.state = SlotState.READY
    slot.ready_ns = slot.used_ns = state.pool[0].now_ns
    inst.loading_slot = NONE
    end_load(state, g)
    cache_on_host(state, inst.node, slot.model)


@inner
def cache_on_host(state: State, d: int, m: int) -> None:
    """Note a use of m in node d's host cache; a miss evicts the least recently used models."""
    node, now = state.nodes[d], state.pool[0].now_ns
    state.hosted[d, m].used_ns = now
    if state.hosted[d, m].is_cached != 0:
        return
    need = state.models[m].weight_bytes
    if need > node.host_weight_bytes:
        return
    while node.host_weight_used_bytes + need > node.host_weight_bytes:
        oldest = NONE
        for other in range(state.models.shape[0]):
            if state.hosted[d, other].is_cached != 0:
                if oldest == NONE or (
                    state.hosted[d, other].used_ns < state.hosted[d, oldest].used_ns
                ):
                    oldest = other
        state.hosted[d, oldest].is_cached = 0
        node.host_weight_used_bytes -= state.models[oldest].weight_bytes
    state.hosted[d, m].is_cached = 1
    node.host_weight_used_bytes += need
