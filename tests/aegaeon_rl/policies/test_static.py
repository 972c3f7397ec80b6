"""Serving from a placement: home or refused, residents in turns, nothing moves."""

from typing import Any

import numpy as np
import pytest

from aegaeon_rl.policies.dedicated import Dedicated
from aegaeon_rl.policies.muxserve import MuxServe
from aegaeon_rl.policies.static import decide, static_memory
from runtime.core import FOREVER_NS, NONE, DecisionKind, EventKind, RequestPhase, SloSpec, Stage
from runtime.emulator.profile import load_profile
from runtime.emulator.run import Run, build_state, run
from runtime.emulator.script import script_of
from runtime.pool.candidates import next_decision, pose
from runtime.pool.placement import preload
from runtime.pool.state import EVENT
from runtime.pool.transitions import apply
from traces import Trace

SLO = SloSpec()
TIMES = ["first_token_ns", "last_token_ns", "on_time_tokens", "phase"]


def play(trace: Trace, pool: Any, policy: Any, slo: SloSpec = SLO) -> Run:
    return run(trace, pool, policy, slo, journal=True)


def rows_of(result: Run, kind: EventKind) -> Any:
    return result.journal[result.journal["kind"] == kind]


@pytest.mark.parametrize("policy", [Dedicated(), MuxServe()], ids=lambda p: p.name)
def test_requests_without_a_place_are_shed_at_once_and_delay_no_other(
    burst: Any, flat_pool: Any, policy: Any
) -> None:
    """Two instances of 30 GB hold one model each; the same trace without the four others."""
    pool = flat_pool(2, vram_bytes=30_000_000_000)
    result = play(burst, pool, policy)
    placed = np.unique(result.results["model"][result.results["phase"] == RequestPhase.DONE])
    assert len(placed) == 2
    is_placed = np.isin(burst.model, placed)
    refused = result.results[~is_placed]
    assert (refused["phase"] == RequestPhase.SHED).all()
    assert refused["emitted_tokens"].sum() == 0
    routes = rows_of(result, EventKind.ROUTE)
    at_arrival = dict(zip(routes["id"].tolist(), routes["time_ns"].tolist(), strict=True))
    assert [at_arrival[i] for i in range(len(burst.model))] == burst_ns(burst)
    alone = play(burst.rows(np.flatnonzero(is_placed)), pool, policy)
    assert result.results[is_placed][TIMES].tolist() == alone.results[TIMES].tolist()
    assert result.refused == 0


def burst_ns(trace: Trace) -> list[int]:
    return np.rint(trace.arrival_s * 1e9).astype(int).tolist()


def test_an_instance_that_is_down_takes_its_models_along(burst: Any, flat_pool: Any) -> None:
    pool = Dedicated().configure(flat_pool(2))
    state = build_state(pool, burst.models, SLO, load_profile(pool.profile))
    preload(state, ((0, 3), (1, 0)))
    memory, event = static_memory(state), np.zeros(1, EVENT)
    for model, before, expected in ((3, NONE, 0), (3, 0, NONE), (0, NONE, 1), (5, NONE, NONE)):
        if before != NONE:
            event["kind"], event["instance"] = EventKind.INSTANCE_FAILED, before
            apply(state, event[0])
        event["kind"], event["model"], event["n"] = EventKind.ARRIVAL, model, 10
        apply(state, event[0])
        kind, index = next_decision(state)
        assert kind == DecisionKind.ROUTE
        pose(state, kind, index, event[0])
        decide(state, kind, index, event[0], memory)
        assert event["instance"][0] == expected
        event["instance"] = NONE
        apply(state, event[0])
    assert state.instances["stage"][0] == Stage.DOWN


@pytest.mark.parametrize("policy", [Dedicated(), MuxServe()], ids=lambda p: p.name)
def test_an_instance_that_returns_serves_its_models_again(
    trace_of: Any, flat_pool: Any, policy: Any
) -> None:
    """Its request of 0 s and that of 3 s are refused while it is away; that of 5 s waits a load."""
    trace = trace_of(
        (0.0, 0, 10, 900), (0.0, 1, 10, 400), (3.0, 0, 10, 5), (5.0, 0, 10, 5), (5.0, 1, 10, 5)
    )
    fails = script_of([(2.0, EventKind.INSTANCE_FAILED, 0), (4.0, EventKind.INSTANCE_JOINED, 0)])
    result = run(trace, flat_pool(2), policy, SLO, journal=True, script=fails)
    phases = [RequestPhase(phase).name for phase in result.results["phase"]]
    assert phases == ["SHED", "DONE", "SHED", "DONE", "DONE"]
    assert rows_of(result, EventKind.WEIGHTS_READY)["instance"].tolist() == [0]
    assert result.results["first_token_ns"][3] >= 6e9
    assert set(rows_of(result, EventKind.ROUTE)["instance"]) == {NONE, 0, 1}
    assert result.refused == 0


def test_residents_with_work_alternate_by_their_share_of_a_tbt(
    trace_of: Any, flat_pool: Any
) -> None:
    """Steps of 10 ms: a turn ends with the first at or past 20 ms. The round goes on behind 0."""
    trace = trace_of((0.0, 0, 10, 30), (0.0, 1, 10, 30))
    result = play(trace, flat_pool(1), MuxServe(), SloSpec(tbt_s=0.04))
    turns = rows_of(result, EventKind.TURN)
    assert turns["model"].tolist()[:10] == [1, 0] * 5
    assert set(turns["quota_ns"]) == {20_000_000}
    steps = rows_of(result, EventKind.STEPS)
    assert set(steps["n"][:10]) == {2}


def test_a_model_alone_on_its_instance_runs_on(trace_of: Any, flat_pool: Any) -> None:
    result = play(trace_of((0.0, 0, 10, 30), (0.1, 0, 10, 30)), flat_pool(1), MuxServe())
    turns = rows_of(result, EventKind.TURN)
    assert turns["quota_ns"].tolist() == [FOREVER_NS]


@pytest.mark.parametrize(
    ("policy", "instances"), [(Dedicated(), 6), (MuxServe(), 2)], ids=["dedicated", "muxserve"]
)
def test_nothing_is_loaded_or_moved_after_the_start(
    burst: Any, flat_pool: Any, policy: Any, instances: int
) -> None:
    result = play(burst, flat_pool(instances), policy)
    kinds = set(result.journal["kind"].tolist())
    assert not kinds & {EventKind.WEIGHTS_READY, EventKind.KV_OUT_DONE, EventKind.KV_IN_DONE}
    assert (result.results["phase"] == RequestPhase.DONE).all()
