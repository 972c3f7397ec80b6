"""`serverlessllm`: request-level scaling. A worker serves one model's batch until it drains.

As the SOSP'25 artifact simulates it: not disaggregated, one model per worker, all waiting prompts
of a batch in one prefill call before any decode step. A batch has QS places. A request goes to the
worker with the fewest requests in a last batch of its model (an idle worker's last batch is an
empty one of the model it holds). When those batches have no place left it opens a batch on a worker
that has never served, else on the one whose last step ended first, idle or not: while a worker
loads weights, that is often the same one. A request without a token after TIMEOUT_S fails; there at
the next arrival, here at once.
"""

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from aegaeon_rl.policies.batches import Groups, new_groups, open_group, refresh
from runtime.compiled import inner, kernel
from runtime.core import (
    NONE,
    DecisionKind,
    Dispatch,
    EventKind,
    Phases,
    PoolSpec,
    PrefetchMode,
    Stage,
)
from runtime.emulator.loop import Signal, advance, answer
from runtime.emulator.tables import Sim
from runtime.pool.candidates import can_route, has_turn_work
from runtime.pool.state import Record, State
from runtime.tables import Field, Tables

QS = 4
TIMEOUT_S = 15.0
WHOLE_BATCH = 1_000_000_000  # prefill budget, tokens: the batch's prompts in one call


class ServerlessMemory(Tables):
    """Batches, and when each worker [G] was last given one (a counter)."""

    layout: ClassVar = {"groups": Groups, "used": Field(np.int64)}
    groups: Groups
    used: npt.NDArray[np.int64]


@inner
def last_batch(groups: Groups, g: int) -> int:
    """The newest batch on g, or NONE."""
    for i in range(groups.counters[0] - 1, -1, -1):
        if groups.groups[i].instance == g:
            return i
    return NONE


@inner
def last_step_ns(state: State, g: int) -> int:
    """When the last prefill or decode step on g ended; a worker at work counts as just now."""
    inst = state.instances[g]
    if inst.model == NONE:
        return NONE
    if inst.stage == Stage.PREFILL or inst.stage == Stage.DECODE:
        return state.pool[0].now_ns
    return inst.served_ns


@inner
def route(state: State, r: int, event: Record, memory: ServerlessMemory) -> None:
    groups, m = memory.groups, state.requests[r].model
    places, own, own_size = 0, NONE, 0
    other, other_ns = NONE, 0
    for g in range(state.instances.shape[0]):
        if not can_route(state, r, g):
            continue
        i = last_batch(groups, g)
        model = state.instances[g].model if i == NONE else groups.groups[i].model
        size = 0 if i == NONE else groups.groups[i].size
        if model == m:
            places += max(0, QS - size)
            if own == NONE or size < own_size:
                own, own_size = g, size
            continue
        ended_ns = NONE if model == NONE else last_step_ns(state, g)
        is_earlier = other == NONE or ended_ns < other_ns
        if is_earlier or (ended_ns == other_ns and memory.used[g] < memory.used[other]):
            other, other_ns = g, ended_ns
    opens = own == NONE or (places == 0 and other != NONE)
    event.instance = other if opens else own
    i = last_batch(groups, event.instance)
    if opens or i == NONE:
        event.tag = open_group(groups, m, event.instance, Phases.BOTH)
        memory.used[event.instance] = event.tag
    else:
        event.tag = groups.groups[i].tag


@kernel
def decide(state: State, kind: int, index: int, event: Record, memory: ServerlessMemory) -> None:
    refresh(state, memory.groups, False)
    if kind == DecisionKind.ROUTE:
        route(state, index, event, memory)
    elif kind == DecisionKind.TURN:
        groups = memory.groups
        for i in range(groups.counters[0]):
            group = groups.groups[i]
            if group.instance == index:
                if has_turn_work(state, index, group.model, Phases.BOTH, group.tag):
                    event.kind, event.model, event.tag = EventKind.TURN, group.model, group.tag
                    return


@kernel
def drive(sim: Sim, memory: ServerlessMemory) -> int:
    while True:
        signal = advance(sim)
        if signal != Signal.DECISION:
            return signal
        control = sim.control[0]
        decide(sim.state, control.decision_kind, control.decision_index, sim.event[0], memory)
        answer(sim)


def one_model_per_worker(pool: PoolSpec) -> PoolSpec:
    """The pool as a request-level system sees it."""
    return replace(
        pool,
        roles=(),
        dispatch=Dispatch.PUSH,
        prefetch=PrefetchMode.NONE,
        weight_slots=1,
        prefill_budget_tokens=WHOLE_BATCH,
        ttft_timeout_s=TIMEOUT_S,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerlessLlm:
    name: str = "serverlessllm"

    def configure(self, pool: PoolSpec) -> PoolSpec:
        return one_model_per_worker(pool)

    def memory(self, state: State) -> ServerlessMemory:
        return ServerlessMemory(groups=new_groups(), used=np.zeros(len(state.instances), np.int64))

    def decide(self, state: State, kind: int, index: int, event: Record, memory: Any) -> None:
        decide(state, kind, index, event, memory)

    def drive(self, sim: Any, memory: Any) -> int:
        return int(drive(sim, memory))
