"""Labelled groups of requests of one model on one instance, in order of creation.

Push policies keep their prefill groups and decode batches here; a request carries its group's tag.
Who is in a group is never stored: it is read off the pool, so the two cannot disagree. The SOSP'25
artifact's books differ in two points: a request leaves its group when its prefill is ordered, and a
batch that has run empty stays on its instance until the round ends.
"""

from typing import ClassVar

import numpy as np
import numpy.typing as npt

from runtime.compiled import inner
from runtime.core import NONE, Phases, RequestPhase, Stage
from runtime.pool import lists
from runtime.pool.memory import context_tokens
from runtime.pool.state import Record, State, Table
from runtime.tables import Field, Tables

GROUP = np.dtype(
    [
        ("tag", "i8"),
        ("model", "i8"),
        ("instance", "i8"),
        ("phase", "i8"),  # Phases.PREFILL or DECODE
        ("quota_ns", "i8"),  # decode: what is left of this round's share
        ("size", "i8"),  # members and their context, as of the last `refresh`
        ("context_tokens", "i8"),
    ],
    align=True,
)
CAPACITY = 4096


class Groups(Tables):
    """Live groups [0, count) in order of creation; `counters` = (count, last tag)."""

    layout: ClassVar = {"groups": Field(GROUP), "counters": Field(np.int64)}
    groups: Table
    counters: npt.NDArray[np.int64]


def new_groups() -> Groups:
    return Groups(groups=np.zeros(CAPACITY, GROUP), counters=np.zeros(2, np.int64))


@inner
def refresh(state: State, memory: Groups, is_artifact: bool) -> None:
    """Count the members of every group, in one pass over the requests; forget the empty groups."""
    for i in range(memory.counters[0]):
        memory.groups[i].size, memory.groups[i].context_tokens = 0, 0
    routing = lists.routing_list(state)
    for r in range(state.requests.shape[0]):
        req = state.requests[r]
        if req.tag == NONE or req.list == NONE or req.list == routing:
            continue
        i = group_of(memory, req.tag)
        if i != NONE and is_member(state, r, memory.groups[i], is_artifact):
            memory.groups[i].size += 1
            memory.groups[i].context_tokens += context_tokens(state, r)
    kept = 0
    for i in range(memory.counters[0]):
        if memory.groups[i].size > 0 or (is_artifact and in_round(state, memory.groups[i])):
            memory.groups[kept] = memory.groups[i]
            kept += 1
    memory.counters[0] = kept


@inner
def in_round(state: State, group: Record) -> bool:
    """Is it a batch of an instance that still has work?"""
    stage = state.instances[group.instance].stage
    return bool(group.phase == Phases.DECODE and stage != Stage.IDLE and stage != Stage.DOWN)


@inner
def forget_empty(memory: Groups, g: int) -> None:
    """Drop the batches on g that have run empty."""
    kept = 0
    for i in range(memory.counters[0]):
        if memory.groups[i].size > 0 or memory.groups[i].instance != g:
            memory.groups[kept] = memory.groups[i]
            kept += 1
    memory.counters[0] = kept


@inner
def group_of(memory: Groups, tag: int) -> int:
    """The place of a live group, or NONE; tags rise with creation."""
    low, high = 0, memory.counters[0]
    while low < high:
        middle = (low + high) // 2
        if memory.groups[middle].tag < tag:
            low = middle + 1
        else:
            high = middle
    is_found = low < memory.counters[0] and memory.groups[low].tag == tag
    return low if is_found else NONE


@inner
def is_member(state: State, r: int, group: Record, is_artifact: bool) -> bool:
    """A prefill group lets go of a request with its first token, under the artifact's rules when
    its turn comes; a batch keeps it to its end."""
    req = state.requests[r]
    if group.phase != Phases.PREFILL:
        return True
    queue = lists.instance_list(state, group.instance, lists.PREFILL)
    if req.list == queue:
        return not (is_artifact and lists.first(state, queue) == r)
    return bool(req.phase == RequestPhase.WAITING)


@inner
def open_group(memory: Groups, m: int, g: int, phase: int) -> int:
    """Append a group; returns its tag. A full table reuses the newest group's place."""
    i = min(memory.counters[0], CAPACITY - 1)
    memory.counters[0] = i + 1
    memory.counters[1] += 1
    group = memory.groups[i]
    group.tag, group.model, group.instance, group.phase = memory.counters[1], m, g, phase
    group.quota_ns, group.size, group.context_tokens = 0, 0, 0
    return memory.counters[1]


@inner
def groups_on(memory: Groups, g: int) -> int:
    """How many groups wait or run on instance g."""
    total = 0
    for i in range(memory.counters[0]):
        if memory.groups[i].instance == g:
            total += 1
    return total


@inner
def requests_on(memory: Groups, g: int) -> int:
    """How many requests the groups on instance g hold."""
    total = 0
    for i in range(memory.counters[0]):
        if memory.groups[i].instance == g:
            total += memory.groups[i].size
    return total


@inner
def needs_prefill(state: State, r: int) -> bool:
    return bool(state.requests[r].phase == RequestPhase.WAITING)


@inner
def next_model_on(memory: Groups, g: int, m: int) -> int:
    """The model of the first group on g that is not m, or NONE."""
    for i in range(memory.counters[0]):
        if memory.groups[i].instance == g and memory.groups[i].model != m:
            return memory.groups[i].model
    return NONE
