"""The agenda names the instance whose timer is due first, whatever the order of changes."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.compiled import kernel
from runtime.core import FOREVER_NS, EventKind
from runtime.emulator.agenda import NOTHING_DUE, new_agenda, schedule
from runtime.emulator.tables import TIMER

TIMES = st.one_of(st.integers(0, 6), st.just(FOREVER_NS))
KINDS = st.sampled_from([EventKind.SWITCHED, EventKind.STEPS, EventKind.TURN_ENDED])
WAYS = st.sampled_from([EventKind.WEIGHTS_READY, EventKind.KV_IN_DONE])


@kernel
def change(timers, agenda, g, out_ns, in_ns, in_kind, compute_ns, kind):  # type: ignore[no-untyped-def]
    timer = timers[g]
    timer.out_ns, timer.in_ns, timer.in_kind = out_ns, in_ns, in_kind
    timer.compute_ns, timer.kind = compute_ns, kind
    schedule(timers, agenda, g)


def idle_timers(instances: int) -> np.ndarray:
    timers = np.zeros(instances, TIMER)
    timers["compute_ns"] = timers["in_ns"] = timers["out_ns"] = timers["due_ns"] = FOREVER_NS
    timers["due_kind"] = NOTHING_DUE
    return timers


@settings(max_examples=200, deadline=None)
@given(
    instances=st.integers(1, 9),
    changes=st.lists(st.tuples(st.integers(0, 8), TIMES, TIMES, WAYS, TIMES, KINDS), max_size=30),
)
def test_agenda_is_the_least_time_then_kind_then_instance(instances: int, changes: list) -> None:
    timers, agenda = idle_timers(instances), new_agenda(instances)
    for g, *fields in changes:
        change(timers, agenda, g % instances, *(int(field) for field in fields))
        pending = [
            (int(timer[time]), int(kind), i)
            for i, timer in enumerate(timers)
            for time, kind in (
                ("out_ns", EventKind.KV_OUT_DONE),
                ("in_ns", timer["in_kind"]),
                ("compute_ns", timer["kind"]),
            )
            if timer[time] != FOREVER_NS
        ]
        winner = timers[agenda[1]]
        due = (int(winner["due_ns"]), int(winner["due_kind"]), int(agenda[1]))
        assert due == min(pending, default=(FOREVER_NS, NOTHING_DUE, due[2]))


@pytest.mark.parametrize("instances", [1, 2, 3, 1000])
def test_without_a_timer_nothing_is_due(instances: int) -> None:
    assert idle_timers(instances)["due_ns"][new_agenda(instances)[1]] == FOREVER_NS
