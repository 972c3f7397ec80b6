"""The tables of a timeline. Times are ns of the pool's clock; `decision` is a row of the journal.

Letters: G instances, D nodes, P samples.
"""

from enum import IntEnum
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from runtime.pool.state import Table


class SpanKind(IntEnum):
    TURN = 0  # order to end; holds the next five, which never overlap
    SWITCH = 1  # order to weights in place, on a turn that changes the model; may take no time
    BLOCKED = 2  # KV must leave first
    KV_IN = 3
    PREFILL = 4
    DECODE = 5  # a run of steps
    KV_OUT = 6  # beside turns: one group of requests on its way to the host
    LOAD_AHEAD = 7  # beside turns: a prefetch, until its weights are in place or dropped
    DOWN = 8  # the instance has failed
    INTERRUPT = 9  # an instant: its turn was to stop for `model`; n = 1: it did, 0: it was kept


WORK = (SpanKind.PREFILL, SpanKind.DECODE)
PARTS = (SpanKind.SWITCH, SpanKind.BLOCKED, SpanKind.KV_IN, *WORK)  # of a turn

SPAN = np.dtype(
    [
        ("start_ns", "i8"),
        ("end_ns", "i8"),
        ("tokens", "i8"),  # emitted; of KV moves: context moved
        ("decision", "i8"),  # the TURN or PREFETCH it belongs to, or NONE
        ("n", "i8"),  # requests
        ("instance", "i8"),
        ("model", "i8"),  # NONE: DOWN, or KV of more than one model
        ("kind", "i8"),
        ("is_cut", "i8"),  # it failed, was dropped, or goes on past the timeline's end
    ],
    align=True,
)
LIFE = np.dtype(  # of a request
    [
        ("id", "i8"),
        ("arrival_ns", "i8"),
        ("first_token_ns", "i8"),  # NONE: none yet
        ("last_token_ns", "i8"),
        ("end_ns", "i8"),  # NONE: it lives on
        ("model", "i8"),
        ("prompt_tokens", "i8"),
        ("emitted_tokens", "i8"),
        ("on_time_tokens", "i8"),
        ("phase", "i8"),
    ],
    align=True,
)
SERVICE = np.dtype(  # the first span of work that a turn did for a request
    [("id", "i8"), ("span", "i8")], align=True
)


class Samples(NamedTuple):
    """Levels at instants, each held since the last event before it."""

    time_ns: npt.NDArray[np.int64]  # [P]
    claimable: npt.NDArray[np.int64]  # [P] requests that no turn owns
    in_flight: npt.NDArray[np.int64]  # [P]
    kv_used_bytes: npt.NDArray[np.int64]  # [P, D] on the devices of a node
    host_kv_used_bytes: npt.NDArray[np.int64]  # [P, D]


class Timeline(NamedTuple):
    """What overlaps [start_ns, end_ns). Spans are whole, not cut to it, in order of their end."""

    start_ns: int
    end_ns: int
    nodes: npt.NDArray[np.int64]  # [G] the node of each instance
    spans: Table
    lives: Table  # in order of arrival
    services: Table
    samples: Samples

    def of(self, *kinds: SpanKind) -> Any:
        """Spans of these kinds, as a copy."""
        return self.spans[np.isin(self.spans["kind"], kinds)]
