"""The live engine of one instance: which stages of the core become orders to the worker."""

from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from runtime.core import EventKind, SlotState, Stage
from runtime.pool.state import INSTANCE, SLOT, State
from runtime.protocol import Turn
from runtime.service.book import Book
from runtime.service.messages import End, Order, Report
from runtime.service.port import StaleError, WorkerPort


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


@pytest.mark.parametrize(
    "changes",
    [
        {"first": (2, 9)},
        {"first": (2,)},
        {"tokens": (7,)},
        {"ids": (1,), "first": (2,), "tokens": (7,)},
        {"ended": {3: End.STOP}},
    ],
)
def test_report_that_is_wrong_in_part_changes_nothing_and_its_order_can_be_blamed(
    changes: dict[str, Any],
) -> None:
    port = port_of(Stage.DECODE, SlotState.READY)
    entries = {1: SimpleNamespace(output=[5, 5]), 2: SimpleNamespace(output=[6])}
    port.book.entries.update(cast(Any, entries))
    port.order = Order(serial=3, stage=Stage.DECODE, model="a", ids=(1, 2), steps=4)
    right: dict[str, Any] = {"ids": (1, 2), "first": (2, 1), "tokens": (7, 8)}
    report = Report(epoch=1, kind=EventKind.STEPS, serial=3, **{**right, **changes})
    with pytest.raises(StaleError):
        port.events_of(report, 0)
    assert [entry.output for entry in entries.values()] == [[5, 5], [6]]
    assert port.order is not None
    assert port.order.ids == (1, 2)


def test_any_report_is_a_sign_of_life() -> None:
    """With a load and orders that overlap for long, a port is never without something it owes."""
    port = port_of(Stage.COMMANDED, SlotState.READY)
    port.loading = "b"
    port.start(TURN)
    port.since_s = 0.0
    assert port.events_of(Report(epoch=1, kind=EventKind.SWITCHED, serial=1), 0) is not None
    assert port.owes
    assert port.since_s > 0.0
