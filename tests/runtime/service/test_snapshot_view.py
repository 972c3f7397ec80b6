"""The page's snapshot against the tables and the timeline of the same journal."""

import json
from typing import Any

import msgspec
import numpy as np
import pytest
from pool_film import POOL, Projector, film, recorded

from runtime.core import NONE, NS, EventKind, RequestPhase, Stage
from runtime.pool.transitions import apply
from runtime.service.messages import End
from runtime.service.recent import MOST_SPANS, OVER_S, Recent, curves
from runtime.service.snapshot_view import SPAN_KINDS, snapshot
from runtime.timeline.replay import timeline
from runtime.timeline.spans import SpanKind

INSTANCES, MODELS, SECONDS = 3, 9, 40.0
STAGES = ("switch", "blocked", "kv_in", "prefill", "decode")


@pytest.fixture(scope="module")
def recording() -> Any:
    return recorded(INSTANCES, MODELS, 4.0, SECONDS)


def fresh(recording: Any) -> Any:
    state, journal, names = recording
    return state.copy(), journal, names


@pytest.fixture
def played(recording: Any) -> tuple[Projector, list[str]]:
    """The pool at 30 s."""
    state, journal, names = fresh(recording)
    projector = Projector(state)
    for event in journal[journal["time_ns"] < 30 * NS]:
        projector.feed(event)
    return projector, names


def test_snapshot_is_plain_and_small(recording: Any) -> None:
    for shown in film(*fresh(recording), from_s=5.0, step_s=5.0):
        assert json.loads(msgspec.json.encode(shown)) == shown  # no NumPy scalars, no tuples
        assert len(msgspec.msgpack.encode(shown)) < 40_000


def test_times_of_spans_are_those_of_the_timeline(recording: Any) -> None:
    state, journal, _ = fresh(recording)
    told = timeline(state, journal, end_ns=30 * NS)
    projector = Projector(fresh(recording)[0])
    for event in journal[journal["time_ns"] < 30 * NS]:
        projector.feed(event)
    spans = [*projector.recent.spans, *projector.recent.open_spans(30 * NS)]
    for name in STAGES:
        kind = SpanKind[name.upper()]
        for g in range(INSTANCES):
            expected = told.of(kind)[told.of(kind)["instance"] == g]
            mine_s = sum(s.end_ns - s.start_ns for s in spans if (s.instance, s.kind) == (g, kind))
            until = np.minimum(expected["end_ns"], 30 * NS) - expected["start_ns"]
            if name == "decode":  # a prefill within a turn shares its stage's time with no other
                assert mine_s == pytest.approx(until.sum(), rel=0.05)
            else:
                assert mine_s == pytest.approx(until.sum(), rel=0.1, abs=NS // 100)


def test_queues_and_counts_are_those_of_the_tables(played: Any) -> None:
    projector, names = played
    state = projector.state
    shown = snapshot(state, names, projector.recent, now_ns=30 * NS)
    live = state.requests[state.requests["phase"] != RequestPhase.FREE]
    for m, model in enumerate(shown["models"]):
        for phase in (RequestPhase.WAITING, RequestPhase.READY, RequestPhase.RUNNING):
            here = (live["model"] == m) & (live["phase"] == phase)
            assert model[phase.name.lower()] == here.sum()
    assert shown["totals"]["in_flight"] == len(live)
    assert shown["totals"]["done"] > 50
    emitted = sum(model["tokens"] for model in shown["models"])
    assert shown["totals"]["tokens"] == emitted > 1000
    for g, told in enumerate(shown["instances"]):
        stage = Stage(int(state.instances["stage"][g]))
        assert told["stage"] == stage.name.lower()
        assert (told["model"] is None) == (stage < Stage.COMMANDED)
        assert told["kv_used_bytes"] == state.instances["kv_used_bytes"][g] <= told["kv_bytes"]
        assert told["weight_bytes"] + told["kv_bytes"] <= told["memory_bytes"] == POOL.vram_bytes


def test_late_requests_are_those_past_their_deadline(played: Any) -> None:
    projector, names = played
    shown = snapshot(projector.state, names, projector.recent, now_ns=10_000 * NS)
    in_flight = projector.state.pool["in_flight"][0]
    assert sum(model["late"] for model in shown["models"]) == in_flight > 0


def test_curves_add_up_to_the_totals(recording: Any) -> None:
    state, journal, _ = fresh(recording)
    projector = Projector(state)
    for event in journal:
        projector.feed(event)
    projector.recent.advance(int(journal["time_ns"][-1]) + 2 * NS)
    told = curves(projector.recent)
    assert {len(column) for column in told.values()} == {len(told["time_s"])}
    times = np.array([0.0, *told["time_s"]])
    assert (np.diff(times) >= 1.0).all()
    total = (np.array(told["tokens_s"]) * np.diff(times)).sum()
    assert total == pytest.approx(projector.recent.levels[-1].emitted.sum(), rel=1e-4)
    assert all(share is None or 0 <= share <= 1 for share in told["attainment"])
    firsts = sum(len(level.first_s) for level in projector.recent.levels)
    assert firsts == projector.recent.ended[RequestPhase.DONE]
    assert len(times) > OVER_S


def test_request_that_gets_no_token_counts_against_attainment(recording: Any) -> None:
    """Nothing is served, so each request misses its first token at its deadline, once."""
    state, journal, names = fresh(recording)
    recent = Recent(state)
    for event in journal[journal["kind"] == EventKind.ARRIVAL]:
        apply(state, event)
        recent.on_event(event, "")
    before = recent.levels[-1]
    recent.advance(recent.now_ns + 5 * NS)
    shown = snapshot(state, names, recent)
    late = [model for model in shown["models"] if model["late"]]
    assert late
    assert all(model["attainment"] == 0.0 for model in late)
    assert shown["curves"]["attainment"][-1] == 0.0
    in_flight = int(state.pool["in_flight"][0])
    assert 0 < before.missed.sum() <= recent.levels[-1].missed.sum() <= in_flight


def test_an_idle_pool_says_nothing_of_latency(recording: Any) -> None:
    recent = Recent(fresh(recording)[0])
    for second in range(1, 20):
        recent.advance(second * NS)
    told = curves(recent)
    assert set(told["tokens_s"]) == {0.0}
    for name in ("attainment", "ttft_p50_s", "ttft_p99_s", "tbt_p50_s", "tbt_p99_s"):
        assert set(told[name]) == {None}


def test_refusals_are_not_all_for_want_of_room(recording: Any) -> None:
    recent = Recent(fresh(recording)[0])
    recent.on_refusal("r", "a", End.REFUSED, 0)
    recent.on_refusal("r", "a", End.SHED, 0)
    assert (recent.ended[RequestPhase.FAILED], recent.ended[RequestPhase.SHED]) == (1, 1)


def test_spans_of_an_hour_are_bounded(recording: Any) -> None:
    state, _, names = fresh(recording)
    recent = Recent(state)
    event = np.zeros(1, [("time_ns", "i8")])[0]
    for i in range(2 * MOST_SPANS):
        event["time_ns"] += NS // 1000
        state.instances["stage"][0] = Stage.PREFILL if i % 2 else Stage.DECODE
        state.instances["model"][0] = 1
        recent.on_event(event, "")
    assert len(recent.spans) == MOST_SPANS
    shown = snapshot(state, names, recent, now_ns=int(event["time_ns"]))
    kinds = {SPAN_KINDS[kind] for _, kind, *_ in shown["spans"]}
    assert kinds == {"prefill", "decode"}


def test_instance_that_is_down_is_shown_so(played: Any) -> None:
    projector, names = played
    state, recent = projector.state, projector.recent
    state.instances["stage"][1] = Stage.DOWN
    event = np.zeros(1, [("time_ns", "i8")])[0]
    event["time_ns"] = 31 * NS
    recent.on_event(event, "")
    shown = snapshot(state, names, recent, now_ns=33 * NS)
    down = [s for s in shown["spans"] if s[0] == 1 and SPAN_KINDS[s[1]] == "down"]
    assert [(s[3], s[4]) for s in down] == [(31_000, 2000)]
    assert shown["instances"][1]["stage"] == "down"
    assert shown["instances"][1]["model"] is None is not NONE
