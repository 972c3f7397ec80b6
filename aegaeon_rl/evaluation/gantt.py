"""Which model each GPU ran when, read off the journal of a run."""

from typing import NamedTuple

from runtime.core import NONE, NS, EventKind
from runtime.pool.state import Table


class Bar(NamedTuple):
    """A turn on one GPU: weights and KV until `work_s`, then prefill and decode until `end_s`."""

    instance: int
    model: int
    start_s: float
    work_s: float
    end_s: float


def bars(journal: Table, start_s: float, end_s: float) -> list[Bar]:
    """Turns that overlap [start_s, end_s), in order of their end; cut to it at both sides."""
    open_turns: dict[int, Bar] = {}
    done: list[Bar] = []
    relevant = (EventKind.TURN, EventKind.SWITCHED, EventKind.TURN_ENDED, EventKind.INSTANCE_FAILED)
    for event in journal:
        if event["kind"] not in relevant:
            continue
        instance, now_s = int(event["instance"]), float(event["time_ns"]) / NS
        if event["kind"] == EventKind.TURN:
            open_turns[instance] = Bar(instance, int(event["model"]), now_s, NONE, now_s)
        elif instance in open_turns:
            bar = open_turns[instance]
            if event["kind"] == EventKind.SWITCHED:
                open_turns[instance] = bar._replace(work_s=now_s)
            else:
                done.append(_closed(open_turns.pop(instance), now_s))
    done += [_closed(bar, end_s) for bar in open_turns.values()]
    return [
        _cut(bar, start_s, end_s) for bar in done if bar.start_s < end_s and bar.end_s > start_s
    ]


def _closed(bar: Bar, end_s: float) -> Bar:
    work_s = bar.work_s if bar.work_s >= 0 else end_s
    return bar._replace(work_s=min(work_s, end_s), end_s=end_s)


def _cut(bar: Bar, start_s: float, end_s: float) -> Bar:
    def clip(at_s: float) -> float:
        return min(max(at_s, start_s), end_s)

    return bar._replace(start_s=clip(bar.start_s), work_s=clip(bar.work_s), end_s=clip(bar.end_s))
