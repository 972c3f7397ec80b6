"""INTERRUPT: an urgent arrival finds no instance free; shall the turn on a busy one stop for it?

Asked in the instant of the arrival, once per model. The arrival is urgent if no turn runs its
model, no instance is free to take it, and the turns under way leave it too little slack: its
first-token deadline, less the soonest that a turn of it could begin to work (rest of a quota, then
the switch), is under the pool's `interrupt_slack_s`. The question is about a turn that decodes: the
one whose instance could begin soonest once it stops; ties: the longest turn, the lowest instance.
"""

from runtime.compiled import inner
from runtime.core import FOREVER_NS, NONE, Command, Phases, RequestPhase, Stage
from runtime.pool import lists
from runtime.pool.costs import switch_left_ns
from runtime.pool.outbox import emit
from runtime.pool.state import State
from runtime.pool.turns import first_claimable
from runtime.pool.weights import slot_of


@inner
def note_arrival(state: State, r: int) -> None:
    """r has just come: unless a turn took it, an interrupt may be due in this instant."""
    pool, req = state.pool[0], state.requests[r]
    if pool.interrupt_slack_ns > 0 and req.phase == RequestPhase.WAITING:
        pool.asks_ns = state.models[req.model].asks_ns = pool.now_ns


@inner
def quota_left_ns(state: State, g: int) -> int:
    """What the turn on g has left to decode, the run under way counted up to now."""
    inst = state.instances[g]
    decoded_ns = inst.decoded_ns
    if inst.stage == Stage.DECODE:
        decoded_ns += state.pool[0].now_ns - inst.stage_ns
    return max(0, inst.quota_ns - decoded_ns)


@inner
def can_stop(state: State, g: int) -> bool:
    """Would the turn on g end at its next token boundary if it had no quota, and not without?"""
    if state.pool[0].token_preempt == 0 or state.instances[g].stage != Stage.DECODE:
        return False
    if lists.count(state, lists.instance_list(state, g, lists.PREFILL)) > 0:
        return False
    if lists.count(state, lists.instance_list(state, g, lists.INCOMING)) > 0:
        return False
    return quota_left_ns(state, g) > 0


@inner
def stop_turn(state: State, g: int) -> None:
    inst = state.instances[g]
    inst.quota_ns, inst.joins = 0, 0
    emit(state, Command.JOIN, g)


@inner
def turn_to_stop(state: State, m: int) -> int:
    """The instance that an arrival of m asks about, or NONE: it is not urgent, or none would do."""
    soonest_ns, best, best_ns = FOREVER_NS, NONE, FOREVER_NS
    for g in range(state.instances.shape[0]):
        inst = state.instances[g]
        if inst.stage == Stage.DOWN or (inst.role & Phases.PREFILL) == 0:
            continue
        if first_claimable(state, g, lists.waiting_list(state, m), NONE) == NONE:
            continue
        if inst.stage < Stage.COMMANDED:
            return NONE
        switch_ns = switch_left_ns(state, g, m, slot_of(state, g, m))
        soonest_ns = min(soonest_ns, quota_left_ns(state, g) + switch_ns)
        if can_stop(state, g) and switch_ns <= best_ns:
            is_longer = best == NONE or inst.turn_start_ns < state.instances[best].turn_start_ns
            if switch_ns < best_ns or is_longer:
                best, best_ns = g, switch_ns
    is_urgent = state.models[m].ttft_ns - soonest_ns < state.pool[0].interrupt_slack_ns
    return best if is_urgent and best_ns < soonest_ns else NONE


@inner
def urgent_arrival(state: State) -> tuple[int, int]:
    """The model that poses an INTERRUPT now, most urgent first, and the instance; or NONE, NONE."""
    pool = state.pool[0]
    if pool.asks_ns == pool.now_ns:
        for i in range(pool.open_models):
            m = state.open_models[i]
            if state.models[m].asks_ns == pool.now_ns and state.models[m].running_on == 0:
                g = turn_to_stop(state, m)
                if g != NONE:
                    return m, g
    return NONE, NONE
