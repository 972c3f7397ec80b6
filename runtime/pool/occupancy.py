"""Which instances are in a turn, and of which model."""

from runtime.compiled import inner
from runtime.core import NONE, Stage
from runtime.pool import bits
from runtime.pool.state import State


@inner
def occupy(state: State, g: int, m: int) -> None:
    """A turn of m begins on g."""
    inst, model = state.instances[g], state.models[m]
    inst.model = m
    inst.stage = Stage.COMMANDED
    inst.next_running, inst.prev_running = model.running_head, NONE
    if model.running_head >= 0:
        state.instances[model.running_head].prev_running = g
    model.running_head = g
    model.running_on += 1
    state.pool[0].occupied += 1
    bits.discard(state.vacant, g)
    bits.discard(state.prefetch_due, g)


@inner
def vacate(state: State, g: int) -> None:
    """The turn on g is over; its stage is the caller's to set."""
    inst = state.instances[g]
    model = state.models[inst.model]
    if inst.prev_running >= 0:
        state.instances[inst.prev_running].next_running = inst.next_running
    else:
        model.running_head = inst.next_running
    if inst.next_running >= 0:
        state.instances[inst.next_running].prev_running = inst.prev_running
    model.running_on -= 1
    state.pool[0].occupied -= 1
    bits.discard(state.prefetch_due, g)
