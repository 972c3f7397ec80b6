"""What an episode's return counts: deadlines missed between its first decision and its end, to the
token. At a decision the tokens of a decode run under way are not known yet, and those overdue count
as missed until they are; at both ends of an episode they are looked up in the run's curve, so that
the sum is exact."""

from runtime.compiled import inner, kernel
from runtime.core import EventKind, RequestPhase, Stage
from runtime.emulator.physics import first_step_at
from runtime.emulator.tables import Sim
from runtime.pool import lists
from runtime.slo import count_on_time


@inner
def due_by(sim: Sim, r: int, at_ns: int) -> int:
    """Tokens of live request r with a deadline before `at_ns`."""
    req = sim.state.requests[r]
    model = sim.state.models[req.model]
    overdue_ns = at_ns - req.arrival_ns - model.ttft_ns
    if overdue_ns <= 0:
        return 0
    tokens = sim.arrivals.output_tokens[req.id - sim.control[0].base]
    return min(tokens, (overdue_ns - 1) // model.tbt_ns + 1)


@inner
def steps_done(sim: Sim, g: int, at_ns: int) -> int:
    """Steps of the decode run under way on g that have ended by `at_ns`."""
    timer = sim.timers[g]
    if sim.state.instances[g].stage != Stage.DECODE or timer.kind != EventKind.STEPS:
        return 0
    return first_step_at(timer.x, timer.y, at_ns - timer.began_ns + 1, timer.n) - 1


@inner
def restored(sim: Sim, g: int, at_ns: int) -> int:
    """Misses too many if g's run under way is forgotten: its tokens by `at_ns` that are on time,
    as far as their deadlines have passed."""
    state, timer, total = sim.state, sim.timers[g], 0
    steps = steps_done(sim, g, at_ns)
    r = lists.first(state, lists.instance_list(state, g, lists.BATCH)) if steps > 0 else -1
    while r >= 0:
        req = state.requests[r]
        model, emitted = state.models[req.model], req.emitted_tokens
        first_due = req.arrival_ns + model.ttft_ns + emitted * model.tbt_ns
        base = timer.began_ns - first_due
        on_time = count_on_time(base, model.tbt_ns, timer.x, timer.y, steps)
        due = due_by(sim, r, at_ns)
        total += max(0, due - emitted) - max(0, due - emitted - steps) - (steps - on_time)
        r = req.next
    return total


@kernel
def missed_by(sim: Sim, at_ns: int) -> int:
    """Token deadlines missed up to `at_ns`, when no event is due between now and then. A request
    that ended without all its tokens has them counted at its end."""
    total, live, r = sim.control[0].missed_tokens, sim.state.pool[0].in_flight, -1
    while live > 0:
        r += 1
        req = sim.state.requests[r]
        if req.phase != RequestPhase.FREE:
            live -= 1
            total += req.emitted_tokens - req.on_time_tokens
            total += max(0, due_by(sim, r, at_ns) - req.emitted_tokens)
    for g in range(sim.state.instances.shape[0]):
        total -= restored(sim, g, at_ns)
    return total
