"""The Gantt is its timeline: each stretch of a GPU's time once, by what it was spent on."""

from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from aegaeon_rl.evaluation.compare import Plan
from aegaeon_rl.evaluation.export import record_window
from aegaeon_rl.policies.registry import make_policy
from runtime.core import NONE, NS, PoolSpec
from runtime.timeline.bars import LOOKS, Bar, bars, share_of
from runtime.timeline.decisions import decision_log
from runtime.timeline.spans import SERVICE, SPAN, Samples, SpanKind, Timeline

EMPTY = np.zeros(0, np.int64)
SPANS = (  # kind, instance, model, start_s, end_s
    (SpanKind.TURN, 0, 7, 1.0, 4.0),
    (SpanKind.SWITCH, 0, 7, 1.0, 2.0),
    (SpanKind.BLOCKED, 0, 7, 2.0, 2.25),
    (SpanKind.KV_IN, 0, 7, 2.25, 2.5),
    (SpanKind.PREFILL, 0, 7, 2.5, 3.0),
    (SpanKind.DECODE, 0, 7, 3.0, 4.0),
    (SpanKind.DECODE, 0, 8, 4.0, 5.0),
    (SpanKind.SWITCH, 1, 8, 2.0, 2.0),
    (SpanKind.DECODE, 1, 8, 2.0, 3.0),
    (SpanKind.DECODE, 1, 8, 3.5, 4.0),
    (SpanKind.KV_OUT, 1, 8, 3.0, 4.0),
    (SpanKind.LOAD_AHEAD, 1, 7, 3.0, 4.0),
    (SpanKind.DOWN, 1, NONE, 4.0, 9.0),
)
WHOLE = [
    Bar(0, 7, "weights", 1.0, 2.0),
    Bar(0, 7, "KV", 2.0, 2.5),
    Bar(0, 7, "work", 2.5, 4.0),
    Bar(0, 8, "work", 4.0, 5.0),
    Bar(1, 8, "work", 2.0, 3.0),
    Bar(1, 8, "work", 3.5, 4.0),
    Bar(1, NONE, "down", 4.0, 9.0),
]


def timeline_of(start_s: float, end_s: float) -> Timeline:
    spans = np.zeros(len(SPANS), SPAN)
    for span, (kind, instance, model, since_s, until_s) in zip(spans, SPANS, strict=True):
        span["kind"], span["instance"], span["model"] = kind, instance, model
        span["start_ns"], span["end_ns"] = round(since_s * NS), round(until_s * NS)
    return Timeline(
        start_ns=round(start_s * NS),
        end_ns=round(end_s * NS),
        nodes=np.zeros(2, np.int64),
        spans=spans,
        lives=EMPTY,
        services=np.zeros(0, SERVICE),
        samples=Samples(EMPTY, EMPTY, EMPTY, EMPTY, EMPTY),
    )


@pytest.mark.parametrize(
    ("start_s", "end_s", "expected"),
    [
        (0.0, 10.0, WHOLE),
        (0.0, 1.0, []),
        (1.5, 2.0, [Bar(0, 7, "weights", 1.5, 2.0)]),
        (2.0, 2.25, [Bar(0, 7, "KV", 2.0, 2.25), Bar(1, 8, "work", 2.0, 2.25)]),
        (5.0, 6.0, [Bar(1, NONE, "down", 5.0, 6.0)]),  # what only touches the window is not in it
    ],
)
def test_bars_of_hand_made_spans(start_s: float, end_s: float, expected: list[Bar]) -> None:
    assert bars(timeline_of(start_s, end_s)) == expected


def test_shares_are_of_all_gpu_time() -> None:
    drawn = bars(timeline_of(0.0, 10.0))
    shares = {look: share_of(drawn, look, 2 * 10.0) for look in set(LOOKS.values())}
    assert shares == {"weights": 0.05, "KV": 0.025, "work": 0.2, "down": 0.25}


@pytest.mark.parametrize("name", ["muxserve", "dedicated"])
def test_a_placed_policy_is_recorded_from_its_placement(
    plan_of: Any, pool: PoolSpec, name: str
) -> None:
    """Seven models on two instances: some are refused, and no weights ever move."""
    plan: Plan = plan_of(on=pool)
    recording = record_window(plan, make_policy(name), 0.0, 40.0)
    drawn = bars(recording.timeline)
    assert {bar.look for bar in drawn} == {"work"}
    assert (len(recording.timeline.of(SpanKind.SWITCH)) > 0) == (name == "muxserve")
    assert len({bar.model for bar in drawn}) == {"muxserve": 4, "dedicated": 2}[name]
    log = decision_log(recording.timeline, recording.journal, recording.models)
    routes = [row for row in log.to_pylist() if row["kind"] == "route"]
    refused = {row["model"] for row in routes if row["instance"] is None}
    assert refused.isdisjoint(row["model"] for row in routes if row["instance"] is not None)
    assert refused


@pytest.mark.parametrize("name", ["aegaeon", "serverlessllm", "index"])
def test_bars_equal_the_spans(plan_of: Any, pool: PoolSpec, name: str) -> None:
    """On a pool that moves KV at every turn: all looks have bars."""
    plan: Plan = plan_of(on=replace(pool, kv_reload_every_turn=True, kv_out_free=True))
    shown = record_window(plan, make_policy(name), 5.0, 40.0).timeline
    drawn = bars(shown)
    assert {bar.instance for bar in drawn} == {0, 1}
    assert len({bar.model for bar in drawn}) > 3
    for look in ("weights", "KV", "work"):
        spans = shown.of(*(kind for kind in LOOKS if LOOKS[kind] == look))
        since, until = (np.clip(spans[k], 5 * NS, 40 * NS) for k in ("start_ns", "end_ns"))
        total_s = sum(bar.end_s - bar.start_s for bar in drawn if bar.look == look)
        assert total_s == pytest.approx((until - since).sum() / NS, abs=1e-6)
        assert total_s > 0 or (name == "serverlessllm" and look == "KV")
    for g in (0, 1):
        own = [bar for bar in drawn if bar.instance == g]
        assert all(before.end_s <= after.start_s for before, after in pairwise(own))
        assert all(5.0 <= bar.start_s < bar.end_s <= 40.0 for bar in own)
        assert all(a.end_s < b.start_s or a[:3] != b[:3] for a, b in pairwise(own))
