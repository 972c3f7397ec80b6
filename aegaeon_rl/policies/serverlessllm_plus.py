"""`serverlessllm_plus`: ServerlessLLM with shortest-remaining-time-first and oracle output lengths.

As the SOSP'25 artifact simulates it. A request joins the first batch of its model with a place, in
order of workers, else opens one on the worker with the fewest batches. At each arrival the batches
of every worker are put in order: one with unfilled prompts by what their prefill takes, another by
what its oldest request still needs alone. The first batch runs, step by step; a switch loses the KV
of all others, which are then unfilled again. A request without a token after 15 s fails. Not as
there: a switch that was ordered is followed by one step, even if the order has changed meanwhile.
"""

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from aegaeon_rl.policies.batches import (
    CAPACITY,
    Groups,
    group_of,
    groups_on,
    new_groups,
    open_group,
    refresh,
)
from aegaeon_rl.policies.serverlessllm import QS, one_model_per_worker
from runtime.compiled import inner, kernel
from runtime.core import NONE, DecisionKind, EventKind, KvPlace, Phases, PoolSpec
from runtime.emulator.loop import Signal, advance, answer
from runtime.emulator.tables import Sim
from runtime.pool.candidates import can_route, has_turn_work
from runtime.pool.costs import prompt_s, step_s
from runtime.pool.memory import context_tokens
from runtime.pool.state import Record, State
from runtime.tables import Field, Tables

ONE_STEP_NS = 1  # a quota that the first decode step uses up


class PlusMemory(Tables):
    """Batches; `output_tokens` [R] by request id; by tag modulo CAPACITY: a batch's place in its
    worker's order (`remaining_s`, least first) and its oldest request (`oldest`, a slot)."""

    layout: ClassVar = {
        "groups": Groups,
        "output_tokens": Field(np.int32),
        "remaining_s": Field(np.float64),
        "oldest": Field(np.int64),
    }
    groups: Groups
    output_tokens: npt.NDArray[np.int32]
    remaining_s: npt.NDArray[np.float64]
    oldest: npt.NDArray[np.int64]


@inner
def route(state: State, r: int, event: Record, groups: Groups) -> None:
    m, best, fewest = state.requests[r].model, NONE, 0
    for g in range(state.instances.shape[0]):
        if not can_route(state, r, g):
            continue
        for i in range(groups.counters[0]):
            group = groups.groups[i]
            if group.instance == g and group.model == m and group.size < QS:
                event.instance, event.tag = g, group.tag
                return
        load = groups_on(groups, g)
        if best == NONE or load < fewest:
            best, fewest = g, load
    event.instance, event.tag = best, open_group(groups, m, best, Phases.BOTH)


@inner
def decode_left_s(state: State, r: int, cost: Record, memory: PlusMemory) -> float:
    """What the rest of r takes alone, at its mean context."""
    req, context = state.requests[r], context_tokens(state, r)
    end = req.prompt_tokens + memory.output_tokens[req.id]
    return step_s(cost, (context + end) // 2, 1) * (end - context)


@inner
def add_prompts(state: State, memory: PlusMemory, arrival: int, tag: int) -> None:
    """Sum the prefill of unfilled prompts per batch, and find each batch's oldest request.

    `arrival` is the request being routed, which carries no tag yet; it goes to batch `tag`.
    """
    for r in range(state.requests.shape[0]):
        req = state.requests[r]
        own = tag if r == arrival else req.tag
        if req.list == NONE or own == NONE:
            continue
        i = group_of(memory.groups, own)
        if i == NONE:
            continue
        group, k = memory.groups.groups[i], own % CAPACITY
        if memory.oldest[k] == NONE or req.id < state.requests[memory.oldest[k]].id:
            memory.oldest[k] = r
        if req.kv == KvPlace.NOWHERE:
            cost = state.costs[state.instances[group.instance].gpu_type, group.model]
            if memory.remaining_s[k] == 0.0:
                memory.remaining_s[k] = cost.prefill_s
            memory.remaining_s[k] += prompt_s(cost, req.prompt_tokens)


@inner
def order_batches(state: State, memory: PlusMemory, arrival: int, tag: int) -> None:
    """Set `remaining_s` of every batch."""
    groups = memory.groups
    for i in range(groups.counters[0]):
        k = groups.groups[i].tag % CAPACITY
        memory.remaining_s[k], memory.oldest[k] = 0.0, NONE
    add_prompts(state, memory, arrival, tag)
    for i in range(groups.counters[0]):
        group = groups.groups[i]
        k = group.tag % CAPACITY
        if memory.remaining_s[k] == 0.0 and memory.oldest[k] != NONE:
            cost = state.costs[state.instances[group.instance].gpu_type, group.model]
            memory.remaining_s[k] = decode_left_s(state, memory.oldest[k], cost, memory)


@inner
def first_turn(state: State, g: int, event: Record, memory: PlusMemory) -> None:
    """One step of the first batch on g that has work."""
    groups, best = memory.groups, NONE
    for i in range(groups.counters[0]):
        group = groups.groups[i]
        if group.instance != g:
            continue
        left_s = memory.remaining_s[group.tag % CAPACITY]
        if best != NONE and left_s >= memory.remaining_s[groups.groups[best].tag % CAPACITY]:
            continue
        if has_turn_work(state, g, group.model, Phases.BOTH, group.tag):
            best = i
    if best != NONE:
        group = groups.groups[best]
        event.kind, event.model, event.tag = EventKind.TURN, group.model, group.tag
        event.quota_ns = ONE_STEP_NS


@kernel
def decide(state: State, kind: int, index: int, event: Record, memory: PlusMemory) -> None:
    if kind == DecisionKind.ROUTE:
        refresh(state, memory.groups, False)
        route(state, index, event, memory.groups)
        order_batches(state, memory, index, event.tag)
    elif kind == DecisionKind.TURN:
        first_turn(state, index, event, memory)


@kernel
def drive(sim: Sim, memory: PlusMemory) -> int:
    while True:
        signal = advance(sim)
        if signal != Signal.DECISION:
            return signal
        control = sim.control[0]
        decide(sim.state, control.decision_kind, control.decision_index, sim.event[0], memory)
        answer(sim)


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerlessLlmPlus:
    """An oracle (runtime.protocol.Oracle): it knows the output lengths."""

    name: str = "serverlessllm_plus"

    def configure(self, pool: PoolSpec) -> PoolSpec:
        return replace(one_model_per_worker(pool), kv_survives_switch=False)

    def memory(self, state: State) -> PlusMemory:
        return PlusMemory(
            groups=new_groups(),
            output_tokens=np.zeros(0, np.int32),
            remaining_s=np.zeros(CAPACITY),
            oldest=np.full(CAPACITY, NONE, np.int64),
        )

    def foresee(self, memory: PlusMemory, output_tokens: npt.NDArray[np.int32]) -> None:
        memory.put("output_tokens", output_tokens)

    def decide(self, state: State, kind: int, index: int, event: Record, memory: Any) -> None:
        assert len(memory.output_tokens) > 0, "an oracle must foresee before it decides"
        decide(state, kind, index, event, memory)

    def drive(self, sim: Any, memory: Any) -> int:
        assert len(memory.output_tokens) == len(sim.arrivals.time_ns), "an oracle must foresee"
        return int(drive(sim, memory))
