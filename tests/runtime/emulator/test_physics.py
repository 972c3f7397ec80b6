"""Timelines worked out by hand from the flat profile, to the nanosecond.

A 14 GB load takes 1 s. Prefill of T tokens takes 10 ms + 10 us * T; a decode step of one request
10.1 ms + 1 us per context token; 1 MB of KV per token leaves at 1 GB/s and comes at 14 GB/s.
"""

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.core import NS, PoolSpec, SloSpec
from runtime.emulator.noise import factor
from runtime.emulator.physics import first_step_at
from runtime.emulator.run import Run, run
from runtime.pool.costs import prompt_s
from runtime.pool.state import COST
from runtime.slo import curve_ns

MS = 1_000_000
SLO = SloSpec()
Pool = Callable[..., PoolSpec]


def play(trace: Any, pool: PoolSpec, policy: Any) -> Run:
    return run(trace, pool, policy, SLO, journal=True)


def when(events: list[tuple[str, int, int]], kind: str) -> list[int]:
    return [time for name, time, _ in events if name == kind]


def test_timeline_of_one_request_is_load_prefill_and_steps(
    trace_of: Any, flat_pool: Pool, script: Any, timeline: Any
) -> None:
    result = play(trace_of((1.0, 0, 100, 5)), flat_pool(), script([(0, 60.0)]))
    first = 2 * NS + 11 * MS  # arrival 1 s, load 1 s, prefill 10 ms + 100 * 10 us
    last = first + 40_810_000  # steps of 10.201, 10.202, 10.203, 10.204 ms
    assert timeline(result.journal) == [
        ("ARRIVAL", NS, -1),
        ("WEIGHTS_READY", 2 * NS, 0),
        ("SWITCHED", 2 * NS, 0),
        ("PREFILLED", first, 0),
        ("STEPS", last, 0),
        ("FINISHED", last, 0),
        ("TURN_ENDED", last, 0),
    ]
    request = result.results[0]
    assert (request["first_token_ns"], request["last_token_ns"]) == (first, last)
    assert request["stall_ns"] == 10_204_000
    assert result.instances["busy_ns"][0] == 11 * MS + 40_810_000
    assert result.instances["switch_ns"][0] == NS


@pytest.mark.parametrize(
    ("changes", "switched_ns"),
    [
        ({}, 2 * NS),
        ({"command_s": 0.25}, 2 * NS),  # hidden behind the load
        ({"command_s": 1.5}, 2 * NS + NS // 2),
        ({"turn_overhead_s": 0.25}, 2 * NS + NS // 4),  # never hidden
        ({"command_s": 1.5, "turn_overhead_s": 0.25}, 2 * NS + 3 * NS // 4),
        ({"host_weight_bytes": 1, "disk_bytes_s": 7e9}, 3 * NS),  # a miss is bound by the disk
        ({"host_weight_bytes": 1, "disk_bytes_s": 28e9}, 2 * NS),  # or by the host link
    ],
)
def test_switch_waits_for_weights_and_command(
    trace_of: Any,
    flat_pool: Pool,
    script: Any,
    timeline: Any,
    changes: dict[str, float],
    switched_ns: int,
) -> None:
    result = play(trace_of((1.0, 0, 100, 5)), flat_pool(**changes), script([(0, 60.0)]))
    assert when(timeline(result.journal), "SWITCHED") == [switched_ns]


def test_host_cache_keeps_what_a_miss_brought_and_drops_the_oldest(
    trace_of: Any, flat_pool: Pool, script: Any, timeline: Any
) -> None:
    pool = flat_pool(host_weight_bytes=14_000_000_000, disk_bytes_s=7e9, weight_slots=1)
    trace = trace_of((0.0, 0, 1, 1), (0.0, 1, 1, 1), (9.0, 1, 1, 1), (9.0, 0, 1, 1))
    result = play(trace, pool, script([(0, 1.0), (1, 1.0), (1, 1.0), (0, 1.0)]))
    prefill = 10 * MS + 10_000
    loads = when(timeline(result.journal), "WEIGHTS_READY")
    # model 0 is cached at first, 1 is not and then takes its place; at 9 s 1 is still on the GPU
    assert loads == [NS, 3 * NS + prefill, 11 * NS + prefill]


@pytest.mark.parametrize(("budget", "calls"), [(0, [1, 1, 1]), (230, [2, 1]), (1000, [3])])
def test_prefill_call_takes_requests_within_the_token_budget(
    trace_of: Any, flat_pool: Pool, script: Any, budget: int, calls: list[int]
) -> None:
    pool = flat_pool(prefill_budget_tokens=budget)
    trace = trace_of((0.0, 0, 110, 1), (0.0, 0, 120, 1), (0.0, 0, 130, 1))
    result = play(trace, pool, script([(0, 1.0)]))
    rows = result.journal[result.journal["kind"] == 4]
    assert rows["n"].tolist() == calls
    assert result.end_s == pytest.approx(1.0 + len(calls) * 0.01 + 360e-5, abs=1e-9)


def test_turn_overhead_is_paid_once_when_another_load_ends_meanwhile(
    trace_of: Any, flat_pool: Pool, script: Any, timeline: Any
) -> None:
    pool = flat_pool(turn_overhead_s=2.0)
    trace = trace_of((0.0, 0, 100, 50), (3.05, 1, 100, 5))
    turns = script([(0, 0.1), (0, 60.0), (1, 60.0)], [1])
    events = timeline(play(trace, pool, turns).journal)
    ended, switched = when(events, "TURN_ENDED")[0], when(events, "SWITCHED")
    assert ended < when(events, "WEIGHTS_READY")[1] == 3.05 * NS + NS < switched[1]
    assert switched[:2] == [3 * NS, ended + 2 * NS]


def test_step_overhead_makes_every_step_longer(trace_of: Any, flat_pool: Pool, script: Any) -> None:
    pool = flat_pool(step_overhead_s=0.002)
    result = play(trace_of((1.0, 0, 100, 5)), pool, script([(0, 60.0)]))
    request = result.results[0]
    assert request["last_token_ns"] - request["first_token_ns"] == 40_810_000 + 4 * 2 * MS


def test_noise_scatters_prefill_and_steps_and_nothing_else(
    trace_of: Any, flat_pool: Pool, script: Any
) -> None:
    trace, turns = trace_of((1.0, 0, 100, 5)), [(0, 60.0)]
    rows = play(trace, flat_pool(noise=0.3, seed=7), script(turns)).journal
    prefill, steps = rows[rows["kind"] == 4][0], rows[rows["kind"] == 5][0]
    assert rows[rows["kind"] == 2]["time_ns"] == 2 * NS
    assert prefill["x"] == 0.011 * factor(0.3, 7, 0, 1)
    assert steps["x"] == round(0.010201e9 * factor(0.3, 7, 0, 2)) / 1e9
    assert steps["y"] == round(1e3 * factor(0.3, 7, 0, 2)) / 1e9
    again = play(trace, flat_pool(noise=0.3, seed=7), script(turns)).journal
    other = play(trace, flat_pool(noise=0.3, seed=8), script(turns)).journal
    assert again.tobytes() == rows.tobytes() != other.tobytes()


def test_a_long_prompt_is_prefilled_in_chunks_that_cost_a_call_each(
    trace_of: Any, flat_pool: Pool, script: Any
) -> None:
    pool = flat_pool(prefill_chunk_tokens=40)
    result = play(trace_of((0.0, 0, 100, 1)), pool, script([(0, 60.0)]))
    rows = result.journal[result.journal["kind"] == 4]
    assert rows["n"].tolist() == [0, 0, 1]
    assert rows["x"].tolist() == pytest.approx([0.0104, 0.0104, 0.0102])
    assert result.results["first_token_ns"][0] == NS + 31 * MS
    assert result.instances["busy_ns"][0] == 31 * MS


def test_chunks_telescope_to_the_whole_prompt_but_for_their_calls() -> None:
    cost = np.zeros((), COST)
    cost["prefill_s"], cost["prefill_token_s"], cost["prefill_token2_s"] = 0.01, 1e-5, 3e-9
    ends = [0, 40, 80, 100]
    parts = [prompt_s(cost[()], e) - prompt_s(cost[()], s) for s, e in pairwise(ends)]
    assert sum(parts) == pytest.approx(prompt_s(cost[()], 100), rel=1e-12)
    assert parts[1] > parts[0]  # the later chunk attends to more


def test_the_batch_decodes_one_step_between_chunks(
    trace_of: Any, flat_pool: Pool, script: Any
) -> None:
    pool = flat_pool(prefill_chunk_tokens=40)
    trace = trace_of((0.0, 0, 30, 60), (1.1, 0, 100, 5))
    rows = play(trace, pool, script([(0, 60.0)])).journal
    rows = rows[np.isin(rows["kind"], (4, 5))]
    kinds = [("PREFILL" if row["kind"] == 4 else "STEP", int(row["n"])) for row in rows]
    assert kinds[:1] == [("PREFILL", 1)]
    assert kinds[2:7] == [
        ("PREFILL", 0), ("STEP", 1), ("PREFILL", 0), ("STEP", 1), ("PREFILL", 1),
    ]  # fmt: skip
    whole = play(trace, flat_pool(), script([(0, 60.0)])).results
    chunked = play(trace, pool, script([(0, 60.0)])).results
    assert chunked["stall_ns"][0] < whole["stall_ns"][0]  # nobody waits for a whole prompt
    assert chunked["first_token_ns"][1] > whole["first_token_ns"][1]


def test_chunks_go_on_without_steps_when_the_quota_is_used_up(
    trace_of: Any, flat_pool: Pool, script: Any
) -> None:
    pool = flat_pool(prefill_chunk_tokens=40)
    trace = trace_of((0.0, 0, 30, 60), (0.0, 0, 100, 5))
    rows = play(trace, pool, script([(0, 0.001)] * 99)).journal
    rows = rows[np.isin(rows["kind"], (4, 5))][:5]
    assert [(int(r["kind"]), int(r["n"])) for r in rows] == [(4, 1), (5, 1), (4, 0), (4, 0), (4, 1)]


def test_step_quantum_cuts_durations_to_whole_quanta(
    trace_of: Any, flat_pool: Pool, script: Any
) -> None:
    pool = flat_pool(step_quantum_s=0.001)
    result = play(trace_of((0.0, 0, 1899, 102)), pool, script([(0, 60.0)]))
    steps = result.journal[result.journal["kind"] == 5]
    # 10.1 ms + 1900 us = 12.0 ms: 12 ms steps until the context has grown by 1 ms, not reached
    assert [(int(s["n"]), s["x"], s["y"]) for s in steps] == [(101, 0.012, 0.0)]
    assert result.results["first_token_ns"][0] == NS + 28 * MS  # prefill 28.99 ms
    assert result.results["last_token_ns"][0] == NS + 28 * MS + 101 * 12 * MS


def test_step_quantum_splits_a_run_where_the_truncated_time_changes(
    trace_of: Any, flat_pool: Pool, script: Any
) -> None:
    pool = flat_pool(step_quantum_s=0.001)
    result = play(trace_of((0.0, 0, 850, 102)), pool, script([(0, 60.0)]))
    steps = result.journal[result.journal["kind"] == 5]
    # 10.1 ms + 851 us reaches 11 ms with the context's 49th token
    assert [(int(s["n"]), round(s["x"], 9)) for s in steps] == [(49, 0.010), (52, 0.011)]


@pytest.mark.parametrize(("after_ns", "steps"), [(-1, 3), (0, 3), (1, 4), (10 * MS, 4)])
def test_request_that_comes_ends_the_run_at_the_next_step_boundary(
    trace_of: Any, flat_pool: Pool, script: Any, after_ns: int, steps: int
) -> None:
    """Steps of 10 ms begin at 1.010 s; the request comes around the end of the third."""
    boundary = NS + 10 * MS + 30 * MS
    pool = flat_pool(step_quantum_s=0.001)
    trace = trace_of((0.0, 0, 40, 50), ((boundary + after_ns) / NS, 0, 40, 1))
    result = play(trace, pool, script([(0, 60.0)]))
    runs = result.journal[result.journal["kind"] == 5]
    assert runs["n"].tolist() == [steps, 49 - steps]
    assert runs["time_ns"][0] == NS + 10 * MS + steps * 10 * MS


def test_kv_leaves_when_another_model_comes_and_returns_with_its_own(
    trace_of: Any, flat_pool: Pool, script: Any, timeline: Any
) -> None:
    trace = trace_of((0.0, 0, 130, 9), (0.0, 1, 10, 1))
    result = play(trace, flat_pool(), script([(0, 0.05), (1, 1.0), (0, 1.0)]))
    stop = NS + 11_300_000 + 51_165_000  # five steps from 10.231 ms end past the quota of 50 ms
    other = stop + NS + 10_100_000  # model 1: its load and a prefill of 10 tokens
    back = other + 9_714_286  # 136 tokens of 1 MB at 14 GB/s, rounded up
    last = back + 30_711_000  # 10.236 + 10.237 + 10.238 ms
    events = timeline(result.journal)
    assert when(events, "TURN_ENDED") == [stop, other, last]
    assert when(events, "KV_OUT_DONE") == [stop + 136 * MS]
    assert when(events, "SWITCHED") == [NS, stop + NS, other]  # both weights still in their slots
    assert when(events, "KV_IN_DONE") == [back]
    assert result.results["stall_ns"][0] == back + 10_236_000 - stop
    assert result.recomputed == 0


@pytest.mark.parametrize(
    ("changes", "out_ns"),
    [({"kv_out_free": True}, 0), ({"kv_move_token_bytes": 0}, 54_591_488)],  # 136 * 401,408 bytes
)
def test_kv_moves_out_free_or_in_whole_blocks(
    trace_of: Any,
    flat_pool: Pool,
    script: Any,
    timeline: Any,
    changes: dict[str, Any],
    out_ns: int,
) -> None:
    trace = trace_of((0.0, 0, 130, 9), (0.0, 1, 10, 1))
    result = play(trace, flat_pool(**changes), script([(0, 0.05), (1, 1.0), (0, 1.0)]))
    events = timeline(result.journal)
    assert when(events, "KV_OUT_DONE") == [when(events, "TURN_ENDED")[0] + out_ns]


def test_step_quantum_cuts_kv_moves_in_too(
    trace_of: Any, flat_pool: Pool, script: Any, timeline: Any
) -> None:
    trace = trace_of((0.0, 0, 130, 9), (0.0, 1, 10, 1))
    policy = script([(0, 0.05), (1, 1.0), (0, 1.0)])
    events = timeline(play(trace, flat_pool(step_quantum_s=0.001), policy).journal)
    assert when(events, "KV_IN_DONE") == [when(events, "SWITCHED")[2] + 9 * MS]  # of 9.7


def test_kv_of_another_node_crosses_the_network(
    trace_of: Any, flat_pool: Pool, script: Any, timeline: Any
) -> None:
    trace = trace_of((0.0, 0, 130, 9), (0.5, 1, 10, 400))
    # instance 1 idles at the arrival and when the weights are ready, and takes model 0 at last
    policy = script([(0, 0.05), None, None, (1, 60.0), (0, 1.0)])
    result = play(trace, flat_pool(nodes=2), policy)
    assert result.network_bytes == 136_000_000
    events = timeline(result.journal)
    out = when(events, "KV_OUT_DONE")[0]
    assert [e for e in events if e[0] in ("SWITCHED", "KV_IN_DONE") and e[2] == 1] == [
        ("SWITCHED", out + NS, 1),
        ("KV_IN_DONE", out + NS + 136 * MS, 1),  # 136 MB at 1 GB/s, not 14
    ]


def test_prefetch_hides_the_load(
    trace_of: Any, flat_pool: Pool, script: Any, timeline: Any
) -> None:
    trace = trace_of((0.0, 0, 100, 200), (0.0, 1, 10, 1))
    result = play(trace, flat_pool(), script([(0, 60.0), (1, 1.0)], prefetches=[1]))
    events = timeline(result.journal)
    ready, switched, ended = (when(events, k) for k in ("WEIGHTS_READY", "SWITCHED", "TURN_ENDED"))
    assert ready == [NS, 2 * NS]  # the second began when the first turn was on the device
    assert ended[0] > 2 * NS
    assert switched == [NS, ended[0]]
    assert result.instances["prefetched_switches"][0] == 1


def test_prefetch_under_way_leaves_only_its_rest_to_wait(
    trace_of: Any, flat_pool: Pool, script: Any, timeline: Any
) -> None:
    trace = trace_of((0.0, 0, 100, 200), (0.0, 1, 10, 1))
    policy = script([(0, 0.4), (1, 1.0), (0, 60.0)], prefetches=[1])
    events = timeline(play(trace, flat_pool(), policy).journal)
    assert when(events, "TURN_ENDED")[0] < 2 * NS
    assert when(events, "SWITCHED")[:2] == [NS, 2 * NS]


def test_prefetch_is_cancelled_by_a_turn_of_a_third_model(
    trace_of: Any, flat_pool: Pool, script: Any, timeline: Any
) -> None:
    trace = trace_of((0.0, 0, 100, 20), (0.0, 1, 10, 1), (0.0, 2, 10, 1))
    policy = script([(0, 60.0), (2, 1.0), (1, 1.0)], prefetches=[1])
    result = play(trace, flat_pool(), policy)
    events = timeline(result.journal)
    ended = when(events, "TURN_ENDED")
    assert ended[0] < 2 * NS
    assert when(events, "WEIGHTS_READY") == [NS, ended[0] + NS, ended[1] + NS]
    assert result.instances["prefetched_switches"][0] == 0


def test_load_waits_while_kv_has_the_link(
    trace_of: Any, flat_pool: Pool, script: Any, timeline: Any
) -> None:
    """KV comes in at the start of model 0's second turn, while model 2 is being prefetched."""
    trace = trace_of((0.0, 0, 130, 200), (0.0, 1, 10, 1), (0.0, 2, 10, 1))
    policy = script([(0, 0.05), (1, 1.0), (0, 60.0), (2, 1.0)], prefetches=[None, 2])
    pool = flat_pool(weight_slots=3)
    events = timeline(play(trace, pool, policy).journal)
    asked = when(events, "SWITCHED")[1]  # the first is declined, the next is asked here
    kv_in = when(events, "KV_IN_DONE")[0] - when(events, "SWITCHED")[2]
    assert kv_in == 9_714_286
    assert when(events, "WEIGHTS_READY")[2] == asked + NS + kv_in


@pytest.mark.parametrize(
    ("at_ns", "k", "expected"),
    [(0, 9, 1), (10 * MS, 9, 1), (10 * MS + 1, 9, 2), (95 * MS, 9, 9), (10**12, 9, 9), (1, 1, 1)],
)
def test_first_step_at_is_the_earliest_boundary_not_before(
    at_ns: int, k: int, expected: int
) -> None:
    ends = np.array([curve_ns(0.01, 1e-4, j) for j in range(1, k + 1)])
    assert first_step_at(0.01, 1e-4, at_ns, k) == expected
    assert expected == min(k, int(np.searchsorted(ends, at_ns)) + 1)


@settings(max_examples=200, deadline=None)
@given(
    x_s=st.sampled_from([1e-9, 0.001, 0.0123, 0.3]),
    y_s=st.sampled_from([0.0, 1e-9, 1e-5, 1e-3]),
    k=st.integers(1, 3000),
    share=st.floats(0.0, 1.2),
    off_ns=st.integers(-1, 1),
)
def test_first_step_at_finds_what_a_search_over_all_steps_finds(
    x_s: float, y_s: float, k: int, share: float, off_ns: int
) -> None:
    ends = np.array([curve_ns(x_s, y_s, j) for j in range(1, k + 1)])
    at_ns = int(share * ends[-1]) + off_ns
    assert first_step_at(x_s, y_s, at_ns, k) == min(k, int(np.searchsorted(ends, at_ns)) + 1)
