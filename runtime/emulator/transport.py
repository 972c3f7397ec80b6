"""What the links carry: from a transfer under way to the timer of its end.

A transfer is kept as what is left of it alone on its root port; it goes on as many times slower as
the port's transfers in its direction make it, and is settled whenever their number changes.
"""

from runtime.compiled import inner
from runtime.core import FOREVER_NS, NONE, EventKind, KvPlace
from runtime.emulator.agenda import schedule
from runtime.emulator.tables import Sim
from runtime.pool import lists
from runtime.pool.costs import (
    kv_in_ns,
    kv_in_s,
    kv_in_share,
    kv_out_ns,
    load_slow,
    rest_ns,
    slowness,
    stretched_ns,
)
from runtime.pool.memory import moved_bytes


@inner
def plan_in(sim: Sim, g: int) -> None:
    """Set g's timer of what comes in: its KV, else the load under way."""
    inst, timer = sim.state.instances[g], sim.timers[g]
    if inst.moving_in > 0:
        if timer.in_since_ns == NONE:
            _begin_kv_in(sim, g)
        flows = sim.state.links[inst.port].in_flows
        timer.in_slow = slowness(flows, timer.in_share)
        timer.in_kind = EventKind.KV_IN_DONE
        timer.in_ns = timer.in_since_ns + stretched_ns(timer.in_left_ns, timer.in_slow)
    elif inst.load_since_ns >= 0:
        timer.in_kind = EventKind.WEIGHTS_READY
        left = stretched_ns(inst.load_left_ns, load_slow(sim.state, g))
        timer.in_ns = inst.load_since_ns + left
    else:
        timer.in_ns = FOREVER_NS
    schedule(sim.timers, sim.agenda, g)


@inner
def _begin_kv_in(sim: Sim, g: int) -> None:
    """The incoming group of g starts to move, now."""
    state, timer, inst = sim.state, sim.timers[g], sim.state.instances[g]
    total, remote = 0, 0
    r = lists.first(state, lists.instance_list(state, g, lists.INCOMING))
    for _ in range(inst.moving_in):
        held = moved_bytes(state, r)
        total += held
        if state.requests[r].node != inst.node:
            remote += held
        r = state.requests[r].next
    seconds = kv_in_s(state, total, remote)
    timer.in_left_ns, timer.in_since_ns = kv_in_ns(state, g, seconds), state.pool[0].now_ns
    timer.in_share = kv_in_share(state, total, seconds)


@inner
def plan_out(sim: Sim, g: int) -> None:
    """If nothing is on its way out of g, start to move all that has room, as one group."""
    state, timer = sim.state, sim.timers[g]
    outgoing = lists.instance_list(state, g, lists.OUTGOING)
    if timer.out_ns != FOREVER_NS or state.instances[g].outgoing_bytes == 0:
        return
    moved, timer.out_n = 0, 0
    r = lists.first(state, outgoing)
    while r >= 0 and state.requests[r].kv == KvPlace.MOVING_OUT:
        moved += moved_bytes(state, r)
        timer.out_n += 1
        r = state.requests[r].next
    timer.out_left_ns, timer.out_since_ns = kv_out_ns(state, moved), state.pool[0].now_ns
    _stretch_out(sim, g)


@inner
def _stretch_out(sim: Sim, g: int) -> None:
    timer = sim.timers[g]
    timer.out_slow = slowness(sim.state.links[sim.state.instances[g].port].out_flows, 1.0)
    timer.out_ns = timer.out_since_ns + stretched_ns(timer.out_left_ns, timer.out_slow)
    schedule(sim.timers, sim.agenda, g)


@inner
def lose_transfers(sim: Sim, g: int) -> None:
    """g has failed: nothing moves there any more."""
    timer = sim.timers[g]
    timer.in_ns, timer.out_ns, timer.in_since_ns = FOREVER_NS, FOREVER_NS, NONE
    schedule(sim.timers, sim.agenda, g)


@inner
def replan_in(sim: Sim, g: int) -> None:
    """More or fewer transfers come in over g's port: settle those under way, go on anew."""
    link, now = sim.state.links[sim.state.instances[g].port], sim.state.pool[0].now_ns
    for other in range(link.first, link.end):
        timer = sim.timers[other]
        if timer.in_since_ns != NONE:
            elapsed = now - timer.in_since_ns
            timer.in_left_ns = rest_ns(timer.in_left_ns, elapsed, timer.in_slow)
            timer.in_since_ns = now
        plan_in(sim, other)


@inner
def replan_out(sim: Sim, g: int) -> None:
    link, now = sim.state.links[sim.state.instances[g].port], sim.state.pool[0].now_ns
    for other in range(link.first, link.end):
        timer = sim.timers[other]
        if timer.out_ns != FOREVER_NS:
            elapsed = now - timer.out_since_ns
            timer.out_left_ns = rest_ns(timer.out_left_ns, elapsed, timer.out_slow)
            timer.out_since_ns = now
            _stretch_out(sim, other)
