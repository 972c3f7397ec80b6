"""`preload`: weights that are resident before the first event."""

from typing import Any

import pytest

from runtime.core import NONE, Command, EventKind, SlotState, Stage
from runtime.pool.integrity import check_integrity
from runtime.pool.placement import preload


def test_placed_models_are_ready_and_the_first_is_present(hand_pool: Any) -> None:
    pool = hand_pool(instances_per_node=2)
    preload(pool.state, ((1, 1), (1, 0)))
    check_integrity(pool.state)
    assert pool.state.slots["model"].tolist() == [[NONE, NONE], [1, 0]]
    assert pool.state.slots["state"][1].tolist() == [SlotState.READY] * 2
    assert pool.state.instances["model"].tolist() == [NONE, 1]


@pytest.mark.parametrize(("model", "switches"), [(1, 0), (0, 1)])
def test_a_turn_of_a_placed_model_loads_nothing(hand_pool: Any, model: int, switches: int) -> None:
    pool = hand_pool()
    preload(pool.state, ((0, 1), (0, 0)))
    pool.arrive(model)
    pool.turn(0, model)
    assert pool.drain() == [(Command.START, 0)]
    pool.apply(EventKind.SWITCHED, instance=0)
    assert (pool.stage(), pool.inst()["switches"]) == (Stage.PREFILL, switches)


@pytest.mark.parametrize("placement", [((0, 0), (0, 0)), ((0, 0), (0, 1), (0, 2))])
def test_more_than_an_instance_holds_is_refused(hand_pool: Any, placement: Any) -> None:
    pool = hand_pool(weights=(100, 100, 100))
    with pytest.raises(ValueError, match=r"instance 0 cannot take model \d beside"):
        preload(pool.state, placement)
