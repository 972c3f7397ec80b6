"""One environment step in compiled code: act, run to the next decision, observe, reward.

Letters: P pools, K rows, F row features, I instance features, C pool features, Q quota levels.
Action a < K * Q: row a // Q with quota level a % Q (level 0 only, but for a TURN); a = K * Q: idle
(only while something else is under way), no prefetch, the turn kept. Rows: see choices.py.
"""

from typing import ClassVar

import numpy as np
import numpy.typing as npt

from envs.choices import choice_features, fill_choices, least_routed, may_pass
from envs.deadlines import missed_by
from runtime.compiled import inner, kernel
from runtime.core import FOREVER_NS, NONE, DecisionKind, EventKind
from runtime.emulator.loop import Signal, advance, answer, missed_deadlines
from runtime.emulator.tables import Sim
from runtime.pool.candidates import fill_rows
from runtime.pool.features import C, F, I, instance_features, pool_features
from runtime.pool.state import Table
from runtime.tables import Field, Tables, at

sim_at = at(Sim)

CLOCK = np.dtype(
    [("now_ns", "i8"), ("missed", "i8"), ("dt_s", "f8"), ("is_over", "i8"), ("signal", "i8")],
    align=True,
)


class Buffers(Tables):
    """What P pools show after a step, in two halves that steps write in turn, so that what the
    last step showed stands while the next is made: rows [2P, K*F], instance [2P, I], globals
    [2P, C], mask [2P, K*Q+1], rows in use [2P]. `half` says which is the present one.

    Of the present only: models (of a ROUTE: instances) behind the rows [P, K], missed deadlines
    [P], clocks [P].
    """

    layout: ClassVar = {
        "rows": Field(np.float32, 2),
        "instance": Field(np.float32, 2),
        "globals": Field(np.float32, 2),
        "mask": Field(np.bool_, 2),
        "used": Field(np.int64),
        "half": Field(np.int64),
        "models": Field(np.int64, 2),
        "missed": Field(np.float64),
        "clocks": Field(CLOCK),
        "quotas_ns": Field(np.int64),
        "addresses": Field(np.int64),
        "features": Field(np.float32, 2),
    }
    rows: npt.NDArray[np.float32]
    instance: npt.NDArray[np.float32]
    globals: npt.NDArray[np.float32]
    mask: npt.NDArray[np.bool_]
    used: npt.NDArray[np.int64]
    half: npt.NDArray[np.int64]
    models: npt.NDArray[np.int64]
    missed: npt.NDArray[np.float64]
    clocks: Table
    quotas_ns: npt.NDArray[np.int64]
    addresses: npt.NDArray[np.int64]
    features: npt.NDArray[np.float32]


def new_buffers(pools: int, rows: int, quotas_s: tuple[float, ...]) -> Buffers:
    return Buffers(
        rows=np.zeros((2 * pools, rows * F), np.float32),
        instance=np.zeros((2 * pools, I), np.float32),
        globals=np.zeros((2 * pools, C), np.float32),
        mask=np.zeros((2 * pools, rows * len(quotas_s) + 1), np.bool_),
        used=np.zeros(2 * pools, np.int64),
        half=np.zeros(1, np.int64),
        models=np.full((pools, rows), NONE, np.int64),
        missed=np.zeros(pools),
        clocks=np.zeros(pools, CLOCK),
        quotas_ns=np.array([round(q * 1e9) for q in quotas_s], np.int64),
        addresses=np.zeros(pools, np.int64),
        features=np.zeros((pools, F), np.float32),
    )


@inner
def present(buffers: Buffers, p: int) -> int:
    """Where the present half shows pool p."""
    return int(buffers.half[0] * buffers.models.shape[0] + p)


@inner
def observe(buffers: Buffers, p: int, sim: Sim) -> None:
    """Write pool p's rows, features and mask for the decision that is due."""
    control, state, place = sim.control[0], sim.state, present(buffers, p)
    kind, g = control.decision_kind, control.decision_index
    models, mask, out = buffers.models[p], buffers.mask[place], buffers.rows[place]
    levels = buffers.quotas_ns.shape[0]
    count, overflow = fill_choices(state, kind, g, sim.event[0], models)
    allowed = levels if kind == DecisionKind.TURN else 1
    for i in range(count):
        choice_features(state, kind, g, models[i], buffers.features[p])
        for f in range(F):
            out[i * F + f] = buffers.features[p, f]
        for q in range(levels):
            mask[i * levels + q] = q < allowed
    for i in range(count, models.shape[0]):
        models[i] = NONE
    clear_rows(buffers, place, count)
    mask[models.shape[0] * levels] = may_pass(state, kind, g)
    if kind == DecisionKind.ROUTE:
        buffers.instance[place, :] = 0.0  # no instance decides
    else:
        instance_features(state, kind, g, buffers.instance[place])
    pool_features(state, overflow, buffers.globals[place])


@inner
def clear_rows(buffers: Buffers, place: int, count: int) -> None:
    """Empty the rows from `count` on that were in use."""
    levels = buffers.quotas_ns.shape[0]
    for i in range(count * F, buffers.used[place] * F):
        buffers.rows[place, i] = 0.0
    for i in range(count * levels, buffers.used[place] * levels):
        buffers.mask[place, i] = False
    buffers.used[place] = count


@inner
def observe_end(buffers: Buffers, p: int, is_carried: bool) -> None:
    """Pool p is over: nothing but idling is allowed. The features stay those of its last decision,
    which the other half holds if `is_carried`."""
    place, pools = present(buffers, p), buffers.models.shape[0]
    if is_carried:
        other = (place + pools) % (2 * pools)
        buffers.rows[place, :] = buffers.rows[other]
        buffers.instance[place, :] = buffers.instance[other]
        buffers.globals[place, :] = buffers.globals[other]
        buffers.used[place] = buffers.used[other]
    buffers.mask[place, :] = False
    buffers.mask[place, buffers.mask.shape[1] - 1] = True


@inner
def act(buffers: Buffers, p: int, sim: Sim, action: int) -> None:
    """Turn an action into the answer of the decision that is due. A masked action counts as idle;
    where idle is masked too, as the first row at its first quota."""
    event, levels = sim.event[0], buffers.quotas_ns.shape[0]
    mask = buffers.mask[(present(buffers, p) + buffers.models.shape[0]) % buffers.mask.shape[0]]
    idle = mask.shape[0] - 1
    if not mask[action]:
        action = idle if mask[idle] else 0
    if action != idle:
        kind, chosen = sim.control[0].decision_kind, buffers.models[p, action // levels]
        if kind == DecisionKind.ROUTE:
            event.instance = chosen
        else:
            event.model = chosen
        if kind == DecisionKind.TURN:
            event.kind = EventKind.TURN
            event.quota_ns = buffers.quotas_ns[action % levels]
        elif kind == DecisionKind.INTERRUPT:
            event.n = 1
    answer(sim)


@inner
def run_on(buffers: Buffers, p: int, sim: Sim, is_step: bool) -> None:
    """Run to the next decision and settle the clock; a full request table leaves it open."""
    clock = buffers.clocks[p]
    clock.signal = advance(sim)
    if clock.signal == Signal.SLOTS_FULL or clock.signal == Signal.JOURNAL_FULL:
        return
    clock.is_over = 0 if clock.signal == Signal.DECISION else 1
    if clock.is_over == 0:
        now, missed = sim.state.pool[0].now_ns, missed_deadlines(sim)
    else:
        now = max(sim.state.pool[0].now_ns, sim.control[0].horizon_ns)
        missed = missed_by(sim, now)
    clock.dt_s = (now - clock.now_ns) / 1e9
    buffers.missed[p] = missed - clock.missed
    clock.now_ns, clock.missed = now, missed
    if clock.is_over == 0:
        observe(buffers, p, sim)
    else:
        observe_end(buffers, p, is_step)


@kernel
def serve_oldest(sim: Sim, rows: npt.NDArray[np.int64]) -> int:
    """Drive a pool by the oldest open request, turns of 1 s that none interrupts, no prefetch,
    routes to the shortest queue: a plain warm-up."""
    while True:
        signal = advance(sim)
        if signal != Signal.DECISION:
            return signal
        control, state, event = sim.control[0], sim.state, sim.event[0]
        if control.decision_kind == DecisionKind.TURN:
            count, _ = fill_rows(state, DecisionKind.TURN, control.decision_index, rows)
            event.kind, event.quota_ns, event.model = EventKind.TURN, 1_000_000_000, rows[0]
            oldest = FOREVER_NS
            for i in range(count):
                waiting = state.models[rows[i]].waiting_since_ns
                if waiting < oldest:
                    oldest, event.model = waiting, rows[i]
        elif control.decision_kind == DecisionKind.ROUTE:
            event.instance = least_routed(state, control.decision_index)
        answer(sim)


@kernel
def start(buffers: Buffers, p: int, sim: Sim) -> None:
    """First observation of an episode, in the present half; the clock and the misses count from
    here."""
    clock = buffers.clocks[p]
    clock.now_ns, clock.missed = sim.state.pool[0].now_ns, missed_deadlines(sim)
    run_on(buffers, p, sim, False)


@kernel
def count_from_here(buffers: Buffers, p: int) -> None:
    """What was missed before the first decision is nobody's, and known to the token."""
    clock = buffers.clocks[p]
    clock.missed = missed_by(sim_at(buffers.addresses[p]), clock.now_ns)


@kernel
def resume(buffers: Buffers, p: int) -> None:
    """Go on after the request table of pool p was grown."""
    run_on(buffers, p, sim_at(buffers.addresses[p]), True)


@kernel
def step_pools(buffers: Buffers, actions: npt.NDArray[np.int64], first: int, end: int) -> None:
    """Act in each of pools first .. end - 1 that is not over, and run it to its next decision.

    The actions answer what the other half shows. One that is over shows its end again.
    """
    for p in range(first, end):
        clock = buffers.clocks[p]
        if clock.is_over != 0:
            clock.dt_s, buffers.missed[p] = 0.0, 0.0
            observe_end(buffers, p, True)
            continue
        sim = sim_at(buffers.addresses[p])
        act(buffers, p, sim, actions[p])
        run_on(buffers, p, sim, True)
