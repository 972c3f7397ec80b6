"""The decision log: every answer of the policy once, and what came of it."""

from typing import Any

import numpy as np
import pytest

from runtime.core import FOREVER_NS, NONE, NS, EventKind
from runtime.timeline.decisions import ANSWERS, decision_log
from runtime.timeline.replay import timeline
from runtime.timeline.spans import PARTS, WORK, SpanKind

ONE = {"instance": 0}
JOURNAL = (
    (EventKind.ARRIVAL, 0.0, {"id": 0, "model": 0, "n": 10, "tag": 0}),
    (EventKind.IDLE, 0.0, ONE),
    (EventKind.TURN, 0.5, ONE | {"model": 0, "quota_ns": NS // 10, "tag": 4, "is_fallback": 1}),
    (EventKind.WEIGHTS_READY, 1.5, ONE),
    (EventKind.SWITCHED, 1.5, ONE),
    (EventKind.PREFETCH, 1.5, ONE),
    (EventKind.PREFETCH, 1.6, ONE | {"model": 1}),
    (EventKind.PREFILLED, 2.0, ONE | {"n": 1, "x": 0.5}),
    (EventKind.STEPS, 2.1, ONE | {"n": 1, "x": 0.1}),
    (EventKind.TURN_ENDED, 2.1, ONE),
    (EventKind.TURN, 2.1, ONE | {"model": 0, "quota_ns": FOREVER_NS, "joins": 0, "phases": 2}),
    (EventKind.SWITCHED, 2.1, ONE),
    (EventKind.STEPS, 2.3, ONE | {"n": 2, "x": 0.1}),
)
NOTHING = dict.fromkeys(
    (
        "instance",
        "request",
        "model",
        "phases",
        "quota_s",
        "tag",
        "joins",
        "stops",
        "end_s",
        "is_cut",
    ),
)
NOTHING |= dict.fromkeys(("requests", "tokens", *(f"{kind.name.lower()}_s" for kind in PARTS)))
NAMES = ["index", "aegaeon", "serverlessllm", "muxserve", "cut", "shed", "faults"]
SPENT = {"blocked_s": 0.0, "kv_in_s": 0.0}


def test_log_of_a_hand_made_journal(round_pool: Any, fresh_state: Any, journal_of: Any) -> None:
    journal = journal_of(*JOURNAL)
    journal["tag"][[2]] = NONE  # this pool's requests have no tag
    shown = timeline(fresh_state(round_pool, ("a", "b")), journal, end_ns=3 * NS)
    journal["tag"][[2]] = 4
    rows = decision_log(shown, journal, ("a", "b")).to_pylist()
    plain = NOTHING | {"instance": 0, "is_fallback": False}
    first = {"model": "a", "phases": "both", "quota_s": 0.1, "tag": 4, "joins": True} | SPENT
    open_turn = {"model": "a", "phases": "decode", "quota_s": np.inf, "joins": False} | SPENT
    assert rows == [
        plain | {"decision": 1, "time_s": 0.0, "kind": "idle"},
        plain
        | first
        | {"decision": 2, "time_s": 0.5, "kind": "turn", "is_fallback": True}
        | {"end_s": 2.1, "is_cut": False, "requests": 1, "tokens": 2}
        | {"switch_s": 1.0, "prefill_s": 0.5, "decode_s": 0.1},
        plain | {"decision": 5, "time_s": 1.5, "kind": "prefetch"},
        plain | {"decision": 6, "time_s": 1.6, "kind": "prefetch", "model": "b"},
        plain
        | open_turn
        | {"decision": 10, "time_s": 2.1, "kind": "turn", "requests": 1, "tokens": 2}
        | {"switch_s": 0.0, "prefill_s": 0.0, "decode_s": pytest.approx(0.9)},
    ]


@pytest.mark.parametrize("name", NAMES)
def test_log_has_every_answer_and_sums_to_the_spans(recordings: Any, name: str) -> None:
    trace, run, shown = recordings[name]
    log = decision_log(shown, run.journal, trace.models)
    rows = np.flatnonzero(np.isin(run.journal["kind"], ANSWERS))
    assert log["decision"].to_pylist() == rows.tolist()
    assert len(rows) > 80
    assert log["time_s"].to_numpy().tolist() == (run.journal["time_ns"][rows] / NS).tolist()
    for kind in PARTS:
        spans = shown.of(kind)
        total_s = (spans["end_ns"] - spans["start_ns"]).sum() / NS
        spent_s = log[f"{kind.name.lower()}_s"].drop_null().to_numpy()
        assert spent_s.sum() == pytest.approx(total_s)
    assert sum(log["tokens"].drop_null().to_pylist()) == shown.of(*WORK)["tokens"].sum()
    ended = shown.of(SpanKind.TURN, SpanKind.LOAD_AHEAD)
    is_over = ended["end_ns"] < shown.end_ns
    assert len(log["end_s"].drop_null()) == is_over.sum()
    assert sum(log["is_cut"].drop_null().to_pylist()) == ended["is_cut"][is_over].sum()


def test_route_names_the_model_of_its_request(recordings: Any) -> None:
    trace, run, shown = recordings["aegaeon"]
    rows = decision_log(shown, run.journal, trace.models).to_pylist()
    routes = [row for row in rows if row["kind"] == "route"]
    assert len(routes) >= trace.requests
    for row in routes:
        assert row["model"] == trace.models[trace.model[row["request"]]]
        assert 0 <= row["instance"] < 4
        assert row["end_s"] is row["quota_s"] is row["requests"] is None


def test_window_has_its_own_decisions_only(recordings: Any, fresh_state: Any) -> None:
    trace, run, whole = recordings["aegaeon"]
    part = timeline(
        fresh_state(run.pool, trace.models), run.journal, start_ns=3 * NS, end_ns=6 * NS
    )
    log = decision_log(part, run.journal, trace.models).to_pylist()
    every = decision_log(whole, run.journal, trace.models).to_pylist()
    within = [row for row in every if 3 <= row["time_s"] < 6]
    assert [row["decision"] for row in log] == [row["decision"] for row in within]
    known = [(row["end_s"], row["tokens"]) for row in within if (row["end_s"] or 9) < 6]
    assert [(row["end_s"], row["tokens"]) for row in log if row["end_s"]] == known


def test_empty_log_has_all_columns(fresh_state: Any, busy_pool: Any, journal_of: Any) -> None:
    journal = journal_of()
    log = decision_log(timeline(fresh_state(busy_pool, ("a",)), journal), journal, ("a",))
    assert log.num_rows == 0
    assert set(log.schema.names) == {*NOTHING, "decision", "time_s", "kind", "is_fallback"}
