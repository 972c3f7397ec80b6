"""A scene is what the pool's tables and its journal say."""

from collections.abc import Callable

import numpy as np
import pytest

from envs.episode import empty_state
from envs.rendering.scene import Scene
from runtime.core import NONE, NS, RequestPhase, Stage
from runtime.timeline.bars import bars
from runtime.timeline.replay import timeline
from runtime.timeline.spans import SpanKind

MakeScene = Callable[..., Scene]


@pytest.mark.parametrize("seconds", [3.0, 20.0])
def test_bars_are_those_of_the_reports_gantt(make_scene: MakeScene, seconds: float) -> None:
    scene = make_scene()
    sim, now_ns = scene.sim, int(scene.sim.state.pool["now_ns"][0])
    journal = sim.journal[: int(sim.control["journal_rows"][0])]
    from_ns = now_ns - round(seconds * NS)
    whole = timeline(empty_state(scene.spec, scene.episode), journal, start_ns=from_ns)
    drawn, beside = scene.bars(seconds)
    assert drawn == bars(whole)
    assert len({bar.model for bar in drawn}) > 3
    for look, kind in (("ahead", SpanKind.LOAD_AHEAD), ("out", SpanKind.KV_OUT)):
        spans = whole.of(kind)
        ends = sorted((spans["end_ns"] / NS).tolist())
        assert sorted(bar.end_s for bar in beside if bar.look == look) == ends
    assert {bar.look for bar in beside} == {"ahead", "out"}


def test_looking_twice_shows_the_same_and_looking_later_goes_on(make_scene: MakeScene) -> None:
    scene = make_scene()
    assert scene.bars(5.0) == scene.bars(5.0)
    assert scene.view() == scene.view()
    early, late = make_scene(until_s=15.0), make_scene(until_s=30.0)
    early.bars(5.0)
    early.sim = late.sim  # the same episode, further on
    assert early.bars(20.0) == late.bars(20.0)


def test_view_counts_what_the_tables_hold(make_scene: MakeScene) -> None:
    scene = make_scene()
    view, state = scene.view(), scene.sim.state
    live = state.requests[state.requests["phase"] != RequestPhase.FREE]
    open_now = live[np.isin(live["phase"], (RequestPhase.WAITING, RequestPhase.READY))]
    assert view.in_flight == len(live) > 10
    assert view.open == len(open_now) == sum(q.waiting + q.ready for q in view.queues)
    for queue in view.queues:
        mine = open_now[open_now["model"] == queue.model]
        assert queue.waiting == np.sum(mine["phase"] == RequestPhase.WAITING)
        assert queue.ready == np.sum(mine["phase"] == RequestPhase.READY)
        oldest_s = (state.pool["now_ns"][0] - mine["arrival_ns"].min()) / NS
        assert queue.oldest_s == pytest.approx(oldest_s)
    slacks = [(q.slack_s < 0, q.slack_s) for q in view.queues]
    assert slacks == sorted(slacks)
    assert view.on_time > 0
    assert view.now_s < view.end_s


def test_view_shows_each_instance_and_whom_the_decision_is_asked_of(
    make_scene: MakeScene,
) -> None:
    seen = set()
    for until_s in np.arange(12.0, 30.0, 0.7):
        scene = make_scene(until_s=float(until_s))
        view, state = scene.view(), scene.sim.state
        assert [one.number for one in view.instances] == [0, 1]
        assert view.asked in ("turn", "prefetch")
        assert view.asked_of == scene.sim.control["decision_index"][0]
        for one, row in zip(view.instances, state.instances, strict=True):
            seen.add(one.stage)
            assert one.model == row["model"]
            assert (one.turn_s is None) == (row["stage"] < Stage.COMMANDED)
            assert 0 <= one.kv_share <= 1
            assert one.next_model == NONE or one.next_model in state.slots["model"][one.number]
            assert (one.load_left_s > 0) <= (row["loading_slot"] >= 0)
        asked = view.instances[view.asked_of]
        assert (asked.stage == "free") == (view.asked == "turn")
    assert seen >= {"free", "decode"}
