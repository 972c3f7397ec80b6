"""The agenda: which instance's timer is due first, as a tournament over the instances.

Node i of the tree holds the winner of nodes 2i and 2i + 1; leaf `size + g` is instance g. Times are
compared first, then kinds of events, then instances: ties are defined.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

from runtime.compiled import inner
from runtime.core import FOREVER_NS, NONE, EventKind
from runtime.pool.state import Table

NOTHING_DUE = 1 << 20  # a kind that loses every tie


def new_agenda(instances: int) -> npt.NDArray[np.int64]:
    """A tree over `instances` leaves, none of them due; 0 wins everywhere."""
    size = 1 << max(0, instances - 1).bit_length()
    agenda = np.full(2 * size, NONE, np.int64)
    agenda[size : size + instances] = np.arange(instances)
    for i in range(size - 1, 0, -1):
        agenda[i] = agenda[2 * i]
    return agenda


@inner
def set_due(timer: Any) -> None:
    """The earliest of an instance's three timers; of two at once, the lower kind of event."""
    timer.due_ns, timer.due_kind = timer.out_ns, EventKind.KV_OUT_DONE.value
    if is_earlier(timer.in_ns, timer.in_kind, timer):
        timer.due_ns, timer.due_kind = timer.in_ns, timer.in_kind
    if is_earlier(timer.compute_ns, timer.kind, timer):
        timer.due_ns, timer.due_kind = timer.compute_ns, timer.kind
    if timer.due_ns == FOREVER_NS:
        timer.due_kind = NOTHING_DUE


@inner
def is_earlier(time_ns: int, kind: int, timer: Any) -> bool:
    return bool(time_ns < timer.due_ns or (time_ns == timer.due_ns and kind < timer.due_kind))


@inner
def wins(timers: Table, g: int, other: int) -> bool:
    """Is g, the lower of the two, due first? NONE never is."""
    if other == NONE:
        return True
    a, b = timers[g], timers[other]
    return bool(a.due_ns < b.due_ns or (a.due_ns == b.due_ns and a.due_kind <= b.due_kind))


@inner
def schedule(timers: Table, agenda: npt.NDArray[np.int64], g: int) -> None:
    """Note that a timer of g may have changed."""
    timer = timers[g]
    due_ns, due_kind = timer.due_ns, timer.due_kind
    set_due(timer)
    if timer.due_ns == due_ns and timer.due_kind == due_kind:
        return
    node = (agenda.shape[0] // 2 + g) // 2
    while node > 0:
        left, right = agenda[2 * node], agenda[2 * node + 1]
        winner = left if wins(timers, left, right) else right
        if winner == agenda[node] and winner != g:
            return
        agenda[node] = winner
        node //= 2
