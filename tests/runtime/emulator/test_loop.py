"""The loop that owns virtual time: order, signals, growth, the horizon, what it refuses."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from aegaeon_rl.policies.heuristics import fcfs, index
from runtime.core import NS, DecisionKind, EventKind, PoolSpec, PrefetchMode, SloSpec
from runtime.emulator.loop import Signal, advance, answer, missed_deadlines
from runtime.emulator.profile import load_profile
from runtime.emulator.run import build_sim, build_state, run
from runtime.emulator.tables import Sim, arrivals_of, grow_journal, grow_slots, new_sim
from traces import Trace

SLO = SloSpec()
Pool = Callable[..., PoolSpec]


def sim_of(trace: Trace, pool: PoolSpec, *, capacity: int = 64, journal_rows: int = 4096) -> Sim:
    state = build_state(pool, trace.models, SLO, load_profile(pool.profile), capacity=capacity)
    return new_sim(state, arrivals_of(trace), journal_rows=journal_rows)


def journal_of(sim: Sim) -> np.ndarray:
    return sim.journal[: sim.control["journal_rows"][0]]


def test_loop_breaks_ties_by_kind_then_index(trace_of: Any, flat_pool: Pool, timeline: Any) -> None:
    """Two loads end, two turns switch and two requests arrive, all at 1 s."""
    trace = trace_of((0.0, 0, 10, 1), (0.0, 1, 10, 1), (1.0, 0, 10, 1), (1.0, 1, 10, 1))
    events = timeline(run(trace, flat_pool(nodes=2), fcfs(), SLO, journal=True).journal)
    assert [(kind, g) for kind, time, g in events if time == NS] == [
        ("WEIGHTS_READY", 0),
        ("WEIGHTS_READY", 1),
        ("SWITCHED", 0),
        ("SWITCHED", 1),
        ("ARRIVAL", -1),
        ("ARRIVAL", -1),
    ]
    second = 1_010_100_000
    assert [(kind, g) for kind, time, g in events if time == second][:4] == [
        ("PREFILLED", 0),
        ("FINISHED", 0),
        ("PREFILLED", 1),
        ("FINISHED", 1),
    ]


def test_loop_asks_only_when_the_instant_is_over(trace_of: Any, flat_pool: Pool) -> None:
    """Three requests arrive at once: the first turn is decided with all of them in sight."""
    trace = trace_of((2.0, 0, 1, 1), (2.0, 1, 1, 1), (2.0, 1, 1, 1))
    sim = sim_of(trace, flat_pool())
    assert advance(sim) == Signal.DECISION
    assert journal_of(sim)["kind"].tolist() == [EventKind.ARRIVAL] * 3
    assert sim.state.pool["claimable"][0] == 3
    assert sim.control["decision_kind"][0] == DecisionKind.TURN
    assert sim.event["time_ns"][0] == 2 * NS


def test_signal_is_end_when_every_request_has_ended(
    trace_of: Any, flat_pool: Pool, script: Any
) -> None:
    sim, policy = sim_of(trace_of((0.0, 0, 1, 2)), flat_pool()), script([(0, 1.0)])
    memory = policy.memory(sim.state)
    assert policy.drive(sim, memory) == Signal.END
    assert policy.drive(sim, memory) == Signal.END
    assert sim.state.pool["in_flight"][0] == 0


def test_signal_is_stuck_when_requests_wait_and_nothing_is_pending(
    trace_of: Any, flat_pool: Pool, script: Any
) -> None:
    sim, policy = sim_of(trace_of((0.0, 0, 1, 2)), flat_pool()), script()
    assert policy.drive(sim, policy.memory(sim.state)) == Signal.STUCK


def test_signal_is_slots_full_until_the_table_has_grown(
    trace_of: Any, flat_pool: Pool, script: Any
) -> None:
    sim = sim_of(trace_of(*[(0.0, 0, 1, 1)] * 3), flat_pool(), capacity=2)
    assert advance(sim) == Signal.SLOTS_FULL
    assert advance(sim) == Signal.SLOTS_FULL
    assert len(journal_of(sim)) == 2
    grow_slots(sim)
    assert advance(sim) == Signal.DECISION
    assert len(journal_of(sim)) == 3


def test_signal_is_journal_full_until_the_journal_has_grown(trace_of: Any, flat_pool: Pool) -> None:
    trace = trace_of(*[(0.0, 0, 1, 1)] * 6)
    sim = sim_of(trace, flat_pool(), journal_rows=8)
    assert advance(sim) == Signal.JOURNAL_FULL
    written = journal_of(sim).copy()
    while advance(sim) == Signal.JOURNAL_FULL:
        grow_journal(sim)
    assert journal_of(sim)[: len(written)].tolist() == written.tolist()
    assert len(journal_of(sim)) == 6


def play_small(trace: Trace, pool: PoolSpec, policy: Any, capacity: int, rows: int) -> Sim:
    sim = sim_of(trace, policy.configure(pool), capacity=capacity, journal_rows=rows)
    memory = policy.memory(sim.state)
    while (signal := policy.drive(sim, memory)) != Signal.END:
        assert signal in (Signal.SLOTS_FULL, Signal.JOURNAL_FULL)
        grow_slots(sim) if signal == Signal.SLOTS_FULL else grow_journal(sim)
    return sim


@pytest.mark.parametrize(("capacity", "rows"), [(1, 4096), (5, 16), (3, 64)])
def test_growth_of_slots_and_journal_leaves_no_trace(
    burst: Trace, h100x4: PoolSpec, capacity: int, rows: int
) -> None:
    small = play_small(burst, h100x4, index(), capacity, rows)
    large = run(burst, h100x4, index(), SLO, journal=True)
    assert len(small.state.requests) > capacity
    assert journal_of(small).tolist() == large.journal.tolist()
    assert small.results.tolist() == large.results.tolist()


def test_horizon_ends_a_run_before_the_first_event_beyond_it(
    trace_of: Any, flat_pool: Pool, script: Any, timeline: Any
) -> None:
    trace = trace_of((0.0, 0, 100, 5), (3.0, 0, 1, 1))
    whole = timeline(run(trace, flat_pool(), fcfs(), SLO, journal=True).journal)
    for horizon_ns in (0, NS - 1, NS, 1_011_000_000, 3 * NS):
        cut = run(trace, flat_pool(), fcfs(), SLO, journal=True, horizon_s=horizon_ns / NS)
        assert timeline(cut.journal) == [e for e in whole if e[1] <= horizon_ns]
        assert cut.end_s * NS <= horizon_ns


def misses(results: np.ndarray) -> int:
    return int((results["due_tokens"] - results["on_time_tokens"]).sum())


def test_missed_deadlines_end_as_due_minus_on_time(burst: Trace, h100x4: PoolSpec) -> None:
    slo, pool = SloSpec(ttft_s=0.8, tbt_s=0.02), replace(h100x4, instances_per_node=1)
    sim = build_sim(burst, pool, slo, horizon_s=None, journal_rows=0)
    policy, counts = index(), [0]
    memory = policy.memory(sim.state)
    for second in range(1, 60):
        sim.control["horizon_ns"] = second * NS
        assert policy.drive(sim, memory) == Signal.END
        counts.append(missed_deadlines(sim))
    assert sim.state.pool["in_flight"][0] == 0
    assert counts == sorted(counts)
    assert counts[-1] == misses(sim.results)
    assert len(set(counts)) > 5


def test_missed_deadlines_count_a_deadline_the_moment_it_has_passed(
    trace_of: Any, flat_pool: Pool
) -> None:
    sim = sim_of(trace_of((0.0, 0, 1, 4)), flat_pool())
    assert advance(sim) == Signal.DECISION
    found = []
    step_ns = NS // 10
    for late_ns in (0, 10 * NS, 10 * NS + 1, 10 * NS + step_ns, 10 * NS + step_ns + 1, 99 * NS):
        sim.state.pool["now_ns"] = late_ns
        found.append(missed_deadlines(sim))
    assert found == [0, 0, 1, 1, 2, 4]


NONSENSE: list[dict[str, int]] = [
    {"kind": EventKind.PREFETCH},
    {"kind": EventKind.ROUTE, "request": 0},
    {"kind": EventKind.ARRIVAL},
    {"kind": EventKind.TURN, "model": -1},
    {"kind": EventKind.TURN, "model": 99},
    {"kind": EventKind.TURN, "model": 1},  # nothing of it waits
    {"kind": EventKind.TURN, "model": 0, "quota_ns": 0},
    {"kind": EventKind.TURN, "model": 0, "instance": 1},
    {"kind": EventKind.TURN, "model": 0, "tag": 5},  # nobody carries the tag
    {"kind": EventKind.IDLE, "instance": -1},
]


@pytest.mark.parametrize("nonsense", NONSENSE, ids=str)
def test_answer_replaces_nonsense_by_idle_and_counts_it(
    trace_of: Any, flat_pool: Pool, nonsense: dict[str, int]
) -> None:
    trace = trace_of((0.0, 0, 1, 1), (9.0, 1, 1, 1))
    sim = sim_of(trace, flat_pool())
    assert advance(sim) == Signal.DECISION
    for column, value in nonsense.items():
        sim.event[column] = value
    assert answer(sim) != 0
    assert sim.control["refused"][0] == 1
    row = journal_of(sim)[-1]
    assert (row["kind"], row["instance"], row["is_fallback"]) == (EventKind.IDLE, 0, 1)
    assert advance(sim) == Signal.DECISION  # time went on, to the next arrival
    assert sim.state.pool["now_ns"][0] == 9 * NS
    assert journal_of(sim)["is_fallback"].sum() == 1


def test_answer_replaces_a_refused_prefetch_by_none(trace_of: Any, flat_pool: Pool) -> None:
    pool = flat_pool(prefetch=PrefetchMode.CAUSAL)
    sim = sim_of(trace_of((0.0, 0, 1, 500), (0.0, 1, 1, 1)), pool)
    assert advance(sim) == Signal.DECISION
    sim.event["kind"], sim.event["model"] = EventKind.TURN, 0
    answer(sim)
    assert advance(sim) == Signal.DECISION
    assert sim.control["decision_kind"][0] == DecisionKind.PREFETCH
    sim.event["model"] = 0  # what runs already
    answer(sim)
    assert sim.control["refused"][0] == 1
    row = journal_of(sim)[-1]
    assert (row["kind"], row["model"], row["is_fallback"]) == (EventKind.PREFETCH, -1, 1)


@pytest.mark.parametrize(
    "nonsense", [{"instance": 7}, {"instance": -2}, {"request": 3}, {"kind": EventKind.IDLE}]
)
def test_answer_replaces_a_refused_route_by_the_first_able_instance(
    trace_of: Any, flat_pool: Pool, nonsense: dict[str, int]
) -> None:
    pool = flat_pool(nodes=2, dispatch="push")
    sim = sim_of(trace_of((0.0, 0, 1, 1)), pool)
    sim.state.pool["is_push"] = 1
    assert advance(sim) == Signal.DECISION
    assert sim.control["decision_kind"][0] == DecisionKind.ROUTE
    for column, value in nonsense.items():
        sim.event[column] = value
    answer(sim)
    row = journal_of(sim)[-1]
    assert (row["kind"], row["request"], row["instance"]) == (EventKind.ROUTE, 0, 0)
    assert sim.control["refused"][0] == 1


def test_time_limit_fails_requests_that_no_turn_has_taken(
    trace_of: Any, flat_pool: Pool, script: Any, timeline: Any
) -> None:
    trace = trace_of((0.0, 0, 10, 3), (0.5, 1, 10, 1), (0.7, 1, 10, 1), (0.8, 0, 10, 1))
    pool = flat_pool(ttft_timeout_s=0.9)
    result = run(trace, pool, script([(0, 60.0)]), SLO, journal=True)
    events = timeline(result.journal)
    # the first is owned by a turn at 0.9 s and lives; the last joined that turn
    assert [time for kind, time, _ in events if kind == "EXPIRE"] == [NS * 14 // 10, NS * 16 // 10]
    assert result.results["phase"].tolist() == [4, 5, 5, 4]
