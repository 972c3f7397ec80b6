"""An INTERRUPT in the decision log and in the trace: what was asked, and what came of it."""

from dataclasses import replace
from typing import Any

import pytest

from runtime.core import NS, EventKind
from runtime.timeline.decisions import decision_log
from runtime.timeline.replay import timeline
from runtime.timeline.spans import SpanKind
from runtime.timeline.trace_events import trace_events

ONE = {"instance": 0}
ASKED = 6  # its row in the journal


def journal_with(stops: int, journal_of: Any) -> Any:
    """Model 0 decodes when a request of model 1 comes, at 1.75 s; steps end at 1.6, 1.7, .. s."""
    end_s, steps = (1.8, 3) if stops else (2.0, 5)
    return journal_of(
        (EventKind.ARRIVAL, 0.0, {"id": 0, "model": 0, "n": 10, "tag": 0}),
        (EventKind.TURN, 0.0, ONE | {"model": 0}),
        (EventKind.WEIGHTS_READY, 1.0, ONE),
        (EventKind.SWITCHED, 1.0, ONE),
        (EventKind.PREFILLED, 1.5, ONE | {"n": 1, "x": 0.5}),
        (EventKind.ARRIVAL, 1.75, {"id": 1, "model": 1, "n": 10, "tag": 0}),
        (EventKind.INTERRUPT, 1.75, ONE | {"model": 1, "n": stops}),
        (EventKind.STEPS, end_s, ONE | {"n": steps, "x": 0.1}),
        *(((EventKind.TURN_ENDED, end_s, ONE),) if stops else ()),
    )


@pytest.fixture(params=[1, 0], ids=["stop", "keep"])
def stops(request: Any) -> int:
    return int(request.param)


@pytest.fixture
def shown(stops: int, round_pool: Any, fresh_state: Any, journal_of: Any) -> Any:
    pool = replace(round_pool, interrupt_slack_s=20.0)
    state = fresh_state(pool, ("a", "b"))
    return timeline(state, journal_with(stops, journal_of), end_ns=2 * NS)


def test_log_says_for_which_model_a_turn_was_stopped_or_kept(
    stops: int, shown: Any, journal_of: Any
) -> None:
    turn, asked = decision_log(shown, journal_with(stops, journal_of), ("a", "b")).to_pylist()
    assert (turn["stops"], turn["end_s"]) == (None, 1.8 if stops else None)
    assert (asked["decision"], asked["kind"], asked["instance"]) == (ASKED, "interrupt", 0)
    assert (asked["model"], asked["stops"], asked["time_s"]) == ("b", stops == 1, 1.75)


def test_interrupt_is_an_instant_beside_the_spans_of_its_turn(stops: int, shown: Any) -> None:
    (span,) = shown.of(SpanKind.INTERRUPT)
    found = [int(span[name]) for name in ("start_ns", "end_ns", "model", "n", "decision")]
    assert found == [7 * NS // 4, 7 * NS // 4, 1, stops, ASKED]


def test_trace_marks_an_interrupt_on_the_track_of_its_turn(stops: int, shown: Any) -> None:
    events = list(trace_events(shown, ("a", "b")))
    (mark,) = [event for event in events if event.get("cat") == "interrupt"]
    (turn,) = [event for event in events if event.get("cat") == "turn"]
    assert (mark["pid"], mark["tid"]) == (turn["pid"], turn["tid"])
    assert mark["ts"] == 1_750_000
    assert mark["name"] == ("stopped for b" if stops else "not stopped for b")
