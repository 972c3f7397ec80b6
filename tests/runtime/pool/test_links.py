"""What the scheduler believes of shared root ports, at 100 bytes a second."""

from typing import Any

import numpy as np
import pytest

from runtime.core import NONE, Command, DecisionKind, EventKind
from runtime.pool.features import F, I, instance_features, row_features


@pytest.fixture
def pair(hand_pool: Any) -> Any:
    """Two instances on one port; model 0 began to load on the first at 0 s."""
    pool = hand_pool(instances_per_node=2, instances_per_port=2)
    for model in (0, 1):
        pool.arrive(model)
    pool.turn(0, 0)
    pool.drain()
    return pool


def load_left_s(pool: Any, g: int) -> float:
    out = np.zeros(I, np.float32)
    instance_features(pool.state, DecisionKind.TURN, g, out)
    return float(out[5])


def switch_left_s(pool: Any, g: int, m: int) -> float:
    out = np.zeros(F, np.float32)
    row_features(pool.state, g, m, out)
    return float(out[8])


def flows(pool: Any) -> tuple[int, int]:
    return tuple(pool.state.links[["in_flows", "out_flows"]][0].item())


def test_belief_of_a_load_is_twice_as_long_beside_another(pair: Any) -> None:
    assert (load_left_s(pair, 0), switch_left_s(pair, 1, 1)) == (1.0, 2.0)
    pair.turn(1, 1, at_s=0.5)
    assert (load_left_s(pair, 0), load_left_s(pair, 1)) == (1.0, 2.0)
    assert (Command.SHARE_IN, 1) in pair.drain()
    pair.apply(EventKind.WEIGHTS_READY, instance=0, at_s=1.5)
    assert load_left_s(pair, 1) == 0.5


def test_ports_apart_share_nothing(hand_pool: Any) -> None:
    pool = hand_pool(instances_per_node=2)
    for model in (0, 1):
        pool.arrive(model)
    pool.turn(0, 0)
    pool.turn(1, 1, at_s=0.5)
    assert (load_left_s(pool, 0), load_left_s(pool, 1)) == (0.5, 1.0)
    assert not {Command.SHARE_IN, Command.SHARE_OUT} & {kind for kind, _ in pool.drain()}


def test_load_that_takes_the_place_of_another_is_one_transfer(pair: Any) -> None:
    pair.apply(EventKind.WEIGHTS_READY, instance=0, at_s=1.0)
    pair.apply(EventKind.SWITCHED, instance=0)
    pair.apply(EventKind.PREFETCH, instance=0, model=1)
    assert flows(pair) == (1, 0)
    pair.prefill(0)
    pair.apply(EventKind.INSTANCE_FAILED, instance=0)
    assert flows(pair) == (0, 0)
    assert pair.inst(0)["load_since_ns"] == NONE


def test_kv_that_leaves_is_one_transfer_however_many_requests(hand_pool: Any) -> None:
    pool = hand_pool(instances_per_node=2, instances_per_port=2)
    for _ in range(2):
        pool.arrive(0)
    pool.arrive(1)
    pool.serve(0, 0)
    pool.drain()
    pool.turn(0, 1)
    assert pool.drain().count((Command.SHARE_OUT, 0)) == 1
    assert flows(pool) == (1, 1)
    pool.apply(EventKind.KV_OUT_DONE, instance=0, n=1)
    assert flows(pool) == (1, 1)
    pool.apply(EventKind.KV_OUT_DONE, instance=0, n=1)
    assert flows(pool) == (1, 0)
