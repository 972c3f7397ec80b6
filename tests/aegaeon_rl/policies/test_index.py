"""`index`: a linear score over named features; the best row wins, the first among equals."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from aegaeon_rl.policies.aegaeon import Aegaeon
from aegaeon_rl.policies.heuristics import index
from aegaeon_rl.policies.index import NAMES, Index
from runtime.core import DecisionKind, Dispatch, EventKind, Phases, PoolSpec, PrefetchMode, SloSpec
from runtime.emulator.run import run
from runtime.pool.candidates import ROWS, fill_rows
from runtime.pool.features import F, row_features
from traces import read

WORKLOADS = (
    Path(__file__).parents[3] / "../shared/data/traces/aegaeon_sosp25_workloads.parquet"
).resolve()
SIZES = ("sosp25/Qwen2.5-7B",) * 6 + ("sosp25/Yi-1.5-9B",) * 2 + ("sosp25/Llama-2-13B",) * 2


def test_weights_go_to_their_features_by_name() -> None:
    policy = Index(name="x", turn={"waiting": 2.0, "rate": -1.0}, prefetch={"is_loaded": 3.0})
    turn, prefetch = policy.weights()
    assert {n: w for n, w in zip(NAMES, turn, strict=True) if w} == {"waiting": 2.0, "rate": -1.0}
    assert {n: w for n, w in zip(NAMES, prefetch, strict=True) if w} == {"is_loaded": 3.0}


@pytest.mark.parametrize("where", ["turn", "prefetch"])
def test_weight_of_an_unknown_feature_is_named(where: str) -> None:
    weights: dict[str, dict[str, float]] = {"turn": {}, "prefetch": {}} | {where: {"slack": 1.0}}
    with pytest.raises(ValueError, match=r"index x: .*'slack'"):
        Index(name="x", **weights)


@pytest.mark.parametrize(
    ("weights", "model"),
    [
        ({}, 0),  # all equal: the first row, which is what was prefetched
        ({"waiting": 1.0}, 1),
        ({"waiting": -1.0}, 0),
        ({"prefill_time": 1.0}, 2),
        ({"oldest_wait": 1.0}, 0),
        ({"oldest_wait": 1.0, "waiting": 100.0}, 1),
    ],
)
def test_best_row_runs_first(
    trace_of: Any, flat_pool: Any, weights: dict[str, float], model: int
) -> None:
    crowd = [(0.61, 1, 9, 1), (0.62, 1, 9, 1)]
    trace = trace_of((0.0, 3, 1, 100), (0.6, 0, 9, 1), *crowd, (0.63, 2, 2000, 1))
    policy = Index(name="x", turn=weights, prefetch={}, quota_s=0.25)
    journal = run(trace, flat_pool(1), policy, SloSpec(), journal=True).journal
    turns = journal[journal["kind"] == EventKind.TURN]
    later = turns[turns["time_ns"] > 630_000_000]
    others = [int(m) for m in later["model"] if m != 3]
    assert others[0] == model
    assert set(turns["quota_ns"]) == {250_000_000}


def test_prefetch_has_weights_of_its_own(trace_of: Any, flat_pool: Any) -> None:
    trace = trace_of((0.0, 0, 1, 200), (0.0, 1, 1, 1), (0.0, 2, 1, 1), (0.0, 2, 1, 1))
    for sign, model in ((1.0, 2), (-1.0, 1)):
        policy = Index(name="x", turn={}, prefetch={"waiting": sign})
        journal = run(trace, flat_pool(1), policy, SloSpec(), journal=True).journal
        assert journal[journal["kind"] == EventKind.PREFETCH]["model"][0] == model


def test_decision_is_the_best_score_of_plain_arithmetic(
    burst: Any, flat_pool: Any, spy: Any
) -> None:
    policy, seen = index(), {DecisionKind.TURN: 0, DecisionKind.PREFETCH: 0}
    turn, prefetch = policy.weights()
    rows, features = np.zeros(ROWS, np.int64), np.zeros(F, np.float32)

    def look(state: Any, kind: int, g: int, event: Any, memory: Any) -> None:
        count, _ = fill_rows(state, kind, g, rows)
        scores = []
        for m in rows[:count]:
            row_features(state, g, m, features)
            weights = turn if kind == DecisionKind.TURN else prefetch
            scores.append(float(weights @ features.astype(np.float64)))
        best = rows[int(np.argmax(scores))]
        close = np.isclose(scores, max(scores), rtol=1e-12).sum() > 1
        assert event["model"] == best or close
        seen[DecisionKind(kind)] += count > 1

    run(burst, flat_pool(2), spy(policy, look), SloSpec())
    assert min(seen.values()) > 20


@pytest.mark.parametrize(
    ("changes", "mode"),
    [
        ({}, PrefetchMode.CAUSAL),
        ({"weight_slots": 1}, PrefetchMode.NONE),
        ({"prefetch": PrefetchMode.NONE}, PrefetchMode.NONE),
    ],
)
def test_configure_frees_the_pool_of_roles(
    flat_pool: Any, changes: dict[str, Any], mode: PrefetchMode
) -> None:
    given = flat_pool(2, roles=(Phases.PREFILL, Phases.DECODE), dispatch=Dispatch.PUSH, **changes)
    pool = index().configure(given)
    assert pool.roles == ()
    assert pool.dispatch is Dispatch.PULL
    assert pool.prefetch is mode


@pytest.mark.skipif(not WORKLOADS.is_file(), reason=f"needs {WORKLOADS.name} beside the project")
def test_index_beats_aegaeon_on_the_authors_workload() -> None:
    """80 models at 0.1 requests/s on 16 GPUs under the cost model of the authors' simulator."""
    trace = read(WORKLOADS, "workload=n80_r0.1_i1_o1")
    pool = PoolSpec(
        name="h100x16_sosp25",
        profile="h100_sosp25",
        checkpoints=SIZES,
        nodes=2,
        kv_fraction=0.8,
        slots_reserved=False,
        h2d_bytes_s=16e9,
        d2h_bytes_s=16e9,
        kv_out_free=True,
        kv_move_token_bytes=500_000,
        block_tokens=1,
        lookahead_tokens=0,
        step_quantum_s=0.001,
        sosp25_rules=True,
        network_bytes_s=1e15,
        host_kv_bytes=10**13,
        host_weight_bytes=10**13,
    )
    attainment = {}
    for policy in (Aegaeon(), index()):
        results = run(trace, pool, policy, SloSpec()).results
        on_time, due = results["on_time_tokens"].sum(), results["due_tokens"].sum()
        attainment[policy.name] = on_time / due
    assert attainment["index"] >= attainment["aegaeon"] + 0.05
    assert 0.75 < attainment["aegaeon"] < 0.95
