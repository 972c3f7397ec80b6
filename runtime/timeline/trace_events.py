"""A timeline in the Trace Event format, which ui.perfetto.dev and chrome://tracing open.

A process for the queues, one per node with its instances, one for requests. An instance has up to
three tracks, because what they show overlaps: its turns and their parts; weights loaded ahead; KV
on its way out.
Times are whole microseconds from the timeline's start, so that rounded slices still nest.
"""

import gzip
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from runtime.core import NONE, RequestPhase
from runtime.pool.state import Record
from runtime.timeline.spans import SpanKind, Timeline

Event = dict[str, Any]

QUEUES = 1000  # process ids; node d has FIRST_NODE + d, requests the one after the last node
FIRST_NODE = 1001  # viewers give a track whose number is its process's the first place
TURNS, AHEAD, OUT = range(3)  # tracks of an instance
TRACKS = {TURNS: "instance {}", AHEAD: "instance {}: weights ahead", OUT: "instance {}: KV out"}
TRACK_OF = {SpanKind.LOAD_AHEAD: AHEAD, SpanKind.KV_OUT: OUT}
NAMES = {
    SpanKind.SWITCH: "weights",
    SpanKind.BLOCKED: "wait for memory",
    SpanKind.KV_IN: "KV in",
    SpanKind.PREFILL: "prefill",
    SpanKind.DECODE: "decode",
    SpanKind.DOWN: "down",
}
LOST = (RequestPhase.FAILED, RequestPhase.CANCELLED, RequestPhase.SHED)


def trace_events(timeline: Timeline, models: Sequence[str]) -> Iterator[Event]:
    """Metadata first, then all events in order of time."""
    yield from metadata(timeline)
    timed = [
        *slices(timeline, models),
        *flows(timeline),
        *requests(timeline, models),
        *counters(timeline),
    ]
    yield from sorted(timed, key=lambda event: event["ts"])


def write_trace(path: Path, events: Iterable[Event], about: dict[str, Any]) -> None:
    """gzip of one JSON object, an event per line; `about` says what was run."""
    with path.open("wb") as raw, gzip.GzipFile("", "wb", fileobj=raw, mtime=0) as file:
        head = json.dumps({"displayTimeUnit": "ms", "otherData": about})
        file.write(head[:-1].encode() + b', "traceEvents": [')
        for i, event in enumerate(events):
            file.write(b",\n" if i else b"\n")
            file.write(json.dumps(event, separators=(",", ":")).encode())
        file.write(b"\n]}\n")


def ts_us(timeline: Timeline, time_ns: int) -> int:
    """Within the timeline; what lies outside is moved to its edge."""
    return (min(max(time_ns, timeline.start_ns), timeline.end_ns) - timeline.start_ns + 500) // 1000


def track(g: int, which: int) -> int:
    return len(TRACKS) * g + which + 1


def requests_pid(timeline: Timeline) -> int:
    return FIRST_NODE + int(timeline.nodes.max()) + 1


def metadata(timeline: Timeline) -> Iterator[Event]:
    """Names and order of processes and tracks; a track without a slice is left out."""

    def about(what: str, pid: int, tid: int, **args: Any) -> Event:
        return {"ph": "M", "name": what, "pid": pid, "tid": tid, "args": args}

    titles = {QUEUES: "queues", requests_pid(timeline): "requests"}
    titles |= {FIRST_NODE + int(d): f"node {d}" for d in np.unique(timeline.nodes)}
    for pid in sorted(titles):
        yield about("process_name", pid, 0, name=titles[pid])
        yield about("process_sort_index", pid, 0, sort_index=pid)
    used = {(int(span["instance"]), track_of(span)) for span in timeline.spans}
    for g, which in sorted(used | {(g, TURNS) for g in range(len(timeline.nodes))}):
        pid, tid = FIRST_NODE + int(timeline.nodes[g]), track(g, which)
        yield about("thread_name", pid, tid, name=TRACKS[which].format(g))
        yield about("thread_sort_index", pid, tid, sort_index=tid)


def track_of(span: Record) -> int:
    return TRACK_OF.get(SpanKind(int(span["kind"])), TURNS)


def slices(timeline: Timeline, models: Sequence[str]) -> Iterator[Event]:
    """Complete events; a turn comes before the part that begins with it."""
    spans = timeline.spans
    for i in np.lexsort((spans["kind"] != SpanKind.TURN, spans["start_ns"])):
        span = spans[i]
        g, kind = int(span["instance"]), SpanKind(int(span["kind"]))
        ts = ts_us(timeline, int(span["start_ns"]))
        duration = ts_us(timeline, int(span["end_ns"])) - ts
        model = models[span["model"]] if span["model"] != NONE else "several models"
        if kind == SpanKind.INTERRUPT:
            yield interrupt(timeline, span, model)
        if duration == 0:
            continue
        yield {
            "ph": "X",
            "name": NAMES.get(kind, model),
            "cat": kind.name.lower(),
            "pid": FIRST_NODE + int(timeline.nodes[g]),
            "tid": track(g, track_of(span)),
            "ts": ts,
            "dur": duration,
            "args": slice_args(span, kind, model),
        }
        if kind == SpanKind.DOWN:
            where = {"pid": FIRST_NODE + int(timeline.nodes[g]), "tid": track(g, TURNS)}
            yield {"ph": "i", "name": f"instance {g} failed", "ts": ts, "s": "p", **where}


def interrupt(timeline: Timeline, span: Record, model: str) -> Event:
    """A mark on the turn that was to stop."""
    g = int(span["instance"])
    return {
        "ph": "i",
        "name": f"{'stopped' if span['n'] else 'not stopped'} for {model}",
        "cat": "interrupt",
        "pid": FIRST_NODE + int(timeline.nodes[g]),
        "tid": track(g, TURNS),
        "ts": ts_us(timeline, int(span["start_ns"])),
        "s": "t",
        "args": {"model": model, "decision": int(span["decision"])},
    }


def slice_args(span: Record, kind: SpanKind, model: str) -> dict[str, Any]:
    args: dict[str, Any] = {}
    if kind != SpanKind.DOWN:
        args["model"] = model
    if span["n"]:
        args |= {"requests": int(span["n"]), "tokens": int(span["tokens"])}
    if span["decision"] != NONE:
        args["decision"] = int(span["decision"])
    if span["is_cut"]:
        args["cut"] = True
    return args


def flows(timeline: Timeline) -> Iterator[Event]:
    """Arrows from turn to turn of a request, each at the first work done for it there."""
    services = timeline.services[np.argsort(timeline.services["id"], kind="stable")]
    shown = []
    for request, i in services:
        span = timeline.spans[i]
        ts = ts_us(timeline, int(span["start_ns"]))
        if ts_us(timeline, int(span["end_ns"])) > ts:
            shown.append((int(request), int(span["instance"]), ts))
    for i, (request, g, ts) in enumerate(shown):
        comes_on = i > 0 and shown[i - 1][0] == request
        goes_on = i + 1 < len(shown) and shown[i + 1][0] == request
        if comes_on or goes_on:
            where = {"pid": FIRST_NODE + int(timeline.nodes[g]), "tid": track(g, TURNS)}
            kind = {"ph": "t" if goes_on else "f", "bp": "e"} if comes_on else {"ph": "s"}
            yield {**kind, "name": "request", "cat": "request", "id": request, "ts": ts, **where}


def requests(timeline: Timeline, models: Sequence[str]) -> Iterator[Event]:
    """An asynchronous track per request, named after its model; marks for those that were lost."""
    pid = requests_pid(timeline)
    for life in timeline.lives:
        last_ns = int(life["end_ns"]) if life["end_ns"] != NONE else timeline.end_ns
        begin = ts_us(timeline, int(life["arrival_ns"]))
        end = ts_us(timeline, last_ns)
        first_ns = int(life["first_token_ns"])
        first = ts_us(timeline, first_ns) if first_ns != NONE else end
        own = {"local": str(life["id"])}  # local: a track of its process
        common = {"cat": "request", "id2": own, "pid": pid, "tid": 0}
        model, phase = models[life["model"]], RequestPhase(int(life["phase"]))
        args = {
            name: int(life[name])
            for name in ("id", "prompt_tokens", "emitted_tokens", "on_time_tokens")
        }
        yield {"ph": "b", "name": model, "ts": begin, **common, "args": args}
        for name, since, until in (("to first token", begin, first), ("tokens", first, end)):
            if until > since:
                yield {"ph": "b", "name": name, "ts": since, **common}
                yield {"ph": "e", "name": name, "ts": until, **common}
        yield {"ph": "e", "name": model, "ts": end, **common}
        if phase in LOST and timeline.start_ns <= last_ns < timeline.end_ns:
            mark = {"ph": "i", "name": f"request {phase.name.lower()}", "ts": end, "s": "p"}
            yield {**mark, "pid": QUEUES, "tid": 0, "args": {**args, "model": model}}


def counters(timeline: Timeline) -> Iterator[Event]:
    """Levels, where they changed. Viewers show a name and the key of its value together."""
    samples = timeline.samples
    levels: list[tuple[int, str, str, Any]] = [
        (QUEUES, "requests", "that no turn owns", samples.claimable),
        (QUEUES, "requests", "in flight", samples.in_flight),
    ]
    for d in np.unique(timeline.nodes).tolist():
        pid = FIRST_NODE + d
        levels.append((pid, "KV", "on GPUs (GB)", samples.kv_used_bytes[:, d] / 1e9))
        levels.append((pid, "KV", "in host memory (GB)", samples.host_kv_used_bytes[:, d] / 1e9))
    for pid, name, key, values in levels:
        rounded = np.round(values, 3)
        for i in np.flatnonzero(np.diff(rounded, prepend=np.nan)):
            ts = ts_us(timeline, int(samples.time_ns[i]))
            args = {key: rounded[i].item()}
            yield {"ph": "C", "name": name, "pid": pid, "tid": 0, "ts": ts, "args": args}
