"""The rows of an observation: what each decision offers, and what it shows of each.

TURN, PREFETCH: models. INTERRUPT: the urgent model alone. ROUTE: instances.
"""

import numpy as np
import numpy.typing as npt

from runtime.compiled import inner
from runtime.core import DecisionKind, RequestPhase
from runtime.pool import lists
from runtime.pool.candidates import can_idle, can_route, fill_rows
from runtime.pool.costs import prefill_s, switch_left_ns
from runtime.pool.features import Vector, clip, row_features
from runtime.pool.memory import bytes_for, capacity_bytes, context_tokens
from runtime.pool.open_work import next_deadline_ns
from runtime.pool.state import Record, State
from runtime.pool.weights import slot_of


@inner
def fill_choices(
    state: State, kind: int, index: int, posed: Record, rows: npt.NDArray[np.int64]
) -> tuple[int, int]:
    """Write what may be chosen into `rows` [K]; (count, how many more there are)."""
    if kind == DecisionKind.INTERRUPT:
        rows[0] = posed.model
        return 1, 0
    if kind != DecisionKind.ROUTE:
        return fill_rows(state, kind, index, rows)
    able = 0
    for g in range(state.instances.shape[0]):
        if can_route(state, index, g):
            if able < rows.shape[0]:
                rows[able] = g
            able += 1
    count = min(able, rows.shape[0])
    return count, able - count


@inner
def may_pass(state: State, kind: int, g: int) -> bool:
    """May the last action be taken: idle, no prefetch, the turn kept? A request must be routed."""
    if kind == DecisionKind.TURN:
        return can_idle(state, g)
    return kind != DecisionKind.ROUTE


@inner
def choice_features(state: State, kind: int, index: int, row: int, out: Vector) -> None:
    """Features [F] of a row."""
    if kind == DecisionKind.ROUTE:
        route_features(state, index, row, out)
    else:
        row_features(state, index, row, out)


@inner
def route_features(state: State, r: int, g: int, out: Vector) -> None:
    """Instance g for request r: its slack there after the switch, its age, KV and prefill alone;
    what waits (4) and decodes (5) there, of any model; all else of its model as for a turn."""
    req, inst, now = state.requests[r], state.instances[g], state.pool[0].now_ns
    m = req.model
    row_features(state, g, m, out)
    per_ttft = 1.0 / state.models[m].ttft_ns
    switch_ns = 0 if inst.model == m else switch_left_ns(state, g, m, slot_of(state, g, m))
    slack = (next_deadline_ns(state, r) - now - switch_ns) * per_ttft
    out[0] = clip(slack, 0.0, 4.0)
    out[1] = 1.0 if slack < 0.0 else 0.0
    out[2] = clip(slack, -2.0, 2.0)
    out[3] = out[1]
    out[4] = min(inst.routed * 0.125, 4.0)
    out[5] = min(lists.count(state, lists.instance_list(state, g, lists.BATCH)) * 0.125, 4.0)
    out[6] = clip((now - req.arrival_ns) * per_ttft, 0.0, 4.0)
    tokens = context_tokens(state, r)
    out[14] = min(bytes_for(state, m, tokens) / capacity_bytes(state, m), 2.0)
    is_waiting = req.phase == RequestPhase.WAITING
    seconds = prefill_s(state.costs[inst.gpu_type, m], tokens) if is_waiting else 0.0
    out[15] = clip(seconds * 1e9 * per_ttft, 0.0, 2.0)


@inner
def least_routed(state: State, r: int) -> int:
    """The able instance that the fewest claimable requests were routed to (ties: the lowest)."""
    best = -1
    for g in range(state.instances.shape[0]):
        if can_route(state, r, g):
            if best < 0 or state.instances[g].routed < state.instances[best].routed:
                best = g
    return best
