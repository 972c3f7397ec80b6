"""The decision log: one row per answer of the policy, and what came of it."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from runtime.core import FOREVER_NS, NONE, NS, EventKind, Phases
from runtime.pool.state import Table
from runtime.timeline.spans import PARTS, SpanKind, Timeline

ANSWERS = (
    EventKind.TURN,
    EventKind.IDLE,
    EventKind.PREFETCH,
    EventKind.ROUTE,
    EventKind.INTERRUPT,
)
Mask = npt.NDArray[np.bool_]


def decision_log(timeline: Timeline, journal: Table, models: Sequence[str]) -> pa.Table:
    """Decisions made within the timeline, in order; what does not apply to one is null.

    `decision` is its row of the journal, as in the timeline's spans. `end_s`: when the turn, or the
    load of a prefetch, ended; null while it lasts. `requests`: how many the turn prefilled or
    decoded; `tokens`: what it emitted. `stops`: did an interrupt stop the turn for `model`.
    `is_cut`: the instance failed, or the load was dropped.
    """
    rows = np.flatnonzero(np.isin(journal["kind"], ANSWERS))
    at_ns = journal["time_ns"][rows]
    rows = rows[(at_ns >= timeline.start_ns) & (at_ns < timeline.end_ns)]
    answers = journal[rows]
    is_turn, is_route = answers["kind"] == EventKind.TURN, answers["kind"] == EventKind.ROUTE
    chosen = models_of(timeline, answers, is_route)
    columns = answer_columns(answers, rows, chosen, models)
    return pa.table({**columns, **outcomes(timeline, rows, is_turn)})


def answer_columns(
    answers: Table,
    rows: npt.NDArray[np.int64],
    chosen: npt.NDArray[np.int64],
    models: Sequence[str],
) -> dict[str, Any]:
    """What the policy answered: EVENTs, their rows of the journal, the model of each."""
    is_turn, is_route = answers["kind"] == EventKind.TURN, answers["kind"] == EventKind.ROUTE
    return {
        "decision": rows,
        "time_s": answers["time_ns"] / NS,
        "kind": named(answers["kind"], {kind: kind.name.lower() for kind in ANSWERS}),
        "instance": present(answers["instance"]),
        "request": nullable(answers["id"], is_route),
        "model": named(chosen, dict(enumerate(models))),
        "phases": named(
            np.where(is_turn, answers["phases"], NONE),
            {phases: phases.name.lower() for phases in Phases},
        ),
        "quota_s": quota_s(answers["quota_ns"], is_turn),
        "tag": present(answers["tag"]),
        "joins": nullable(answers["joins"] != 0, is_turn),
        "stops": nullable(answers["n"] != 0, answers["kind"] == EventKind.INTERRUPT),
        "is_fallback": answers["is_fallback"] != 0,
    }


def models_of(timeline: Timeline, answers: Table, is_route: Mask) -> npt.NDArray[np.int64]:
    """The model of each decision; of a route it is that of its request."""
    by_id = timeline.lives[np.argsort(timeline.lives["id"])]
    chosen = answers["model"].copy()
    chosen[is_route] = by_id["model"][np.searchsorted(by_id["id"], answers["id"][is_route])]
    return chosen


def outcomes(timeline: Timeline, rows: npt.NDArray[np.int64], is_turn: Mask) -> dict[str, Any]:
    """What the spans say of the decisions in `rows`, ascending."""
    whole = timeline.of(SpanKind.TURN, SpanKind.LOAD_AHEAD)
    span = whole[np.argsort(whole["decision"])]
    at = np.minimum(np.searchsorted(span["decision"], rows), max(0, len(span) - 1))
    is_known = span["decision"][at] == rows if len(span) else np.zeros(len(rows), np.bool_)

    def of(name: str) -> Any:
        return span[name][at] if len(span) else np.zeros(len(rows), np.int64)

    has_ended = is_known & (of("end_ns") < timeline.end_ns)
    columns: dict[str, Any] = {
        "end_s": nullable(of("end_ns") / NS, has_ended),
        "is_cut": nullable(of("is_cut") != 0, has_ended),
        "requests": nullable(of("n"), is_known & is_turn),
        "tokens": nullable(of("tokens"), is_known & is_turn),
    }
    for kind in PARTS:
        parts = timeline.of(kind)
        spent_ns = np.zeros(len(rows), np.int64)
        place = np.searchsorted(rows, parts["decision"])
        is_in = np.isin(parts["decision"], rows)
        np.add.at(spent_ns, place[is_in], (parts["end_ns"] - parts["start_ns"])[is_in])
        columns[f"{kind.name.lower()}_s"] = nullable(spent_ns / NS, is_turn)
    return columns


def nullable(values: npt.NDArray[Any], is_present: Mask) -> pa.Array:
    return pa.array(values, mask=~is_present)


def present(values: npt.NDArray[np.int64]) -> pa.Array:
    """NONE becomes null."""
    return nullable(values, values != NONE)


def quota_s(quota_ns: npt.NDArray[np.int64], is_turn: Mask) -> pa.Array:
    """Seconds; a quota that never ends is infinite."""
    return nullable(np.where(quota_ns >= FOREVER_NS, np.inf, quota_ns / NS), is_turn)


def named(values: npt.NDArray[np.int64], names: dict[Any, str]) -> pa.Array:
    """Names in place of numbers, as a dictionary column; a number without a name becomes null."""
    keys = sorted(names)
    at = np.minimum(np.searchsorted(keys, values), len(keys) - 1)
    codes = pa.array(at.astype(np.int32), mask=np.array(keys)[at] != values)
    return pa.DictionaryArray.from_arrays(codes, [names[key] for key in keys])
