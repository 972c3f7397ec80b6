"""With next to no memory anywhere every request still ends, and nothing is left behind."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from aegaeon_rl.policies.registry import make_policy
from runtime.core import HostKvFull, PoolSpec, RequestPhase, SloSpec
from runtime.emulator.run import build_sim, drive
from runtime.pool.integrity import check_integrity
from traces import Trace, TraceKind

WEIGHTS = 14_000_000_000
TOKEN_BYTES = 401_408  # KV of one token of the flat profile's model

TIGHT = st.fixed_dictionaries(
    {
        "host_kv_bytes": st.sampled_from([0, 40, 200, 4000]).map(lambda t: t * TOKEN_BYTES),
        "host_kv_full": st.sampled_from(HostKvFull),
        "instances_per_port": st.sampled_from([1, 3]),
        "kv_in_overlaps": st.booleans(),
        "load_chunk_bytes": st.sampled_from([0, 1_000_000_000]),
        "weight_slots": st.sampled_from([1, 2, 3]),
        "weight_budget_bytes": st.sampled_from([WEIGHTS, 2 * WEIGHTS]),
        "host_weight_bytes": st.sampled_from([0, 3 * WEIGHTS]),
        "kv_stays": st.booleans(),
        "lookahead_tokens": st.sampled_from([0, 8]),
    }
)


def crowd(seed: int, requests: int) -> Trace:
    """Contexts that end between 2 and 250 tokens, of four models, all within a second."""
    rng = np.random.default_rng(seed)
    return Trace(
        name="crowd",
        kind=TraceKind.SYNTHETIC,
        models=tuple(f"m{i}" for i in range(4)),
        model=rng.integers(0, 4, requests).astype(np.int32),
        arrival_s=np.sort(rng.uniform(0, 1, requests)),
        prompt_tokens=rng.integers(1, 200, requests).astype(np.int32),
        output_tokens=rng.integers(1, 50, requests).astype(np.int32),
    )


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    changes=TIGHT,
    tokens=st.sampled_from([260, 400, 1500]),
    seed=st.integers(0, 1 << 16),
    requests=st.integers(4, 40),
    policy=st.sampled_from(["index", "fcfs", "least_slack", "aegaeon"]),
)
def test_every_request_ends_under_tiny_host_and_device_memory(
    flat_pool: Callable[..., PoolSpec],
    changes: dict[str, Any],
    tokens: int,
    seed: int,
    requests: int,
    policy: str,
) -> None:
    """The device holds `tokens` tokens of KV: no more than a request needs, or a few."""
    vram = changes["weight_budget_bytes"] + tokens * TOKEN_BYTES
    plain = flat_pool(instances_per_node=3, kv_fraction=1.0, vram_bytes=vram, kv_move_token_bytes=0)
    chosen, trace = make_policy(policy), crowd(seed, requests)
    pool = chosen.configure(replace(plain, **changes))
    sim = build_sim(trace, pool, SloSpec(), horizon_s=None, journal_rows=0)
    drive(sim, chosen)
    assert set(sim.results["phase"]) == {RequestPhase.DONE}
    check_integrity(sim.state)
    assert sim.state.instances["kv_used_bytes"].tolist() == [0, 0, 0]
    assert sim.state.nodes["host_kv_used_bytes"].tolist() == [0]
    assert not sim.state.links["in_flows"].any()
    assert not sim.state.links["out_flows"].any()
