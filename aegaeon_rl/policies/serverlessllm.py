"""`serverlessllm`: request-level scaling. A worker serves one model's batch until it drains.

As the SOSP'25 artifact simulates it: not disaggregated, prefill first, at most QS requests per
model batch; a new batch goes to the least recently used free worker, else to the one with the
fewest requests; a request without a token after TIMEOUT_S fails.
"""

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from aegaeon_rl.policies.batches import Groups, new_groups, open_group, refresh, requests_on
from runtime.compiled import inner, kernel
from runtime.core import DecisionKind, Dispatch, EventKind, Phases, PoolSpec, PrefetchMode
from runtime.emulator.loop import Signal, advance, answer
from runtime.emulator.tables import Sim
from runtime.pool.candidates import can_route, has_turn_work
from runtime.pool.state import Record, State
from runtime.tables import Field, Tables

QS = 4
TIMEOUT_S = 15.0


class ServerlessMemory(Tables):
    """Batches, and when each worker [G] was last given one (a counter)."""

    layout: ClassVar = {"groups": Groups, "used": Field(np.int64)}
    groups: Groups
    used: npt.NDArray[np.int64]


@inner
def route(state: State, r: int, event: Record, memory: ServerlessMemory) -> None:
    """A batch of its model with room; else the free worker idle for longest, else the emptiest."""
    groups, m = memory.groups, state.requests[r].model
    for i in range(groups.counters[0]):
        group = groups.groups[i]
        if group.model == m and group.size < QS and can_route(state, r, group.instance):
            event.instance, event.tag = group.instance, group.tag
            return
    best, fewest = event.instance, 1 << 60
    for g in range(state.instances.shape[0]):
        if not can_route(state, r, g):
            continue
        load = requests_on(groups, g)
        if load < fewest or (load == fewest and memory.used[g] < memory.used[best]):
            best, fewest = g, load
    event.instance = best
    event.tag = open_group(groups, m, best, Phases.DECODE)
    memory.used[best] = event.tag


@kernel
def decide(state: State, kind: int, index: int, event: Record, memory: ServerlessMemory) -> None:
    refresh(state, memory.groups)
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


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerlessLlm:
    name: str = "serverlessllm"

    def configure(self, pool: PoolSpec) -> PoolSpec:
        return replace(
            pool,
            roles=(),
            dispatch=Dispatch.PUSH,
            prefetch=PrefetchMode.NONE,
            ttft_timeout_s=TIMEOUT_S,
        )

    def memory(self, state: State) -> ServerlessMemory:
        return ServerlessMemory(groups=new_groups(), used=np.zeros(len(state.instances), np.int64))

    def decide(self, state: State, kind: int, index: int, event: Record, memory: Any) -> None:
        decide(state, kind, index, event, memory)

    def drive(self, sim: Any, memory: Any) -> int:
        return int(drive(sim, memory))
