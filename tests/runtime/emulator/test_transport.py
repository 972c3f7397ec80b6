"""Root ports that instances share: timelines by hand, and no port above its bandwidth.

A 14 GB load takes 1 s alone; 1 MB of KV per token comes at 14 GB/s and leaves at 1 GB/s.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from aegaeon_rl.policies.registry import make_policy
from runtime.core import NS, EventKind, Phases, PoolSpec, SloSpec
from runtime.emulator.run import Run, run
from traces import Trace, TraceKind

Pool = Callable[..., PoolSpec]
WEIGHTS = 14_000_000_000


def play(trace: Any, pool: PoolSpec, policy: Any) -> Run:
    return run(trace, pool, policy, SloSpec(), journal=True)


def times(result: Run, kind: EventKind) -> list[tuple[int, int]]:
    """(instance, time in ns) of each event of a kind, in order."""
    rows = result.journal[result.journal["kind"] == kind]
    return list(zip(rows["instance"].tolist(), rows["time_ns"].tolist(), strict=True))


@pytest.mark.parametrize(
    ("per_port", "second_s", "ready_s"),
    [
        (1, 0.0, [1.0, 1.0]),
        (2, 0.0, [2.0, 2.0]),
        (2, 0.5, [1.5, 2.0]),  # 0.5 alone, 1 shared; then 0.5 left, alone
        (2, 1.0, [1.0, 2.0]),
    ],
)
def test_loads_on_one_port_share_its_bandwidth(
    trace_of: Any,
    flat_pool: Pool,
    script: Any,
    per_port: int,
    second_s: float,
    ready_s: list[float],
) -> None:
    pool = flat_pool(instances_per_node=2, instances_per_port=per_port)
    trace = trace_of((0.0, 0, 10, 1), (second_s, 1, 10, 1))
    result = play(trace, pool, script([(0, 9.0), (1, 9.0)]))
    ready = times(result, EventKind.WEIGHTS_READY)
    assert ready == [(g, round(s * NS)) for g, s in enumerate(ready_s)]


def test_last_port_of_a_node_has_the_rest_of_its_instances(
    trace_of: Any, flat_pool: Pool, script: Any
) -> None:
    """Three instances a node, two a port: the third and the other node's are alone."""
    pool = flat_pool(nodes=2, instances_per_node=3, instances_per_port=2)
    trace = trace_of(*((0.0, m, 10, 1) for m in range(4)))
    result = play(trace, pool, script([(m, 9.0) for m in range(4)]))
    assert times(result, EventKind.WEIGHTS_READY) == [(2, NS), (3, NS), (0, 2 * NS), (1, 2 * NS)]


@pytest.mark.parametrize(
    ("disk_bytes_s", "ready_s"),
    [
        (7e9, 2.0),  # each uses half of the port
        (8.75e9, 2.0),  # each would use five eighths and gets a half
        (3.5e9, 4.0),
    ],
)
def test_miss_takes_no_more_of_the_port_than_the_disk_gives(
    trace_of: Any, flat_pool: Pool, script: Any, disk_bytes_s: float, ready_s: float
) -> None:
    pool = flat_pool(
        instances_per_node=2, instances_per_port=2, host_weight_bytes=1, disk_bytes_s=disk_bytes_s
    )
    trace = trace_of((0.0, 0, 10, 1), (0.0, 1, 10, 1))
    result = play(trace, pool, script([(0, 9.0), (1, 9.0)]))
    assert [t for _, t in times(result, EventKind.WEIGHTS_READY)] == [round(ready_s * NS)] * 2


def test_kv_comes_in_at_half_speed_beside_a_load_and_leaves_unhindered(
    trace_of: Any, flat_pool: Pool, script: Any
) -> None:
    """Instance 0 swaps model 0 out and in again while instance 1, a prefiller, loads model 2."""
    trace = trace_of((0.0, 0, 130, 9), (1.05, 1, 10, 1), (2.07, 2, 10, 1))
    policy = script([(0, 0.05), None, (1, 1.0), (2, 9.0), (0, 1.0)])
    roles = (Phases.BOTH, Phases.PREFILL)
    pool = flat_pool(instances_per_node=2, instances_per_port=2, roles=roles)
    result = play(trace, pool, policy)
    ended, switched = (times(result, k) for k in (EventKind.TURN_ENDED, EventKind.SWITCHED))
    assert times(result, EventKind.KV_OUT_DONE) == [(0, ended[0][1] + 136_000_000)]
    alone_ns = 9_714_286  # 136 MB at 14 GB/s, rounded up
    back = [t for g, t in switched if g == 0][2]
    assert times(result, EventKind.KV_IN_DONE) == [(0, back + 2 * alone_ns)]
    loaded = [t for g, t in times(result, EventKind.WEIGHTS_READY) if g == 1]
    assert loaded == [round(2.07 * NS) + NS + alone_ns]


def swapped(trace_of: Any, script: Any, pool: PoolSpec, tokens: int) -> tuple[Run, int]:
    """A request of model 0 comes back for its last three tokens, its KV of `tokens` behind it,
    when another of 100 prompt tokens waits; the run, and when that turn began to work."""
    trace = trace_of((0.0, 0, tokens - 6, 9), (0.0, 1, 10, 1), (1.5, 0, 100, 20))
    result = play(trace, pool, script([(0, 0.05), (1, 1.0), (0, 9.0)]))
    return result, times(result, EventKind.SWITCHED)[2][1]


def steps_of(result: Run, began: int) -> list[tuple[int, int]]:
    """(steps, end) of the decode runs since `began`, relative to it."""
    rows = result.journal[(result.journal["kind"] == EventKind.STEPS)]
    rows = rows[rows["time_ns"] > began]
    return list(zip(rows["n"].tolist(), (rows["time_ns"] - began).tolist(), strict=True))


def test_turn_waits_for_kv_unless_they_overlap(trace_of: Any, flat_pool: Pool, script: Any) -> None:
    """KV of 136 MB is there within the prefill of 11 ms, and its request in the first run."""
    first_token = []
    for overlaps, prefilled in ((False, 9_714_286 + 11_000_000), (True, 11_000_000)):
        result, began = swapped(trace_of, script, flat_pool(kv_in_overlaps=overlaps), 136)
        assert times(result, EventKind.KV_IN_DONE) == [(0, began + 9_714_286)]
        first_token.append(int(result.results["first_token_ns"][2]) - began)
        assert first_token[-1] == prefilled
        step_ns = 10_200_000 + 136_000 + 101_000  # both decode, from the first step
        assert steps_of(result, began)[0] == (3, prefilled + 3 * step_ns + 3 * 2_000)


def test_request_whose_kv_comes_during_a_run_joins_at_the_next_step(
    trace_of: Any, flat_pool: Pool, script: Any
) -> None:
    """1,306 MB take 93.3 ms; after the prefill, step 9 of the other request ends at 102.8 ms."""
    pool = flat_pool(kv_in_overlaps=True, d2h_bytes_s=14e9)
    result, began = swapped(trace_of, script, pool, 1306)
    assert times(result, EventKind.KV_IN_DONE) == [(0, began + 93_285_715)]
    alone_ns = 11_000_000 + 9 * 10_201_000 + 36_000
    both_ns = alone_ns + 3 * (10_200_000 + 1_306_000 + 110_000) + 3 * 2_000
    assert steps_of(result, began)[:2] == [(9, alone_ns), (3, both_ns)]


def test_load_waits_for_kv_that_comes_in_during_a_prefill(
    trace_of: Any, flat_pool: Pool, script: Any
) -> None:
    """The load of model 2 is prefetched as the turn begins: it gets the link after the KV."""
    pool = flat_pool(kv_in_overlaps=True, weight_slots=3)
    trace = trace_of((0.0, 0, 130, 9), (0.0, 1, 10, 1), (1.5, 0, 100, 200), (1.5, 2, 10, 1))
    turns = [(0, 0.05), (1, 1.0), (0, 9.0), (2, 9.0)]
    result = play(trace, pool, script(turns, prefetches=[None, None, 2]))
    began = times(result, EventKind.SWITCHED)[2][1]
    assert times(result, EventKind.WEIGHTS_READY)[2] == (0, began + 9_714_286 + NS)


@st.composite
def bursts(draw: st.DrawFn) -> Trace:
    n, models = draw(st.integers(3, 25)), draw(st.integers(2, 6))
    rng = np.random.default_rng(draw(st.integers(0, 1 << 16)))
    return Trace(
        name="burst",
        kind=TraceKind.SYNTHETIC,
        models=tuple(f"m{i}" for i in range(models)),
        model=rng.integers(0, models, n).astype(np.int32),
        arrival_s=np.sort(rng.uniform(0, draw(st.sampled_from([0.5, 5.0])), n)),
        prompt_tokens=rng.integers(1, 400, n).astype(np.int32),
        output_tokens=rng.integers(1, 30, n).astype(np.int32),
    )


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    trace=bursts(),
    per_node=st.integers(1, 5),
    per_port=st.integers(1, 5),
    policy=st.sampled_from(["fcfs", "index", "least_slack"]),
)
def test_port_never_carries_more_than_its_bandwidth(
    flat_pool: Pool, trace: Trace, per_node: int, per_port: int, policy: str
) -> None:
    """Weights that are there by t came over the port within t: its KV only adds to that."""
    pool = flat_pool(nodes=2, instances_per_node=per_node, instances_per_port=per_port)
    result = play(trace, pool, make_policy(policy))
    assert np.all(np.diff(result.journal["time_ns"]) >= 0)
    began = trace.arrival_s[0] * NS
    carried: dict[tuple[int, int], int] = {}
    for g, time_ns in times(result, EventKind.WEIGHTS_READY):
        port = g // per_node, g % per_node // per_port
        carried[port] = carried.get(port, 0) + WEIGHTS
        assert carried[port] <= 14e9 * (time_ns - began + 1) / NS
    assert carried
