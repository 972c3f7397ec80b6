"""A timeline tells what the run counted: no second of work more, none twice, none at two places."""

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from runtime.core import NONE, NS, EventKind, PoolSpec, RequestPhase
from runtime.pool.state import INSTANCE
from runtime.timeline.replay import Replay, timeline
from runtime.timeline.spans import PARTS, WORK, SpanKind, Timeline

WHOLE = ["index", "aegaeon", "serverlessllm", "muxserve", "shed", "faults"]
RUNS = pytest.mark.parametrize("name", [*WHOLE, "cut"])
ENDED = pytest.mark.parametrize("name", WHOLE)
ARRIVAL, TURN, SWITCHED, KV_IN, PREFILLED, STEPS, ENDS = (
    EventKind.ARRIVAL,
    EventKind.TURN,
    EventKind.SWITCHED,
    EventKind.KV_IN_DONE,
    EventKind.PREFILLED,
    EventKind.STEPS,
    EventKind.TURN_ENDED,
)
READY, OUT, FAILS, JOINS, PREFETCH, FINISHED = (
    EventKind.WEIGHTS_READY,
    EventKind.KV_OUT_DONE,
    EventKind.INSTANCE_FAILED,
    EventKind.INSTANCE_JOINED,
    EventKind.PREFETCH,
    EventKind.FINISHED,
)
ONE = {"instance": 0}
TWO_MODELS = (  # a prefill and two steps of model 0, its KV leaves for model 1 and comes back
    (ARRIVAL, 0.0, {"id": 0, "model": 0, "n": 10, "tag": 0}),
    (ARRIVAL, 0.0, {"id": 1, "model": 1, "n": 20, "tag": 0}),
    (TURN, 0.0, ONE | {"model": 0, "quota_ns": 0.2 * NS}),
    (READY, 1.0, ONE),
    (SWITCHED, 1.0, ONE),
    (PREFETCH, 1.0, ONE | {"model": 1}),
    (PREFILLED, 1.5, ONE | {"n": 1, "x": 0.5}),
    (STEPS, 1.7, ONE | {"n": 2, "x": 0.1}),
    (READY, 1.9, ONE),
    (ENDS, 2.0, ONE),
    (TURN, 2.0, ONE | {"model": 1}),
    (SWITCHED, 2.0, ONE),
    (OUT, 2.2, ONE | {"n": 1}),
    (PREFILLED, 2.5, ONE | {"n": 1, "x": 0.5}),
    (FINISHED, 2.5, ONE | {"request": 1, "id": 1}),
    (ENDS, 2.5, ONE),
    (TURN, 2.5, ONE | {"model": 0}),
    (SWITCHED, 2.5, ONE),
    (KV_IN, 2.75, ONE | {"n": 1}),
    (STEPS, 3.0, ONE | {"n": 1, "x": 0.25}),
)


def told(shown: Timeline) -> list[tuple[Any, ...]]:
    """Spans as (kind, start_s, end_s, model, requests, tokens, cut), in order of their end."""
    return [
        (
            SpanKind(s["kind"]).name, s["start_ns"] / NS, s["end_ns"] / NS,
            s["model"], s["n"], s["tokens"], bool(s["is_cut"]),
        )
        for s in shown.spans
    ]  # fmt: skip


def length_ns(spans: Any) -> int:
    return int((spans["end_ns"] - spans["start_ns"]).sum())


def test_spans_of_a_hand_made_journal(
    round_pool: PoolSpec, fresh_state: Any, journal_of: Any
) -> None:
    journal = journal_of(*TWO_MODELS)
    shown = timeline(fresh_state(round_pool, ("a", "b")), journal, end_ns=4 * NS)
    assert told(shown) == [
        ("SWITCH", 0.0, 1.0, 0, 0, 0, False),
        ("PREFILL", 1.0, 1.5, 0, 1, 1, False),
        ("DECODE", 1.5, 1.7, 0, 1, 2, False),
        ("LOAD_AHEAD", 1.0, 1.9, 1, 0, 0, False),
        ("TURN", 0.0, 2.0, 0, 1, 3, False),
        ("SWITCH", 2.0, 2.0, 1, 0, 0, False),
        ("KV_OUT", 2.0, 2.2, 0, 1, 13, False),
        ("PREFILL", 2.0, 2.5, 1, 1, 1, False),
        ("TURN", 2.0, 2.5, 1, 1, 1, False),
        ("SWITCH", 2.5, 2.5, 0, 0, 0, False),
        ("KV_IN", 2.5, 2.75, 0, 1, 13, False),
        ("DECODE", 2.75, 3.0, 0, 1, 1, False),
        ("DECODE", 3.0, 4.0, 0, 0, 0, True),
        ("TURN", 2.5, 4.0, 0, 1, 1, True),
    ]
    by_kind = {kind: shown.of(kind)["decision"].tolist() for kind in SpanKind}
    assert by_kind[SpanKind.TURN] == [2, 10, 16]
    assert by_kind[SpanKind.LOAD_AHEAD] == [5]
    assert by_kind[SpanKind.KV_IN] == [16]
    assert by_kind[SpanKind.KV_OUT] == [NONE]
    assert shown.lives.tolist() == [
        (0, 0, 1_500_000_000, 3_000_000_000, NONE, 0, 10, 4, 4, RequestPhase.RUNNING),
        (1, 0, 2_500_000_000, 2_500_000_000, 2_500_000_000, 1, 20, 1, 1, RequestPhase.DONE),
    ]
    first = [(r, told(shown)[i][:2]) for r, i in shown.services.tolist()]
    assert first == [(0, ("PREFILL", 1.0)), (1, ("PREFILL", 2.0)), (0, ("DECODE", 2.75))]


@pytest.mark.parametrize(
    ("start_s", "end_s", "expected"),
    [
        (0.0, 1.0, ["SWITCH 0.0", "TURN 0.0"]),
        (1.7, 2.0, ["LOAD_AHEAD 1.0", "TURN 0.0"]),
        (2.0, 2.5, ["SWITCH 2.0", "KV_OUT 2.0", "PREFILL 2.0", "TURN 2.0"]),
        (2.5, 2.75, ["SWITCH 2.5", "KV_IN 2.5", "TURN 2.5"]),
    ],
)
def test_what_only_touches_a_window_is_not_in_it(
    round_pool: PoolSpec,
    fresh_state: Any,
    journal_of: Any,
    start_s: float,
    end_s: float,
    expected: list[str],
) -> None:
    """But what takes no time is in the window that it begins."""
    shown = timeline(
        fresh_state(round_pool, ("a", "b")),
        journal_of(*TWO_MODELS),
        start_ns=round(start_s * NS),
        end_ns=round(end_s * NS),
    )
    assert [f"{kind} {since_s}" for kind, since_s, *_ in told(shown)] == expected


def test_what_a_failure_ends_is_cut(
    round_pool: PoolSpec, fresh_state: Any, journal_of: Any
) -> None:
    journal = journal_of(
        *TWO_MODELS[:7],
        (FAILS, 1.6, ONE),
        (JOINS, 2.0, ONE),
        (TURN, 2.0, ONE | {"model": 1}),
        (FAILS, 2.25, ONE),
    )
    shown = timeline(fresh_state(round_pool, ("a", "b")), journal, end_ns=3 * NS)
    assert told(shown)[2:] == [
        ("LOAD_AHEAD", 1.0, 1.6, 1, 0, 0, True),
        ("DECODE", 1.5, 1.6, 0, 0, 0, True),
        ("TURN", 0.0, 1.6, 0, 1, 1, True),
        ("DOWN", 1.6, 2.0, NONE, 0, 0, False),
        ("SWITCH", 2.0, 2.25, 1, 0, 0, True),
        ("TURN", 2.0, 2.25, 1, 0, 0, True),
        ("DOWN", 2.25, 3.0, NONE, 0, 0, True),
    ]


@RUNS
def test_spans_sum_to_what_the_run_counted(recordings: Any, name: str) -> None:
    _, run, shown = recordings[name]
    work, switches = shown.of(*WORK), shown.of(SpanKind.SWITCH)
    whole = work[work["is_cut"] == 0]
    done = switches[switches["is_cut"] == 0]
    for g in range(len(run.instances)):
        own, own_switches = whole[whole["instance"] == g], done[done["instance"] == g]
        assert length_ns(own) == run.instances["busy_ns"][g]
        assert length_ns(own_switches) == run.instances["switch_ns"][g]
        assert len(own_switches) == run.instances["switches"][g]
    emitted = run.results["emitted_tokens"].sum()
    assert emitted > 0
    assert whole["tokens"].sum() == shown.of(SpanKind.TURN)["tokens"].sum() == emitted


@RUNS
def test_lives_equal_the_results(recordings: Any, name: str) -> None:
    _, run, shown = recordings[name]
    admitted = run.results[run.results["phase"] != RequestPhase.FREE]
    assert shown.lives["id"].tolist() == list(range(len(admitted)))
    for column in ("first_token_ns", "last_token_ns", "emitted_tokens", "on_time_tokens"):
        assert shown.lives[column].tolist() == admitted[column].tolist()
    for column in ("arrival_ns", "model", "prompt_tokens", "phase"):
        assert shown.lives[column].tolist() == admitted[column].tolist()


@RUNS
def test_spans_of_a_track_never_overlap(recordings: Any, name: str) -> None:
    shown = recordings[name].timeline
    tracks = ((SpanKind.TURN,), (*PARTS, SpanKind.DOWN), (SpanKind.KV_OUT,), (SpanKind.LOAD_AHEAD,))
    for kinds in tracks:
        spans = shown.of(*kinds)
        for g in range(len(shown.nodes)):
            own = np.sort(spans[spans["instance"] == g], order=["start_ns", "end_ns"])
            assert (own["start_ns"] <= own["end_ns"]).all()
            assert all(a["end_ns"] <= b["start_ns"] for a, b in pairwise(own))


@RUNS
def test_parts_lie_in_their_turn(recordings: Any, name: str) -> None:
    shown = recordings[name].timeline
    turns = {int(turn["decision"]): turn for turn in shown.of(SpanKind.TURN)}
    spent = dict.fromkeys(turns, 0)
    for part in shown.of(*PARTS):
        turn = turns[int(part["decision"])]
        assert turn["start_ns"] <= part["start_ns"] <= part["end_ns"] <= turn["end_ns"]
        assert (part["instance"], part["model"]) == (turn["instance"], turn["model"])
        spent[int(part["decision"])] += part["end_ns"] - part["start_ns"]
    # without a delay of orders a turn is nothing but its parts
    assert all(spent[d] == turn["end_ns"] - turn["start_ns"] for d, turn in turns.items())


@ENDED
def test_turns_serve_every_request(recordings: Any, name: str) -> None:
    _, run, shown = recordings[name]
    served = np.unique(shown.services["id"])
    assert served.tolist() == np.flatnonzero(run.results["emitted_tokens"]).tolist()
    assert len(shown.services) == shown.of(SpanKind.TURN)["n"].sum()


def test_moves_and_loads_ahead_are_there(recordings: Any) -> None:
    shown = recordings["aegaeon"].timeline
    counts = {kind: len(shown.of(kind)) for kind in SpanKind}
    assert counts.pop(SpanKind.DOWN) == 0
    assert counts.pop(SpanKind.INTERRUPT) == 0
    assert all(counts.values())
    moved_in, moved_out = shown.of(SpanKind.KV_IN), shown.of(SpanKind.KV_OUT)
    assert moved_in["n"].sum() == moved_out["n"].sum() > 0
    assert moved_in["tokens"].sum() == moved_out["tokens"].sum()


def test_failures_and_cancellations_are_there(recordings: Any) -> None:
    shown = recordings["faults"].timeline
    assert len(shown.of(SpanKind.DOWN)) > 1
    assert shown.of(SpanKind.TURN)["is_cut"].any()
    assert (shown.lives["phase"] == RequestPhase.CANCELLED).any()


@pytest.mark.parametrize(("start_s", "end_s"), [(0.0, 5.0), (4.0, 9.0), (100.0, 101.0)])
def test_window_keeps_what_overlaps_it(
    recordings: Any, fresh_state: Any, start_s: float, end_s: float
) -> None:
    trace, run, whole = recordings["aegaeon"]
    start_ns, end_ns = round(start_s * NS), round(end_s * NS)
    state = fresh_state(run.pool, trace.models)
    part = timeline(state, run.journal, start_ns=start_ns, end_ns=end_ns)
    begins = whole.spans["start_ns"] >= start_ns
    is_in = (begins | (whole.spans["end_ns"] > start_ns)) & (whole.spans["start_ns"] < end_ns)
    spans = whole.spans[is_in]
    assert part.spans.tobytes() == spans.tobytes()
    lives = whole.lives
    lives = lives[(lives["end_ns"] > start_ns) & (lives["arrival_ns"] < end_ns)]
    assert part.lives.tolist() == lives.tolist()
    assert all(start_ns <= at_ns < end_ns for at_ns in part.samples.time_ns)
    served = part.spans[part.services["span"]]
    assert np.isin(served["kind"], WORK).all()


@RUNS
def test_samples_are_the_levels_of_their_instants(recordings: Any, name: str) -> None:
    _, _, shown = recordings[name]
    lives, samples = shown.lives, shown.samples
    assert len(samples.time_ns) > 200
    assert (np.diff(samples.time_ns) > 0).all()
    assert samples.kv_used_bytes.shape == (len(samples.time_ns), 2)
    assert samples.kv_used_bytes.max() > 1e9
    assert (samples.claimable <= samples.in_flight).all()
    end_ns = np.where(lives["end_ns"] == NONE, 1 << 62, lives["end_ns"])
    for at_ns, in_flight in zip(samples.time_ns, samples.in_flight, strict=True):
        assert in_flight == ((lives["arrival_ns"] <= at_ns) & (end_ns > at_ns)).sum()


def test_table_that_grows_changes_nothing(recordings: Any, fresh_state: Any) -> None:
    trace, run, whole = recordings["index"]
    small = timeline(fresh_state(run.pool, trace.models, capacity=2), run.journal)
    assert small.spans.tobytes() == whole.spans.tobytes()
    assert small.lives.tobytes() == whole.lives.tobytes()


def test_replay_leaves_the_pool_as_the_run_left_it(recordings: Any, fresh_state: Any) -> None:
    trace, run, _ = recordings["aegaeon"]
    state = fresh_state(run.pool, trace.models)
    timeline(state, run.journal)
    asked_only = ("seen_wake", "seen_arrivals", "stage")  # FREE or IDLE: questions are no events
    for column in set(INSTANCE.names or ()) - {*asked_only}:
        assert state.instances[column].tolist() == run.instances[column].tolist(), column
    assert state.gaps.tolist() == run.gaps.tolist()


def test_journal_of_another_pool_is_named(recordings: Any, fresh_state: Callable[..., Any]) -> None:
    trace, run, _ = recordings["index"]
    broken = run.journal.copy()
    rows = np.flatnonzero(broken["kind"] == TURN)[:2]
    broken["instance"][rows[1]] = broken["instance"][rows[0]]
    with pytest.raises(ValueError, match=rf"journal row {rows[1]}: TURN is refused"):
        timeline(fresh_state(run.pool, trace.models), broken)


def test_empty_journal_is_an_empty_timeline(fresh_state: Any, busy_pool: PoolSpec) -> None:
    state = fresh_state(busy_pool, ("a",))
    empty = timeline(state, np.zeros(0, [("time_ns", "i8")]), end_ns=NS)
    assert [len(table) for table in empty[3:6]] == [0, 0, 0]
    assert empty.samples.in_flight.tolist() == [0]


def test_a_look_at_the_spans_so_far_changes_nothing(
    recordings: dict[str, Any], fresh_state: Callable[..., Any]
) -> None:
    trace, run, whole = recordings["faults"]
    replay = Replay(fresh_state(run.pool, trace.models), 0, whole.end_ns)
    for row in range(len(run.journal)):
        replay.feed(row, run.journal[row])
        if row % 300 == 0:
            now_ns = int(run.journal["time_ns"][row]) + 1
            shown = replay.so_far(now_ns - 2 * NS, now_ns)
            assert np.all((shown["end_ns"] > now_ns - 2 * NS) & (shown["start_ns"] < now_ns))
            assert np.all(shown["end_ns"] <= now_ns)
    assert told(replay.close(whole.end_ns)) == told(whole)
