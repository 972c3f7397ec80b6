"""The trace keeps the rules of the Trace Event format, and tells what its timeline tells."""

import gzip
import json
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from runtime.core import NONE, NS, EventKind, RequestPhase
from runtime.timeline.replay import timeline
from runtime.timeline.spans import SpanKind
from runtime.timeline.trace_events import (
    FIRST_NODE,
    OUT,
    QUEUES,
    TURNS,
    trace_events,
    track,
    write_trace,
)

RUNS = pytest.mark.parametrize(
    "name", ["index", "aegaeon", "serverlessllm", "muxserve", "cut", "shed", "faults"]
)
REQUIRED = {
    "M": {"name", "pid", "tid", "args"},
    "X": {"name", "cat", "pid", "tid", "ts", "dur"},
    "b": {"name", "cat", "id2", "pid", "tid", "ts"},
    "e": {"name", "cat", "id2", "pid", "tid", "ts"},
    "s": {"name", "cat", "id", "pid", "tid", "ts"},
    "t": {"name", "cat", "id", "pid", "tid", "ts"},
    "f": {"name", "cat", "id", "pid", "tid", "ts", "bp"},
    "C": {"name", "pid", "tid", "ts", "args"},
    "i": {"name", "pid", "tid", "ts", "s"},
}
Events = list[dict[str, Any]]


@pytest.fixture(scope="session")
def written(recordings: Any) -> dict[str, Events]:
    return {
        name: list(trace_events(shown, trace.models))
        for name, (trace, _, shown) in recordings.items()
    }


def of(events: Events, *phases: str) -> Events:
    return [event for event in events if event["ph"] in phases]


def check_nesting(slices: Events) -> None:
    """On one track: each slice ends before or with the slice it began in."""
    open_until: list[int] = []
    for event in slices:
        while open_until and open_until[-1] <= event["ts"]:
            open_until.pop()
        assert not open_until or event["ts"] + event["dur"] <= open_until[-1]
        open_until.append(event["ts"] + event["dur"])
    assert len(slices) > 0


@RUNS
def test_every_event_has_its_keys(written: Any, name: str) -> None:
    for event in written[name]:
        assert set(event) >= REQUIRED[event["ph"]], event
        assert all(isinstance(event[k], int) for k in ("pid", "tid"))
        if event["ph"] != "M":
            assert isinstance(event["ts"], int)
            assert event["ts"] >= 0
        if event["ph"] == "X":
            assert event["dur"] > 0


@RUNS
def test_metadata_comes_first_then_time_goes_on(written: Any, name: str) -> None:
    events = written[name]
    kinds = [event["ph"] == "M" for event in events]
    assert kinds == sorted(kinds, reverse=True)
    times = [event["ts"] for event in events if event["ph"] != "M"]
    assert times == sorted(times)


@RUNS
def test_slices_nest_on_their_tracks(written: Any, name: str) -> None:
    tracks: dict[tuple[int, int], Events] = defaultdict(list)
    for event in of(written[name], "X"):
        tracks[event["pid"], event["tid"]].append(event)
    for slices in tracks.values():
        check_nesting(slices)


@RUNS
def test_processes_and_tracks_have_names(written: Any, name: str) -> None:
    meta = of(written[name], "M")
    processes = {e["pid"]: e["args"]["name"] for e in meta if e["name"] == "process_name"}
    assert list(processes.values()) == ["queues", "node 0", "node 1", "requests"]
    threads = {(e["pid"], e["tid"]): e["args"]["name"] for e in meta if e["name"] == "thread_name"}
    assert len(threads) == len(set(threads.values()))
    assert {event["pid"] for event in written[name]} <= set(processes)
    assert {(e["pid"], e["tid"]) for e in of(written[name], "X", "s", "t", "f")} <= set(threads)
    assert threads[FIRST_NODE, track(1, TURNS)] == "instance 1"
    assert threads[FIRST_NODE + 1, track(2, TURNS)] == "instance 2"
    if name == "aegaeon":
        assert threads[FIRST_NODE, track(1, OUT)] == "instance 1: KV out"


@RUNS
def test_slices_are_the_spans(recordings: Any, written: Any, name: str) -> None:
    trace, _, shown = recordings[name]
    slices = of(written[name], "X")
    counts = Counter(event["cat"] for event in slices)
    lengths_us: Counter[str] = Counter()
    for event in slices:
        lengths_us[event["cat"]] += event["dur"]
    for kind in SpanKind:
        spans = shown.of(kind)
        is_long = spans["end_ns"] - spans["start_ns"] >= 1000
        assert is_long.sum() <= counts[kind.name.lower()] <= len(spans)
        total_us = (spans["end_ns"] - spans["start_ns"]).sum() / 1000
        assert lengths_us[kind.name.lower()] == pytest.approx(total_us, abs=len(spans) + 1)
    for event in slices:
        if event["cat"] == "turn":
            assert event["name"] == event["args"]["model"] in trace.models
    tokens = sum(e["args"].get("tokens", 0) for e in slices if e["cat"] in ("prefill", "decode"))
    assert tokens == shown.lives["emitted_tokens"].sum()


@RUNS
def test_asynchronous_events_pair_and_nest(recordings: Any, written: Any, name: str) -> None:
    trace, _, shown = recordings[name]
    open_names: dict[int, list[str]] = defaultdict(list)
    since: dict[tuple[int, str], int] = {}
    seen = set()
    for event in of(written[name], "b", "e"):
        request = int(event["id2"]["local"])
        if event["ph"] == "b":
            assert len(open_names[request]) < 2
            if not open_names[request]:
                assert event["name"] == trace.models[trace.model[request]]
            open_names[request].append(event["name"])
            since[request, event["name"]] = event["ts"]
            seen.add(request)
        else:
            assert open_names[request].pop() == event["name"]
            is_outer = not open_names[request]
            assert event["ts"] > since[request, event["name"]] or is_outer
    assert not any(open_names.values())
    assert seen == set(shown.lives["id"].tolist())


@RUNS
def test_flows_lead_through_slices_of_work(written: Any, name: str) -> None:
    slices = {
        (e["pid"], e["tid"], e["ts"])
        for e in of(written[name], "X")
        if e["cat"] in ("prefill", "decode")
    }
    chains: dict[int, str] = defaultdict(str)
    for event in of(written[name], "s", "t", "f"):
        assert (event["pid"], event["tid"], event["ts"]) in slices
        chains[event["id"]] += event["ph"]
    assert (len(chains) > 10) == (name != "serverlessllm")  # one turn a request
    for chain in chains.values():
        assert chain[0] == "s"
        assert chain[-1] == "f"
        assert set(chain[1:-1]) <= {"t"}


@RUNS
def test_counters_follow_the_samples(recordings: Any, written: Any, name: str) -> None:
    shown = recordings[name].timeline
    counters = of(written[name], "C")
    flying = [e for e in counters if "in flight" in e["args"]]
    times_us = [event["ts"] for event in flying]
    held = np.searchsorted(times_us, shown.samples.time_ns / 1000, side="right") - 1
    assert [flying[i]["args"]["in flight"] for i in held] == shown.samples.in_flight.tolist()
    on_gpus = [e["args"].get("on GPUs (GB)", 0) for e in counters]
    assert max(on_gpus) == pytest.approx(shown.samples.kv_used_bytes.max() / 1e9, abs=1e-3)
    assert {e["pid"] for e in counters} == {QUEUES, FIRST_NODE, FIRST_NODE + 1}


def test_lost_requests_are_marked(recordings: Any, written: Any) -> None:
    _, run, _ = recordings["shed"]
    phases = run.results["phase"]
    marks = of(written["shed"], "i")
    shed = [mark["args"]["id"] for mark in marks if mark["name"] == "request shed"]
    failed = [mark["args"]["id"] for mark in marks if mark["name"] == "request failed"]
    assert shed == np.flatnonzero(phases == RequestPhase.SHED).tolist() != []
    assert failed == np.flatnonzero(phases == RequestPhase.FAILED).tolist()
    assert len(marks) == len(shed) + len(failed)


def test_failure_of_an_instance_is_marked(
    round_pool: Any, fresh_state: Any, journal_of: Any
) -> None:
    one = {"instance": 0}
    journal = journal_of(
        (EventKind.INSTANCE_FAILED, 1.0, one), (EventKind.INSTANCE_JOINED, 2.5, one)
    )
    shown = timeline(fresh_state(round_pool, ("a",)), journal, end_ns=3 * NS)
    (mark,) = of(list(trace_events(shown, ("a",))), "i")
    assert (mark["name"], mark["ts"], mark["tid"]) == ("instance 0 failed", 1_000_000, 1)
    (down,) = of(list(trace_events(shown, ("a",))), "X")
    assert (down["name"], down["ts"], down["dur"]) == ("down", 1_000_000, 1_500_000)


def test_window_begins_at_zero(recordings: Any, fresh_state: Any) -> None:
    trace, run, _ = recordings["aegaeon"]
    state = fresh_state(run.pool, trace.models)
    shown = timeline(state, run.journal, start_ns=4 * NS, end_ns=7 * NS)
    events = [e for e in trace_events(shown, trace.models) if e["ph"] != "M"]
    assert min(e["ts"] for e in events) == 0
    assert max(e["ts"] + e.get("dur", 0) for e in events) == 3_000_000
    starts = {e["ts"] for e in of(events, "X") if e["cat"] == "turn"}
    assert 0 in starts  # what began before is cut to the window


def test_file_is_json_and_the_same_twice(recordings: Any, written: Any, tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_trace(tmp_path / name, written["aegaeon"], {"policy": "aegaeon"})
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    with gzip.open(tmp_path / "a", "rt") as file:
        content = json.load(file)
    assert content["otherData"] == {"policy": "aegaeon"}
    assert content["traceEvents"] == written["aegaeon"]
    write_trace(tmp_path / "none", [], {})
    assert json.loads(gzip.decompress((tmp_path / "none").read_bytes()))["traceEvents"] == []


def test_kv_of_several_models_says_so(recordings: Any, written: Any) -> None:
    trace, _, shown = recordings["aegaeon"]
    moves = shown.of(SpanKind.KV_OUT)
    names = {e["name"] for e in of(written["aegaeon"], "X") if e["cat"] == "kv_out"}
    expected = {trace.models[m] if m != NONE else "several models" for m in moves["model"]}
    assert names == expected
