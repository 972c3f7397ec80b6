"""`dedicated`: instances go to the models with the highest rates, one each, for ever."""

from typing import Any

import pytest

from aegaeon_rl.policies.dedicated import Dedicated
from runtime.core import Dispatch, PrefetchMode, RequestPhase, SloSpec
from runtime.emulator.profile import load_profile
from runtime.emulator.run import build_state, run, workload_of


@pytest.mark.parametrize(
    ("instances", "pairs"),
    [(2, ((0, 1), (1, 0))), (3, ((0, 1), (1, 0), (2, 2))), (9, ((0, 1), (1, 0), (2, 2)))],
)
def test_instances_go_by_rate_then_first_appearance(
    trace_of: Any, flat_pool: Any, instances: int, pairs: Any
) -> None:
    trace = trace_of(*[(float(i), m, 10, 10) for i, m in enumerate((0, 1, 2, 1))])
    pool = Dedicated().configure(flat_pool(instances))
    state = build_state(pool, trace.models, SloSpec(), load_profile(pool.profile))
    assert Dedicated().placement(state, workload_of(trace)) == pairs


def test_instances_never_switch_after_the_start(burst: Any, flat_pool: Any) -> None:
    result = run(burst, flat_pool(4), Dedicated(), SloSpec())
    assert result.instances["switches"].sum() == 0
    assert result.instances["switch_ns"].sum() == 0
    shed = result.results["phase"] == RequestPhase.SHED
    assert len(set(burst.model[shed])) == 2
    assert set(burst.model[shed]).isdisjoint(burst.model[~shed])


def test_configure_keeps_one_slot_and_reserves_no_more_than_its_model(flat_pool: Any) -> None:
    pool = Dedicated().configure(flat_pool(1, weight_slots=3, slots_reserved=True))
    assert (pool.weight_slots, pool.slots_reserved, pool.roles) == (1, False, ())
    assert (pool.dispatch, pool.prefetch) == (Dispatch.PUSH, PrefetchMode.NONE)
