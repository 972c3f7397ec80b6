"""How long stages take: from an instance's stage to the timer of its end (links: transport.py).

Decode runs jump in closed form to the first step at which something can change: a request ends,
the quota is reached, memory is short, or a truncated step time would change.
"""

import numpy as np

from runtime.compiled import inner, kernel
from runtime.core import FOREVER_NS, EventKind, Stage
from runtime.emulator.agenda import schedule
from runtime.emulator.noise import factor
from runtime.emulator.tables import Sim
from runtime.pool import lists
from runtime.pool.costs import prompt_s, step_s, truncated
from runtime.pool.memory import context_tokens, steps_that_fit
from runtime.pool.weights import weights_in_place
from runtime.slo import curve_ns


@inner
def plan_stage(sim: Sim, g: int) -> None:
    """Set g's compute timer for the stage it is in, which begins now."""
    state, timer = sim.state, sim.timers[g]
    now = state.pool[0].now_ns
    timer.began_ns, timer.compute_ns, timer.n = now, FOREVER_NS, 0
    stage = state.instances[g].stage
    if stage == Stage.COMMANDED:
        timer.kind = EventKind.SWITCHED
        if weights_in_place(state, g):
            timer.compute_ns = _switched_ns(sim, g)
    elif stage == Stage.PREFILL:
        timer.kind = EventKind.PREFILLED
        _plan_prefill(sim, g)
    elif stage == Stage.DECODE:
        timer.kind = EventKind.STEPS
        _plan_decode(sim, g)
    elif stage == Stage.ENDING:
        timer.kind = EventKind.TURN_ENDED
        timer.compute_ns = now
    schedule(sim.timers, sim.agenda, g)


@inner
def _switched_ns(sim: Sim, g: int) -> int:
    """The command has come and the weights are in place; then the turn's overhead."""
    state = sim.state
    inst, pool = state.instances[g], state.pool[0]
    placed_ns = state.slots[g, inst.active_slot].ready_ns
    return max(placed_ns, inst.turn_start_ns + pool.command_ns) + pool.turn_overhead_ns


@inner
def _noise(sim: Sim, g: int) -> float:
    """The factor of the stage that g begins: one for a prefill call or a decode run."""
    control, timer = sim.control[0], sim.timers[g]
    timer.stages += 1
    return factor(control.noise, control.seed, g, timer.stages)


@inner
def _plan_prefill(sim: Sim, g: int) -> None:
    """One call: the first request or a chunk of it; those behind it while the budget lasts."""
    state, timer = sim.state, sim.timers[g]
    inst, chunk = state.instances[g], state.pool[0].prefill_chunk_tokens
    budget = state.pool[0].prefill_budget_tokens
    budget = min(budget, chunk) if chunk > 0 else budget
    cost = state.costs[inst.gpu_type, inst.model]
    n, tokens, seconds = 0, 0, cost.prefill_s
    r = lists.first(state, lists.instance_list(state, g, lists.PREFILL))
    while r >= 0:
        done = state.requests[r].prefilled_tokens
        length = context_tokens(state, r) - done
        if n == 0 and chunk > 0 and length > chunk:
            seconds += prompt_s(cost, done + chunk) - prompt_s(cost, done)
            break
        if n > 0 and tokens + length > budget:
            break
        n += 1
        tokens += length
        seconds += prompt_s(cost, done + length) - prompt_s(cost, done)
        r = state.requests[r].next
    timer.n, timer.x = n, truncated(seconds, state.pool[0].step_quantum_s) * _noise(sim, g)
    timer.compute_ns = timer.began_ns + curve_ns(timer.x, 0.0, 1)


@inner
def _plan_decode(sim: Sim, g: int) -> None:
    state, timer = sim.state, sim.timers[g]
    inst, quantum = state.instances[g], state.pool[0].step_quantum_s
    cost = state.costs[inst.gpu_type, inst.model]
    batch = lists.instance_list(state, g, lists.BATCH)
    size = lists.count(state, batch)
    is_between_chunks = lists.count(state, lists.instance_list(state, g, lists.PREFILL)) > 0
    k = 1 if is_between_chunks else 1 << 40
    r = lists.first(state, batch)
    while r >= 0:
        req = state.requests[r]
        k = min(k, sim.arrivals.output_tokens[req.id - sim.control[0].base] - req.emitted_tokens)
        r = req.next
    timer.end_n = k
    timer.x = step_s(cost, inst.batch_context_tokens, size)
    timer.y = cost.decode_context_s * size
    if quantum > 0.0:
        rounded = truncated(timer.x, quantum)
        if timer.y > 0.0:
            k = min(k, max(1, int(np.ceil((rounded + quantum - timer.x) / timer.y - 1e-9))))
        timer.x, timer.y = rounded, 0.0
    if sim.control[0].noise > 0.0:  # whole ns: equal gaps stay equal after rounding
        noise = _noise(sim, g)
        timer.x, timer.y = (
            np.rint(timer.x * noise * 1e9) / 1e9,
            np.rint(timer.y * noise * 1e9) / 1e9,
        )
    k = first_step_at(timer.x, timer.y, inst.quota_ns - inst.decoded_ns, k)
    timer.n = max(1, steps_that_fit(state, g, k))
    timer.compute_ns = timer.began_ns + curve_ns(timer.x, timer.y, timer.n)


@kernel
def first_step_at(x_s: float, y_s: float, at_ns: int, k: int) -> int:
    """Smallest j in [1, k] whose step ends at `at_ns` or later; k if none does.

    The root of the curve, then whole steps from there.
    """
    if curve_ns(x_s, y_s, 1) >= at_ns:
        return 1
    if curve_ns(x_s, y_s, k) < at_ns:
        return k
    at_s, base = at_ns * 1e-9, x_s - 0.5 * y_s
    root = 2.0 * at_s / (base + np.sqrt(max(0.0, base * base + 2.0 * y_s * at_s)))
    j = min(max(int(root), 1), k)
    while j > 1 and curve_ns(x_s, y_s, j - 1) >= at_ns:
        j -= 1
    while curve_ns(x_s, y_s, j) < at_ns:
        j += 1
    return j


@inner
def cut_run(sim: Sim, g: int) -> None:
    """A request waits to join: end the decode run under way at its next step boundary."""
    timer = sim.timers[g]
    if sim.state.instances[g].stage == Stage.DECODE and timer.kind == EventKind.STEPS:
        elapsed = sim.state.pool[0].now_ns - timer.began_ns
        timer.n = first_step_at(timer.x, timer.y, elapsed, timer.n)
        timer.compute_ns = timer.began_ns + curve_ns(timer.x, timer.y, timer.n)
        schedule(sim.timers, sim.agenda, g)
