"""INTERRUPT and ROUTE in the environment: what their rows show, what their actions do."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from envs.pools import Pools
from envs.scenario import ScenarioSpec
from runtime.core import NONE, DecisionKind, PoolSpec, SloSpec, Stage
from runtime.pool.features import ROW_FEATURES, F
from runtime.pool.integrity import check_integrity
from traces import Trace, TraceKind

NAMES = [feature.name for feature in ROW_FEATURES]
URGENT_TOKENS = 5
SIZES = ("Qwen2.5-7B", "Yi-1.5-9B")


def played(instances: int = 1, **changes: Any) -> ScenarioSpec:
    """From 1 s on model a decodes, by one turn as long as it likes; at 10 s a request of model b
    comes, due at 13 s. The last request only makes the trace 40 s long."""
    trace = Trace(
        name="hand",
        kind=TraceKind.SYNTHETIC,
        models=("a", "b"),
        model=np.array([0, 1, 0], np.int32),
        arrival_s=np.array([1.0, 10.0, 40.0]),
        prompt_tokens=np.array([100, 100, 10], np.int32),
        output_tokens=np.array([3500, URGENT_TOKENS, 1], np.int32),
    )
    pool = PoolSpec(
        name="hand",
        profile="h100",
        checkpoints=SIZES,
        instances_per_node=instances,
        **{"interrupt_slack_s": 3.0, **changes.pop("pool", {})},
    )
    slo = SloSpec(ttft_s=3.0, tbt_s=0.1)
    spans = {"warm_s": 0.0, "shortest_s": 40.0, "longest_s": 40.0}
    return ScenarioSpec(traces=(trace,), pools=(pool,), slos=(slo,), **spans, **changes)


def new_pools(spec: ScenarioSpec) -> Pools:
    pools = Pools(spec, 1, rows=4, quotas_s=(60.0, 1.0))
    pools.seed(0, 0)
    pools.reset(0)
    return pools


def due(pools: Pools) -> DecisionKind:
    assert pools.sims[0] is not None
    return DecisionKind(int(pools.sims[0].control["decision_kind"][0]))


def act(pools: Pools, action: int) -> float:
    return float(pools.step(np.array([action]))[0])


def newest_first(pools: Pools) -> int:
    """A turn of the model of highest number, of 60 s; no prefetch; instance 0."""
    if due(pools) == DecisionKind.TURN:
        return int(pools.buffers.models[0].argmax()) * 2
    return 0 if due(pools) == DecisionKind.ROUTE else pools.idle_action


def until(pools: Pools, kind: DecisionKind) -> None:
    while due(pools) != kind:
        act(pools, newest_first(pools))


@pytest.mark.parametrize(("stops", "missed"), [(True, 0), (False, URGENT_TOKENS)])
def test_interrupt_saves_the_deadlines_of_an_urgent_request(stops: bool, missed: int) -> None:
    spec = played()
    pools, paid, asked = new_pools(spec), 0.0, 0
    while not pools.is_over[0]:
        is_interrupt = due(pools) == DecisionKind.INTERRUPT
        asked += is_interrupt
        paid += act(pools, 0 if is_interrupt and stops else newest_first(pools))
    assert asked == 1
    assert -paid * spec.deadline_rate == pytest.approx(missed, abs=1e-6)


def test_interrupt_shows_the_urgent_model_and_offers_stop_or_keep() -> None:
    pools = new_pools(played())
    until(pools, DecisionKind.INTERRUPT)
    assert pools.now_s[0] == pytest.approx(10.0)
    assert pools.buffers.models[0].tolist() == [1, NONE, NONE, NONE]
    assert np.flatnonzero(pools.mask[0]).tolist() == [0, pools.idle_action]
    shown = pools.observation(0)
    row = dict(zip(NAMES, shown["rows"][:F].tolist(), strict=True))
    assert row["waiting"] == pytest.approx(1 / 8)
    assert row["is_loaded"] == 0
    assert (shown["rows"][F:] == 0).all()
    assert shown["instance"][:2].tolist() == [0, 0]  # neither a TURN nor a PREFETCH


@pytest.mark.parametrize("action", [0, 1, 8])  # stop; masked, so keep; keep
def test_interrupt_actions_stop_or_keep_the_turn(action: int) -> None:
    pools = new_pools(played())
    until(pools, DecisionKind.INTERRUPT)
    act(pools, action)
    assert due(pools) != DecisionKind.INTERRUPT
    while due(pools) != DecisionKind.TURN:
        act(pools, pools.idle_action)
    assert pools.now_s[0] < 10.1 if action == 0 else pools.now_s[0] > 15


def test_route_rows_are_instances_and_its_actions_send_the_request_there() -> None:
    pools = new_pools(played(instances=2, routes=True))
    assert due(pools) == DecisionKind.ROUTE
    assert pools.buffers.models[0].tolist() == [0, 1, NONE, NONE]
    assert np.flatnonzero(pools.mask[0]).tolist() == [0, 2]  # it cannot be refused
    assert (pools.observation(0)["instance"] == 0).all()
    act(pools, 2)
    assert due(pools) == DecisionKind.TURN
    sim = pools.sims[0]
    assert sim is not None
    assert int(sim.control["decision_index"][0]) == 1
    assert sim.state.instances["routed"].tolist() == [0, 1]


def test_route_rows_show_the_request_and_the_queue_of_each_instance() -> None:
    pools = new_pools(played(instances=2, routes=True))
    act(pools, 0)
    until(pools, DecisionKind.ROUTE)
    rows = pools.observation(0)["rows"].reshape(-1, F)
    first, second = (dict(zip(NAMES, row.tolist(), strict=True)) for row in rows[:2])
    assert (first["ready"], second["ready"]) == (pytest.approx(1 / 8), 0)  # model a decodes on 0
    assert first["oldest_wait"] == 0
    slack = 1 - first["switch_left"] / 3  # of a TTFT of 3 s
    assert first["slack_min"] == first["slack_mean"] == pytest.approx(slack, abs=1e-6)
    assert first["late_share"] == 0
    assert 0 < first["kv_need"] < 0.1


def test_route_masks_an_instance_that_is_down() -> None:
    pools = new_pools(played(instances=2, routes=True))
    act(pools, 0)
    sim = pools.sims[0]
    assert sim is not None
    sim.state.instances["stage"][1] = Stage.DOWN
    until(pools, DecisionKind.ROUTE)
    assert pools.buffers.models[0].tolist() == [0, NONE, NONE, NONE]


@pytest.mark.parametrize("interrupt_slack_s", [0.0, 5.0])
def test_random_actions_in_a_routed_pool_keep_the_laws(
    scenario: ScenarioSpec, interrupt_slack_s: float
) -> None:
    pool = replace(scenario.pools[0], interrupt_slack_s=interrupt_slack_s, mtbf_s=3.0, mttr_s=0.5)
    pools = Pools(replace(scenario, pools=(pool,), routes=True), 1, rows=8)
    rng, choose = np.random.default_rng(0), Chosen()
    pools.seed(0, 3)
    pools.reset(0)
    for _ in range(600):
        if pools.is_over[0]:
            pools.reset(0)
        kind = due(pools)
        act(pools, choose(rng, pools, kind))
        assert pools.sims[0] is not None
        check_integrity(pools.sims[0].state)
    assert DecisionKind.ROUTE in choose.seen
    assert (DecisionKind.INTERRUPT in choose.seen) == (interrupt_slack_s > 0)


class Chosen:
    """Any action at all, often an allowed one; `seen`: the kinds of decision it answered."""

    def __init__(self) -> None:
        self.seen: set[DecisionKind] = set()

    def __call__(self, rng: np.random.Generator, pools: Pools, kind: DecisionKind) -> int:
        self.seen.add(kind)
        able = np.flatnonzero(pools.mask[0]) if rng.random() < 0.8 else pools.idle_action + 1
        return int(rng.choice(able))
