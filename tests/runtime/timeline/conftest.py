"""Recorded runs: a market on four GPUs of two nodes, and pools with round numbers."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

from aegaeon_rl.policies.registry import make_policy
from runtime.core import NONE, NS, EventKind, PoolSpec, SloSpec
from runtime.emulator.profile import SCHEMA, load_profile
from runtime.emulator.run import Run, build_state, run
from runtime.pool.placement import preload
from runtime.pool.state import EVENT, State
from runtime.timeline.replay import timeline
from runtime.timeline.spans import Timeline
from traces import Trace, TraceKind

SIZES = ("Qwen2.5-7B", "Yi-1.5-9B", "Llama-2-13B")
COSTS = dict.fromkeys(("prefill_token_s", "prefill_token2_s", "decode_context_s"), 0.0)
COSTS |= {"prefill_s": 0.5, "decode_s": 0.1, "decode_batch_s": 0.0}
PLAIN: dict[str, float] = {
    **dict.fromkeys(("id", "tag", "instance", "model", "request"), NONE),
    "phases": 3,
    "quota_ns": 60 * NS,
    "joins": 1,
}


class Recorded(NamedTuple):
    trace: Trace
    run: Run
    timeline: Timeline


def fresh(spec: PoolSpec, models: tuple[str, ...], capacity: int = 1024) -> State:
    return build_state(spec, models, SloSpec(), load_profile(spec.profile), capacity=capacity)


@pytest.fixture(scope="session")
def fresh_state() -> Callable[..., State]:
    return fresh


@pytest.fixture(scope="session")
def busy_trace() -> Trace:
    """Two hundred requests of seven models within twenty seconds."""
    rng, n = np.random.default_rng(5), 200
    return Trace(
        name="busy",
        kind=TraceKind.SYNTHETIC,
        models=tuple(f"m{i}" for i in range(7)),
        model=rng.integers(0, 7, n).astype(np.int32),
        arrival_s=np.sort(rng.uniform(0, 20, n)),
        prompt_tokens=rng.integers(1, 3000, n).astype(np.int32),
        output_tokens=rng.integers(1, 150, n).astype(np.int32),
    )


@pytest.fixture(scope="session")
def busy_pool() -> PoolSpec:
    """Four GPUs with little memory for KV."""
    return PoolSpec(
        name="busy",
        profile="h100",
        checkpoints=SIZES,
        nodes=2,
        instances_per_node=2,
        vram_bytes=60_000_000_000,
        kv_fraction=0.3,
    )


@pytest.fixture(scope="session")
def record(busy_trace: Trace, busy_pool: PoolSpec) -> Callable[..., Recorded]:
    """A run of `policy` (a name) on the busy market, and the timeline of what it left."""

    def make(policy: str, horizon_s: float | None = None, **pool: Any) -> Recorded:
        spec = replace(busy_pool, **pool)
        done = run(
            busy_trace, spec, make_policy(policy), SloSpec(), horizon_s=horizon_s, journal=True
        )
        end_ns = None if horizon_s is None else round(horizon_s * NS)
        state = fresh(done.pool, busy_trace.models)
        preload(state, done.placement)
        return Recorded(busy_trace, done, timeline(state, done.journal, end_ns=end_ns))

    return make


@pytest.fixture(scope="session")
def recordings(record: Callable[..., Recorded]) -> dict[str, Recorded]:
    """To the end under pull, roles with push, request level, a placement; cut off at 10 s; short
    of a queue; with instances that fail and clients that leave."""
    return {
        "index": record("index"),
        "aegaeon": record("aegaeon"),
        "serverlessllm": record("serverlessllm"),
        "muxserve": record("muxserve", vram_bytes=80_000_000_000, kv_fraction=0.9),
        "cut": record("index", 10.0),
        "shed": record("fcfs", max_queue=5),
        "faults": record("aegaeon", mtbf_s=15.0, mttr_s=1.0, cancel_after_s=20.0, seed=3),
    }


@pytest.fixture
def round_pool(tmp_path: Path) -> PoolSpec:
    """One instance, weights and KV over links of 14 GB/s: weights in one second, 1 GB of KV a
    token; a prefill takes 0.5 s, a step 0.1 s."""
    path, name = tmp_path / "round.json", "sosp25/Qwen2.5-7B"
    facts = {"schema": SCHEMA, "name": "round", "gpu": "none", "kind": "derived", "source": "test"}
    path.write_text(json.dumps({**facts, "models": {name: COSTS}}))
    return PoolSpec(
        name="round",
        profile=str(path),
        checkpoints=(name,),
        instances_per_node=1,
        h2d_bytes_s=14e9,
        d2h_bytes_s=14e9,
    )


@pytest.fixture(scope="session")
def journal_of() -> Callable[..., Any]:
    """A journal from rows (kind, seconds, fields that differ from PLAIN)."""

    def make(*rows: tuple[EventKind, float, dict[str, float]]) -> Any:
        table = np.zeros(len(rows), EVENT)
        for event, (kind, at_s, fields) in zip(table, rows, strict=True):
            for name, value in (PLAIN | fields).items():
                event[name] = value
            event["kind"], event["time_ns"] = kind, round(at_s * NS)
        return table

    return make
