"""What may be chosen: the next decision that is due, and its candidate rows with their masks.

K rows at most: the models that the instance holds, then the most urgent of the others by their
next deadline. The rest are counted as overflow. Ties go to the model that appeared first.
"""

import numpy as np
import numpy.typing as npt

from runtime.compiled import inner, kernel
from runtime.core import (
    FOREVER_NS,
    NONE,
    NS,
    DecisionKind,
    EventKind,
    KvPlace,
    Masked,
    Phases,
    RequestPhase,
    Stage,
)
from runtime.pool import bits, lists
from runtime.pool.interrupts import urgent_arrival
from runtime.pool.open_work import first_on_time, has_open_work, open_count
from runtime.pool.state import Record, State
from runtime.pool.turns import first_claimable
from runtime.pool.weights import fits_beside_active, prefetch_slot, slot_of

ROWS = 64  # K
STARVING_RANK, LEAST_RANK = 1 << 20, -(1 << 20)  # around all priorities
SERVE_NS = NS  # quota of a turn that the wait bound asks for


@kernel
def has_turn_work(state: State, g: int, m: int, phases: int, tag: int) -> bool:
    """Is there a request of m that a turn on g could take now?"""
    allowed = phases & state.instances[g].role
    if not has_open_work(state, m):
        return False
    if state.models[m].bound == 0 and tag == NONE:
        ready = lists.count(state, lists.ready_list(state, m))
        waiting = lists.count(state, lists.waiting_list(state, m))
        return (ready if allowed & Phases.DECODE else 0) + (
            waiting if allowed & Phases.PREFILL else 0
        ) > 0
    if allowed & Phases.DECODE:
        if first_claimable(state, g, lists.ready_list(state, m), tag) != NONE:
            return True
    if allowed & Phases.PREFILL:
        return bool(first_claimable(state, g, lists.waiting_list(state, m), tag) != NONE)
    return False


@inner
def is_starving(state: State, m: int) -> bool:
    pool = state.pool[0]
    return bool(
        pool.max_wait_ns > 0 and pool.now_ns - state.models[m].waiting_since_ns > pool.max_wait_ns
    )


@inner
def starving_model(state: State, g: int) -> int:
    """The model that a pull pool must serve on g now: the longest starving one, or NONE."""
    longest, since = NONE, FOREVER_NS
    if state.pool[0].max_wait_ns == 0 or state.pool[0].is_push != 0:
        return longest
    for i in range(state.pool[0].open_models):
        m = state.open_models[i]
        if state.models[m].waiting_since_ns < since and is_starving(state, m):
            if has_turn_work(state, g, m, Phases.BOTH, NONE):
                longest, since = m, state.models[m].waiting_since_ns
    return longest


@inner
def rank_of(state: State, g: int, m: int) -> int:
    """What comes before any score of a row for a turn: the wait bound, then the highest priority
    among the requests that g could take."""
    if is_starving(state, m):
        return STARVING_RANK
    if state.pool[0].ranked == 0:
        return 0
    best, role = LEAST_RANK, state.instances[g].role
    if role & Phases.DECODE:
        r = first_claimable(state, g, lists.ready_list(state, m), NONE)
        best = max(best, state.requests[r].priority if r >= 0 else LEAST_RANK)
    if role & Phases.PREFILL:
        r = first_claimable(state, g, lists.waiting_list(state, m), NONE)
        best = max(best, state.requests[r].priority if r >= 0 else LEAST_RANK)
    return best


@kernel
def turn_mask(state: State, g: int, m: int) -> int:
    """Why a turn of m on g is not possible, starvation of others apart."""
    if state.models[m].bound == 0 and state.instances[g].role == Phases.BOTH:
        if has_open_work(state, m):
            return Masked.OPEN  # the most common case, at once
    if has_turn_work(state, g, m, Phases.BOTH, NONE):
        return Masked.OPEN
    ready = lists.count(state, lists.ready_list(state, m))
    waiting = lists.count(state, lists.waiting_list(state, m))
    if ready + waiting > 0:
        role = state.instances[g].role
        only_prefill = ready == 0 and (role & Phases.PREFILL) == 0
        only_decode = waiting == 0 and (role & Phases.DECODE) == 0
        return Masked.WRONG_ROLE if only_prefill or only_decode else Masked.TAKEN
    return Masked.TAKEN if state.models[m].running_on > 0 else Masked.NO_WORK


@inner
def wants_prefetch(state: State, m: int) -> bool:
    """Has m more open requests than instances that hold it ahead of need?"""
    return bool(state.models[m].prefetched_on < open_count(state, m))


@kernel
def prefetch_mask(state: State, g: int, m: int) -> int:
    """Why a prefetch of m on g makes no sense. What was prefetched and waits may be kept."""
    reason = turn_mask(state, g, m)
    if reason != Masked.OPEN:
        return reason
    s = slot_of(state, g, m)
    if s == state.instances[g].active_slot and s != NONE:
        return Masked.IN_PLACE
    if (s == NONE or state.slots[g, s].is_ahead == 0) and not wants_prefetch(state, m):
        return Masked.TAKEN
    if s == NONE and not fits_beside_active(state, g, m):
        return Masked.DOES_NOT_FIT
    return Masked.OPEN


@inner
def own_mask(state: State, kind: int, g: int, m: int) -> int:
    """The reason that lies in m itself."""
    if kind == DecisionKind.PREFETCH:
        return prefetch_mask(state, g, m)
    return turn_mask(state, g, m)


@kernel
def row_mask(state: State, kind: int, g: int, m: int) -> int:
    """Why m may not be chosen, one reason; a row is masked by others for a TURN only."""
    reason = own_mask(state, kind, g, m)
    if reason != Masked.OPEN or kind == DecisionKind.PREFETCH:
        return reason
    top = LEAST_RANK
    for i in range(state.pool[0].open_models):
        other = state.open_models[i]
        if turn_mask(state, g, other) == Masked.OPEN:
            top = max(top, rank_of(state, g, other))
    if rank_of(state, g, m) == top:
        return Masked.OPEN
    return Masked.STARVED_OTHER if top == STARVING_RANK else Masked.OUTRANKED


@kernel
def fill_rows(state: State, kind: int, g: int, rows: npt.NDArray[np.int64]) -> tuple[int, int]:
    """Write the candidates of a TURN or PREFETCH on g into `rows` [K]; (count, overflow).

    First the models whose weights g holds, then those on time, most urgent first, then those with
    a late request, latest deadline first. A TURN keeps the rows of the highest rank only: the
    starving ones, else the highest priority.
    """
    count, seen, top, pool = 0, 0, LEAST_RANK, state.pool[0]
    is_ranked = kind == DecisionKind.TURN and (pool.max_wait_ns > 0 or pool.ranked > 0)
    for s in range(state.slots.shape[1]):
        m = state.slots[g, s].model
        if m != NONE and has_open_work(state, m):
            seen += 1
            count, top = _offer(state, kind, g, m, is_ranked, rows, count, top)
    total, middle = pool.open_models, first_on_time(state)
    for i in range(total):
        if count == rows.shape[0] and not is_ranked:
            break
        m = state.open_models[middle + i if middle + i < total else total - 1 - i]
        if slot_of(state, g, m) == NONE:
            seen += 1
            count, top = _offer(state, kind, g, m, is_ranked, rows, count, top)
    return count, total - seen


@inner
def _offer(
    state: State,
    kind: int,
    g: int,
    m: int,
    is_ranked: bool,
    rows: npt.NDArray[np.int64],
    count: int,
    top: int,
) -> tuple[int, int]:
    """Make m the next row unless it is masked or outranked; (count, highest rank) after it."""
    if own_mask(state, kind, g, m) != Masked.OPEN:
        return count, top
    rank = rank_of(state, g, m) if is_ranked else LEAST_RANK
    if rank > top:
        count, top = 0, rank
    if rank == top and count < rows.shape[0]:
        rows[count] = m
        count += 1
    return count, top


@inner
def any_turn(state: State, g: int) -> bool:
    """Does any model have work that g could take?"""
    for i in range(state.pool[0].open_models):
        if has_turn_work(state, g, state.open_models[i], Phases.BOTH, NONE):
            return True
    return False


@kernel
def can_idle(state: State, g: int) -> bool:
    """May g wait although it has work? Only while an event of another instance, or a move or load
    of its own, is under way: else nothing would ever wake it. And never while a model starves."""
    if starving_model(state, g) != NONE:
        return False
    if state.pool[0].occupied > 0:
        return True
    for other in range(state.instances.shape[0]):
        inst = state.instances[other]
        if inst.outgoing_bytes > 0 or inst.loading_slot >= 0:
            return True
    return False


@inner
def asks_turn(state: State, g: int) -> bool:
    """Is a TURN due on g, which is not in one? Without work for it, g idles until a wake."""
    inst, pool = state.instances[g], state.pool[0]
    if inst.stage == Stage.IDLE and inst.seen_wake == pool.wakes:
        return False
    if (pool.is_push == 0 or inst.routed > 0) and any_turn(state, g):
        return True
    inst.stage = Stage.IDLE
    inst.seen_wake = pool.wakes
    return False


@inner
def any_prefetch(state: State) -> bool:
    """Could a prefetch of any model make sense somewhere?"""
    for i in range(state.pool[0].open_models):
        if wants_prefetch(state, state.open_models[i]):
            return True
    return False


@inner
def asks_prefetch(state: State, g: int) -> bool:
    """Is the PREFETCH that g waits for due? Without a candidate it waits for the next arrival."""
    inst, pool = state.instances[g], state.pool[0]
    if inst.loading_slot >= 0 or inst.seen_arrivals == pool.arrivals:
        return False
    if prefetch_slot(state, g) != NONE:
        for i in range(pool.open_models):
            if prefetch_mask(state, g, state.open_models[i]) == Masked.OPEN:
                return True
    inst.seen_arrivals = pool.arrivals
    return False


@kernel
def can_route(state: State, r: int, g: int) -> bool:
    """May a push policy send r to g? Its KV in host memory must be within reach."""
    inst, req = state.instances[g], state.requests[r]
    if req.kv == KvPlace.HOST and req.node != inst.node and state.pool[0].network_bytes_s <= 0.0:
        return False
    phase = Phases.PREFILL if req.phase == RequestPhase.WAITING else Phases.DECODE
    return bool(inst.stage != Stage.DOWN and (inst.role & phase) != 0)


@kernel
def first_route(state: State, r: int) -> int:
    """The lowest instance that may take r, or NONE."""
    for g in range(state.instances.shape[0]):
        if can_route(state, r, g):
            return g
    return NONE


@kernel
def next_decision(state: State) -> tuple[int, int]:
    """The decision that is due now, as (kind, request slot or instance); kind NONE: none is.

    Routes come first (the oldest request that some instance may take), then turns by lowest
    instance, then interrupts (most urgent model first), then prefetches by lowest instance.
    An instance that has nothing to choose from is set idle here, by the same rule in each driver.
    """
    r = lists.first(state, lists.routing_list(state))
    while r >= 0:
        if first_route(state, r) != NONE:
            return DecisionKind.ROUTE.value, r
        r = state.requests[r].next
    if state.pool[0].claimable == 0:
        return DecisionKind.NONE.value, NONE
    g = bits.first_from(state.vacant, 0)
    while g >= 0:
        if asks_turn(state, g):
            return DecisionKind.TURN.value, g
        g = bits.first_from(state.vacant, g + 1)
    if state.pool[0].interrupt_slack_ns > 0:
        _, g = urgent_arrival(state)
        if g != NONE:
            return DecisionKind.INTERRUPT.value, g
    if state.pool[0].prefetches != 0:
        g = bits.first_from(state.prefetch_due, 0)
        if g >= 0 and not any_prefetch(state):
            return DecisionKind.NONE.value, NONE
        while g >= 0:
            if asks_prefetch(state, g):
                return DecisionKind.PREFETCH.value, g
            g = bits.first_from(state.prefetch_due, g + 1)
    return DecisionKind.NONE.value, NONE


@kernel
def pose(state: State, kind: int, index: int, event: Record) -> None:
    """Prepare `event` as the plainest answer to a decision: idle (while a model starves: a turn of
    it), no prefetch, first route, the turn kept.

    A policy overwrites what it decides; for a turn: kind TURN, model, quota_ns; to stop one: n = 1.
    """
    event.time_ns = state.pool[0].now_ns
    event.id, event.n, event.tag, event.quota_ns = NONE, 0, NONE, FOREVER_NS
    event.x, event.y, event.model, event.request, event.instance = 0.0, 0.0, NONE, NONE, index
    event.phases, event.joins, event.is_fallback, event.goes_on = Phases.BOTH, 1, 0, 0
    event.kind = EventKind.IDLE
    if kind == DecisionKind.PREFETCH:
        event.kind = EventKind.PREFETCH
    elif kind == DecisionKind.ROUTE:
        event.kind = EventKind.ROUTE
        event.request, event.instance = index, first_route(state, index)
        event.id = state.requests[index].id
    elif kind == DecisionKind.INTERRUPT:
        event.kind = EventKind.INTERRUPT
        event.model, _ = urgent_arrival(state)
    elif starving_model(state, index) != NONE:
        event.kind, event.quota_ns = EventKind.TURN, SERVE_NS
        event.model = starving_model(state, index)
