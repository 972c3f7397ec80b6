"""What comes from outside: instances that fail and return, clients that leave.

A script is an EVENT table of CANCEL (id), INSTANCE_FAILED and INSTANCE_JOINED (instance), ordered
by time and kind. An event that finds nothing to do (a cancelled request has ended, an instance is
down already) leaves no trace. Drawn times are exponential, each from the seed and its own counter.
"""

from collections.abc import Iterable
from math import log

import numpy as np

from runtime.core import NONE, NS, EventKind, PoolSpec
from runtime.emulator.noise import uniform, uniforms
from runtime.emulator.tables import Arrivals
from runtime.pool.state import EVENT, Table

KINDS = (EventKind.CANCEL, EventKind.INSTANCE_FAILED, EventKind.INSTANCE_JOINED)
FAILURES, PATIENCE = 1 << 40, 1 << 41  # streams of draws, apart from those of stages


def script_of(rows: Iterable[tuple[float, EventKind, int]]) -> Table:
    """A script from (time in s, kind, request id or instance). Raises ValueError."""
    rows = tuple(rows)
    events = np.zeros(len(rows), EVENT)
    for name in ("id", "tag", "instance", "model", "request"):
        events[name] = NONE
    for event, (time_s, kind, which) in zip(events, rows, strict=True):
        if kind not in KINDS or time_s < 0 or which < 0:
            raise ValueError(f"script: {(time_s, kind, which)}")
        event["time_ns"], event["kind"] = round(time_s * NS), kind
        event["id" if kind == EventKind.CANCEL else "instance"] = which
    return ordered(events)


def ordered(script: Table) -> Table:
    """By time, then kind, then as given."""
    return script[np.lexsort((script["kind"], script["time_ns"]))]


def outside(pool: PoolSpec, arrivals: Arrivals, given: Table | None = None) -> Table:
    """The script of a run: what the pool's rates draw, and what is given besides."""
    if len(arrivals.time_ns) == 0:
        return np.zeros(0, EVENT)
    parts = [failures(pool, int(arrivals.time_ns[-1])), departures(pool, arrivals)]
    if given is not None:
        if (given["instance"] >= pool.instances).any() or (
            given["id"] >= len(arrivals.time_ns)
        ).any():
            raise ValueError("script: it names an instance or a request that does not exist")
        parts.append(given)
    return ordered(np.concatenate(parts))


def failures(pool: PoolSpec, end_ns: int) -> Table:
    """Each instance works for a while of mean mtbf_s, then is away for one of mean mttr_s.

    No failure comes after `end_ns`; every one is followed by a return.
    """
    rows: list[tuple[float, EventKind, int]] = []
    for g in range(pool.instances if pool.mtbf_s > 0 else 0):
        time_s, n = 0.0, 0
        while True:
            time_s -= pool.mtbf_s * log(uniform(pool.seed, FAILURES + g, n))
            if time_s * NS > end_ns:
                break
            rows.append((time_s, EventKind.INSTANCE_FAILED, g))
            time_s -= pool.mttr_s * log(uniform(pool.seed, FAILURES + g, n + 1))
            rows.append((time_s, EventKind.INSTANCE_JOINED, g))
            n += 2
    return script_of(rows)


def departures(pool: PoolSpec, arrivals: Arrivals) -> Table:
    """Every client leaves after an exponential time of mean cancel_after_s."""
    if pool.cancel_after_s <= 0:
        return np.zeros(0, EVENT)
    events = np.zeros(len(arrivals.time_ns), EVENT)
    for name in ("tag", "instance", "model", "request"):
        events[name] = NONE
    drawn = np.zeros(len(events))
    uniforms(pool.seed, PATIENCE, drawn)
    patience_ns = np.rint(-pool.cancel_after_s * NS * np.log(drawn)).astype(np.int64)
    events["id"], events["kind"] = np.arange(len(events)), EventKind.CANCEL
    events["time_ns"] = arrivals.time_ns + patience_ns
    return events
