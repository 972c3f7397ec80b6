"""`muxserve`: as many models as memory holds, placed by demand; full attainment up to that."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aegaeon_rl.policies.muxserve import (
    KV_FLOOR_TOKENS,
    MuxServe,
    fill_loads,
    models_per_instance,
)
from runtime.catalog import assign_checkpoints, checkpoint
from runtime.core import Dispatch, PoolSpec, PrefetchMode, RequestPhase, SloSpec
from runtime.emulator.profile import load_profile
from runtime.emulator.run import build_state, run
from runtime.protocol import Workload
from traces.source import TraceSource, open_trace

SLO = SloSpec()
GB = 1_000_000_000
SIZES = ("Qwen2.5-7B",) * 6 + ("Yi-1.5-9B",) * 2 + ("Llama-2-13B",) * 2
H100X16 = PoolSpec(name="h100x16", profile="h100", checkpoints=SIZES, nodes=2)
SOSP = Path(__file__).parents[3] / "../shared/data/traces/aegaeon_sosp25_workloads.parquet"


def workload(rates: Any, prompt: float = 300.0, output: float = 200.0) -> Workload:
    rates = np.array(rates, np.float64)
    return Workload(rates, np.full(len(rates), prompt), np.full(len(rates), output))


def place(pool: PoolSpec, load: Workload) -> tuple[PoolSpec, dict[int, list[int]]]:
    """The configured pool, and the models of each instance in the order placed."""
    configured = MuxServe().configure(pool)
    names = tuple(f"m{i}" for i in range(len(load.rates_rps)))
    state = build_state(configured, names, SLO, load_profile(pool.profile))
    placed: dict[int, list[int]] = {}
    for g, m in MuxServe().placement(state, load):
        placed.setdefault(g, []).append(m)
    return configured, placed


def loads_of(pool: PoolSpec, load: Workload) -> Any:
    configured = MuxServe().configure(pool)
    names = tuple(f"m{i}" for i in range(len(load.rates_rps)))
    state = build_state(configured, names, SLO, load_profile(pool.profile))
    loads = np.zeros((configured.instances, len(names)))
    fill_loads(state, *load, loads)
    return loads


@pytest.mark.parametrize(
    ("changes", "models"),
    [
        ({}, 2),  # 26 GB of Llama-2-13B, as in the artifact
        ({"checkpoints": ("Qwen2.5-7B",)}, 5),
        ({"checkpoints": ("Qwen2.5-7B",), "kv_fraction": 0.01}, 2),
        ({"vram_bytes": 30 * GB}, 1),
        ({"vram_bytes": 27 * GB}, 1),  # not even one has its floor
        ({"vram_bytes": 40 * GB, "tp": 2}, 2),
        ({"checkpoints": ("tiny-random",)}, 64),  # what a pool may have
    ],
)
def test_instance_holds_as_many_models_as_keep_their_kv_floor(
    changes: dict[str, Any], models: int
) -> None:
    assert models_per_instance(replace(H100X16, **changes)) == models


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.floats(0, 20), min_size=1, max_size=40),
    st.integers(1, 6),
    st.lists(st.sampled_from(sorted(set(SIZES))), min_size=1, max_size=4),
    st.sampled_from([30, 48, 80, 141]),
)
def test_placement_honours_memory_and_leaves_no_slot_unused(
    rates: list[float], instances: int, checkpoints: list[str], vram_gb: int
) -> None:
    pool = replace(
        H100X16,
        nodes=1,
        instances_per_node=instances,
        checkpoints=tuple(checkpoints),
        vram_bytes=vram_gb * GB,
    )
    configured, placed = place(pool, workload(rates))
    everywhere = [m for members in placed.values() for m in members]
    assert len(set(everywhere)) == len(everywhere)
    assert len(everywhere) == min(len(rates), instances * configured.weight_slots)
    for members in placed.values():
        shapes = [checkpoint(checkpoints[m % len(checkpoints)]) for m in members]
        weights = sum(shape.weight_bytes for shape in shapes)
        floor = sum(KV_FLOOR_TOKENS * shape.kv_token_bytes for shape in shapes)
        has_floor = configured.kv_fraction * (pool.vram_bytes - weights) >= floor
        assert has_floor or len(members) == 1


def test_demanding_models_are_spread_and_the_least_demanding_left_out() -> None:
    pool = replace(H100X16, nodes=1, instances_per_node=2, checkpoints=("Llama-2-13B",))
    _, placed = place(pool, workload([0.1, 4.0, 0.2, 3.0, 0.05]))
    assert placed == {0: [1, 0], 1: [3, 2]}


def test_throughput_counts_before_balance() -> None:
    """Model 2 overfills either instance: the busier one, where fewer requests suffer, takes it."""
    pool = replace(H100X16, nodes=1, instances_per_node=2, checkpoints=("Llama-2-13B",))
    rates, prompt = np.array([50.0, 0.58, 1.2]), np.array([30.0, 2000.0, 1000.0])
    load = Workload(rates, prompt, np.array([2.0, 600.0, 300.0]))
    many, few, late = loads_of(pool, load)[0]
    assert many < few < 1 < many + late
    assert place(pool, load)[1] == {0: [1, 2], 1: [0]}


def test_demand_grows_with_rate_and_lengths_and_falls_short_of_requests_one_by_one() -> None:
    """Batches share a step; at a rate where none forms, a request costs its own time."""
    base = loads_of(H100X16, workload([2.0]))[0, 0]
    assert loads_of(H100X16, workload([4.0]))[0, 0] > base
    assert loads_of(H100X16, workload([2.0], prompt=600))[0, 0] > base
    assert loads_of(H100X16, workload([2.0], output=400))[0, 0] > base
    cost = load_profile("h100").table(assign_checkpoints(("m0",), SIZES))[0, 0]
    alone = cost["prefill_s"] + 300 * cost["prefill_token_s"] + 300**2 * cost["prefill_token2_s"]
    step = cost["decode_s"] + 400 * cost["decode_context_s"] + cost["decode_batch_s"]
    request_s = alone + 200 * step
    assert loads_of(H100X16, workload([0.01]))[0, 0] == pytest.approx(0.01 * request_s)
    assert base < 2.0 * request_s


def test_configure_keeps_the_hardware_and_lets_kv_stay(flat_pool: Any) -> None:
    pool = MuxServe().configure(flat_pool(2, vram_bytes=50 * GB))
    assert (pool.weight_slots, pool.slots_reserved, pool.kv_stays) == (3, True, True)
    assert (pool.dispatch, pool.prefetch, pool.roles) == (Dispatch.PUSH, PrefetchMode.NONE, ())
    assert (pool.instances, pool.vram_bytes) == (2, 50 * GB)


@pytest.mark.skipif(not SOSP.exists(), reason="the shared SOSP'25 workloads are not here")
@pytest.mark.parametrize(("name", "unplaced"), [("n32_r0.1", 0), ("n32_r0.5", 0), ("n40_r0.5", 8)])
def test_attainment_is_full_up_to_32_models_on_16_gpus_and_falls_with_those_beyond(
    name: str, unplaced: int
) -> None:
    trace = open_trace(TraceSource(path=str(SOSP), where=f"workload={name}_i1_o1"))
    results = run(trace, H100X16, MuxServe(), SLO).results
    shed = results["phase"] == RequestPhase.SHED
    assert len(set(results["model"][shed])) == unplaced
    assert set(results["model"][shed]).isdisjoint(results["model"][~shed])
    served = results[~shed]
    assert (served["on_time_tokens"] == served["due_tokens"]).all()
    share = results["on_time_tokens"].sum() / results["due_tokens"].sum()
    assert (share == 1.0) == (unplaced == 0)
    assert share > 0.75
