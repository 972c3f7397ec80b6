"""Doubly linked lists threaded through the request table: each live request is in exactly one."""

from runtime.compiled import inner
from runtime.core import NONE
from runtime.pool.state import LISTS_PER_INSTANCE, State

PREFILL, BATCH, INCOMING, OUTGOING = range(LISTS_PER_INSTANCE)


@inner
def waiting_list(state: State, model: int) -> int:
    return model


@inner
def ready_list(state: State, model: int) -> int:
    return state.models.shape[0] + model


@inner
def open_list(state: State, model: int, part: int) -> int:
    """Part 0: what waits for a prefill; 1: what is ready to decode."""
    return part * state.models.shape[0] + model


@inner
def instance_list(state: State, instance: int, which: int) -> int:
    return 2 * state.models.shape[0] + LISTS_PER_INSTANCE * instance + which


@inner
def routing_list(state: State) -> int:
    return state.lists.shape[0] - 1


@inner
def count(state: State, lst: int) -> int:
    return state.lists[lst].count


@inner
def first(state: State, lst: int) -> int:
    return state.lists[lst].head


@inner
def insert_after(state: State, lst: int, anchor: int, r: int) -> None:
    """Put `r` behind `anchor`; NONE: at the head."""
    requests, head = state.requests, state.lists[lst]
    following = head.head if anchor == NONE else requests[anchor].next
    requests[r].prev = anchor
    requests[r].next = following
    requests[r].list = lst
    if anchor == NONE:
        head.head = r
    else:
        requests[anchor].next = r
    if following == NONE:
        head.tail = r
    else:
        requests[following].prev = r
    head.count += 1


@inner
def append(state: State, lst: int, r: int) -> None:
    insert_after(state, lst, state.lists[lst].tail, r)


@inner
def insert_by_arrival(state: State, lst: int, r: int) -> None:
    """Keep the list in order of `comes_before`, searched from the end that r is nearer to."""
    requests, head = state.requests, state.lists[lst]
    anchor, arrival_ns = head.tail, requests[r].arrival_ns
    if (
        anchor != NONE
        and 2 * arrival_ns < requests[anchor].arrival_ns + requests[head.head].arrival_ns
    ):
        following, anchor = head.head, NONE
        while following != NONE and comes_before(state, following, r):
            anchor, following = following, requests[following].next
    else:
        while anchor != NONE and comes_before(state, r, anchor):
            anchor = requests[anchor].prev
    insert_after(state, lst, anchor, r)


@inner
def comes_before(state: State, r: int, other: int) -> bool:
    a, b = state.requests[r], state.requests[other]
    if a.priority != b.priority:
        return bool(a.priority > b.priority)
    if a.arrival_ns != b.arrival_ns:
        return bool(a.arrival_ns < b.arrival_ns)
    return bool(a.id < b.id)


@inner
def remove(state: State, r: int) -> None:
    requests = state.requests
    before, after = requests[r].prev, requests[r].next
    head = state.lists[requests[r].list]
    if before == NONE:
        head.head = after
    else:
        requests[before].next = after
    if after == NONE:
        head.tail = before
    else:
        requests[after].prev = before
    head.count -= 1
    requests[r].list = NONE
