"""Root ports: which transfers are under way, and who has an instance's way in.

An instance has at most one transfer in (its KV, else a load of weights) and one out (its KV). The
transfers in one direction of a port share its bandwidth equally. When their number changes, loads
under way are settled at the old share here; what a driver predicted of the port it predicts anew.
"""

from runtime.compiled import inner
from runtime.core import NONE, Command
from runtime.pool.costs import load_rest_ns
from runtime.pool.outbox import emit
from runtime.pool.state import State


@inner
def change_flows(state: State, g: int, more_in: int, more_out: int) -> None:
    """Count a transfer that begins or ends on g's port."""
    link = state.links[state.instances[g].port]
    is_shared = link.end - link.first > 1
    if more_in != 0 and is_shared:
        for other in range(link.first, link.end):
            settle_load(state, other)
        emit(state, Command.SHARE_IN, g)
    if more_out != 0 and is_shared:
        emit(state, Command.SHARE_OUT, g)
    link.in_flows += more_in
    link.out_flows += more_out


@inner
def settle_load(state: State, g: int) -> None:
    """Book what a load under way on g has got so far at the present share."""
    inst = state.instances[g]
    if inst.load_since_ns >= 0:
        inst.load_left_ns = load_rest_ns(state, g)
        inst.load_since_ns = state.pool[0].now_ns


@inner
def begin_kv_in(state: State, g: int, n: int) -> None:
    """The KV of n incoming requests takes the way in; a load under way on g waits."""
    inst = state.instances[g]
    inst.moving_in = n
    if inst.load_since_ns >= 0:
        settle_load(state, g)
        inst.load_since_ns = NONE
    else:
        change_flows(state, g, 1, 0)


@inner
def advance_kv_in(state: State, g: int, n: int) -> None:
    """The KV of n incoming requests is on g; an engine may report a group in parts."""
    inst = state.instances[g]
    if inst.moving_in > n:
        inst.moving_in -= n
    elif inst.moving_in > 0:
        end_kv_in(state, g)


@inner
def end_kv_in(state: State, g: int) -> None:
    """The incoming group is there, or lost; a load that waited goes on."""
    inst = state.instances[g]
    inst.moving_in = 0
    if inst.loading_slot >= 0:
        inst.load_since_ns = state.pool[0].now_ns
    else:
        change_flows(state, g, -1, 0)


@inner
def begin_load(state: State, g: int) -> None:
    """A load takes the way in, unless KV has it; one under way before has been dropped."""
    inst = state.instances[g]
    had_link = inst.load_since_ns >= 0
    inst.load_since_ns = state.pool[0].now_ns if inst.moving_in == 0 else NONE
    if inst.moving_in == 0 and not had_link:
        change_flows(state, g, 1, 0)


@inner
def end_load(state: State, g: int) -> None:
    """The load under way on g has ended, or is lost."""
    inst = state.instances[g]
    if inst.load_since_ns >= 0:
        change_flows(state, g, -1, 0)
    inst.load_since_ns = NONE


@inner
def change_outgoing(state: State, g: int, more_bytes: int) -> None:
    """KV begins or ends to leave g: one transfer, however many requests are queued."""
    inst = state.instances[g]
    was_leaving = inst.outgoing_bytes > 0
    inst.outgoing_bytes += more_bytes
    is_leaving = inst.outgoing_bytes > 0
    if was_leaving != is_leaving:
        change_flows(state, g, 0, 1 if is_leaving else -1)
