"""Serving from a fixed placement: what `dedicated` and `muxserve` share.

A model is served where its weights were loaded before the start, and nowhere else; requests of a
model without a place are refused. While an instance is down, so are its models.
"""

from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from runtime.compiled import kernel
from runtime.core import FOREVER_NS, NONE, DecisionKind, EventKind, Phases
from runtime.emulator.loop import Signal, advance, answer
from runtime.emulator.tables import Sim
from runtime.pool.candidates import can_route, has_turn_work
from runtime.pool.state import Record, State
from runtime.tables import Field, Tables


class StaticMemory(Tables):
    """`home` [M]: each model's instance, or NONE; `residents` [G, S]: models by weight slot."""

    layout: ClassVar = {"home": Field(np.int64), "residents": Field(np.int64, 2)}
    home: npt.NDArray[np.int64]
    residents: npt.NDArray[np.int64]


def static_memory(state: State) -> StaticMemory:
    """The placement, as the driver left it in the weight slots."""
    residents = np.ascontiguousarray(state.slots["model"])
    home = np.full(len(state.models), NONE, np.int64)
    for g, s in np.argwhere(residents != NONE):
        home[residents[g, s]] = g
    return StaticMemory(home=home, residents=residents)


@kernel
def decide(state: State, kind: int, index: int, event: Record, memory: StaticMemory) -> None:
    """Requests go home; the residents with work take turns, each of its share of a TBT."""
    if kind == DecisionKind.ROUTE:
        home = memory.home[state.requests[index].model]
        event.instance = home if home != NONE and can_route(state, index, home) else NONE
        return
    if kind != DecisionKind.TURN:
        return
    slots, last, count = memory.residents.shape[1], 0, 0
    for s in range(slots):
        count += memory.residents[index, s] != NONE
        if memory.residents[index, s] == state.instances[index].model:
            last = s
    for i in range(1, slots + 1):
        m = memory.residents[index, (last + i) % slots]
        if m != NONE and has_turn_work(state, index, m, Phases.BOTH, NONE):
            event.kind, event.model = EventKind.TURN, m
            event.quota_ns = state.models[m].tbt_ns // count if count > 1 else FOREVER_NS
            return


@kernel
def drive(sim: Sim, memory: StaticMemory) -> int:
    while True:
        signal = advance(sim)
        if signal != Signal.DECISION:
            return signal
        control = sim.control[0]
        decide(sim.state, control.decision_kind, control.decision_index, sim.event[0], memory)
        answer(sim)


class Static:
    """The doors of a policy that serves from its placement."""

    __slots__ = ()

    def memory(self, state: State) -> StaticMemory:
        return static_memory(state)

    def decide(self, state: State, kind: int, index: int, event: Record, memory: Any) -> None:
        decide(state, kind, index, event, memory)

    def drive(self, sim: Any, memory: Any) -> int:
        return int(drive(sim, memory))
