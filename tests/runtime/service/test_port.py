"""The live engine of one instance: which stages of the core become orders to the worker."""

from types import SimpleNamespace
from typing import Any, cast

import numpy as np

from runtime.core import SlotState, Stage
from runtime.pool.state import INSTANCE, SLOT, State
from runtime.protocol import Turn
from runtime.service.book import Book
from runtime.service.port import WorkerPort


def port_of(stage: Stage, slot: SlotState) -> WorkerPort:
    instances, slots = np.zeros(1, INSTANCE), np.zeros((1, 2), SLOT)
    instances["stage"], instances["active_slot"], slots["state"] = stage, 0, slot
    state = cast(State, SimpleNamespace(instances=instances, slots=slots))
    models = [cast(Any, SimpleNamespace(name="a"))]
    port = WorkerPort(0, state, Book(4, lambda *_: None), models, *[lambda *_: None] * 3)  # type: ignore[arg-type]
    port.came_up()
    return port


TURN = Turn(instance=0, model=0, quota_ns=1, phases=3, incoming=(), prefill=(), batch=())


def test_turn_is_ordered_once_its_weights_are_there() -> None:
    port = port_of(Stage.COMMANDED, SlotState.LOADING)
    port.start(TURN)
    assert port.out == []
    port.state.slots["state"][0, 0] = SlotState.READY
    port.start(TURN)
    assert [order.stage for order in port.out] == [Stage.COMMANDED]


def test_prefetch_that_ends_within_a_switch_orders_nothing_anew() -> None:
    """The core says START again at any WEIGHTS_READY while the turn is COMMANDED."""
    port = port_of(Stage.COMMANDED, SlotState.READY)
    port.start(TURN)
    port.start(TURN)
    assert len(port.out) == 1
