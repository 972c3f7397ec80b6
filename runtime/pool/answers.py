"""What an answer must be: the question's, within the tables; from outside also possible now.

The core refuses what is not possible but trusts indices, and lets a pool idle for ever.
"""

from runtime.compiled import inner, kernel
from runtime.core import FOREVER_NS, NONE, DecisionKind, EventKind, Phases, Stage
from runtime.pool import bits, lists
from runtime.pool.candidates import (
    can_idle,
    can_route,
    has_turn_work,
    is_starving,
    starving_model,
)
from runtime.pool.interrupts import can_stop
from runtime.pool.state import Record, State
from runtime.pool.weights import fits_beside_active, prefetch_slot, slot_of


@kernel
def is_answer(state: State, kind: int, index: int, event: Record) -> bool:
    """Does `event` answer the decision (kind, index), with indices in range?"""
    if kind == DecisionKind.ROUTE:
        is_known = NONE <= event.instance < state.instances.shape[0]
        return event.kind == EventKind.ROUTE and event.request == index and is_known
    if event.instance != index:
        return False
    is_known = event.model < state.models.shape[0]
    if kind == DecisionKind.PREFETCH:
        return event.kind == EventKind.PREFETCH and event.model >= NONE and is_known
    if kind == DecisionKind.INTERRUPT:
        is_model = event.model >= 0 and is_known
        return event.kind == EventKind.INTERRUPT and is_model and 0 <= event.n <= 1
    if event.kind == EventKind.TURN:
        return event.quota_ns > 0 and event.model >= 0 and is_known
    return event.kind == EventKind.IDLE


@kernel
def is_possible(state: State, kind: int, index: int, event: Record) -> bool:
    """Is `event` an answer to the decision (kind, index) that the core takes, and that leaves
    something under way or due?"""
    if kind == DecisionKind.ROUTE:
        return _may_route(state, index, event)
    if event.instance != index or event.model < NONE or event.model >= state.models.shape[0]:
        return False
    if kind == DecisionKind.PREFETCH:
        return _may_prefetch(state, index, event)
    if kind == DecisionKind.INTERRUPT:
        return _may_interrupt(state, index, event)
    if event.kind == EventKind.IDLE:
        return bool(can_idle(state, index))
    return _may_turn(state, index, event)


@inner
def _may_route(state: State, r: int, event: Record) -> bool:
    g = event.instance
    if event.kind != EventKind.ROUTE or event.request != r or g < NONE:
        return False
    if state.requests[r].list != lists.routing_list(state) or g >= state.instances.shape[0]:
        return False
    return bool(g == NONE or can_route(state, r, g))


@inner
def _may_turn(state: State, g: int, event: Record) -> bool:
    m, phases = event.model, event.phases
    is_known = event.kind == EventKind.TURN and m != NONE
    if not is_known or phases < Phases.PREFILL or phases > Phases.BOTH:
        return False
    if event.quota_ns < 1 or event.quota_ns > FOREVER_NS or event.joins < 0 or event.joins > 1:
        return False
    stage = state.instances[g].stage
    if stage != Stage.FREE and stage != Stage.IDLE:
        return False
    if not has_turn_work(state, g, m, phases, event.tag):
        return False
    return bool(is_starving(state, m) or starving_model(state, g) == NONE)


@inner
def _may_prefetch(state: State, g: int, event: Record) -> bool:
    m = event.model
    if event.kind != EventKind.PREFETCH:
        return False
    if m == NONE:
        return True
    if not bits.contains(state.prefetch_due, g) or prefetch_slot(state, g) == NONE:
        return False
    if m == state.instances[g].model:
        return False
    return bool(slot_of(state, g, m) != NONE or fits_beside_active(state, g, m))


@inner
def _may_interrupt(state: State, g: int, event: Record) -> bool:
    m = event.model
    if event.kind != EventKind.INTERRUPT or m == NONE or event.n < 0 or event.n > 1:
        return False
    if state.models[m].asks_ns != state.pool[0].now_ns:
        return False
    return bool(event.n == 0 or can_stop(state, g))
