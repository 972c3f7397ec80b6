"""The emulator's tables: arrivals from a trace, a fresh pool at time 0, growth."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from runtime.core import FOREVER_NS, NONE, PoolSpec, SloSpec
from runtime.emulator.run import build_sim
from runtime.emulator.tables import arrivals_of, grow_journal, grow_slots

Pool = Callable[..., PoolSpec]


def test_arrivals_are_whole_nanoseconds(trace_of: Any) -> None:
    arrivals = arrivals_of(trace_of((0.1, 0, 3, 4), (1.2345678916, 1, 5, 6)))
    assert arrivals.time_ns.tolist() == [100_000_000, 1_234_567_892]
    assert arrivals.prompt_tokens.tolist() == [3, 5]
    assert arrivals.output_tokens.tolist() == [4, 6]
    assert arrivals.model.tolist() == [0, 1]


def test_arrivals_take_the_priority_or_zero(trace_of: Any) -> None:
    trace = trace_of((0.0, 0, 1, 1), (0.0, 0, 1, 1))
    assert arrivals_of(trace).priority.tolist() == [0, 0]
    urgent = replace(trace, priority=np.array([2, -1], np.int8))
    assert arrivals_of(urgent).priority.tolist() == [2, -1]


@pytest.mark.parametrize(
    ("horizon_s", "timeout_s", "horizon_ns", "timeout_ns"),
    [(None, 0.0, FOREVER_NS, 0), (1.5, 0.25, 1_500_000_000, 250_000_000)],
)
def test_sim_starts_with_nothing_pending(
    trace_of: Any,
    flat_pool: Pool,
    horizon_s: float | None,
    timeout_s: float,
    horizon_ns: int,
    timeout_ns: int,
) -> None:
    trace, pool = trace_of((0.5, 0, 7, 8)), flat_pool(nodes=2, ttft_timeout_s=timeout_s)
    sim = build_sim(trace, pool, SloSpec(), horizon_s=horizon_s, journal_rows=0)
    for timer in ("compute_ns", "in_ns", "out_ns"):
        assert sim.timers[timer].tolist() == [FOREVER_NS] * 2
    assert sim.control["horizon_ns"][0] == horizon_ns
    assert sim.control["ttft_timeout_ns"][0] == timeout_ns
    assert sim.control["is_journaling"][0] == 0
    assert sim.slot.tolist() == [NONE]
    result = sim.results[0]
    assert (result["arrival_ns"], result["due_tokens"]) == (500_000_000, 8)
    assert (result["first_token_ns"], result["phase"], result["prompt_tokens"]) == (NONE, 0, 7)


def test_growth_keeps_what_is_there(trace_of: Any, flat_pool: Pool) -> None:
    trace = trace_of((0.0, 0, 1, 1))
    sim = build_sim(trace, flat_pool(), SloSpec(), horizon_s=None, journal_rows=2)
    sim.journal["id"] = [5, 6]
    sim.state.requests["id"][0] = 9
    slots = len(sim.state.requests)
    grow_journal(sim)
    grow_slots(sim)
    assert sim.journal["id"].tolist() == [5, 6, 0, 0]
    assert len(sim.state.requests) == len(sim.touched) == 2 * slots
    assert sim.state.requests["id"][0] == 9
