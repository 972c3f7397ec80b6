"""`run`: one trace, one pool, one policy; what is true of it under every shipped policy."""

from dataclasses import replace
from typing import Any

import pytest

from aegaeon_rl.policies.registry import POLICIES, make_policy
from runtime.core import ModelSlo, PoolSpec, RequestPhase, SloSpec
from runtime.emulator.run import PolicyStuckError, run
from runtime.errors import UserError
from runtime.slo import gap_quantile_s
from traces import Trace

SLO = SloSpec()
EVERY_POLICY = pytest.mark.parametrize("name", POLICIES)


@EVERY_POLICY
def test_run_leaves_the_same_journal_twice(burst: Trace, h100x4: PoolSpec, name: str) -> None:
    first, second = (run(burst, h100x4, make_policy(name), SLO, journal=True) for _ in range(2))
    assert first.journal.tobytes() == second.journal.tobytes()
    assert first.results.tobytes() == second.results.tobytes()
    assert len(first.journal) == first.events


@EVERY_POLICY
def test_run_serves_every_token_once_and_refuses_nothing(
    burst: Trace, h100x4: PoolSpec, name: str
) -> None:
    pool = replace(h100x4, nodes=2)  # an instance for each model
    result = run(burst, pool, make_policy(name), SLO)
    assert set(result.results["phase"]) == {RequestPhase.DONE}
    assert result.results["emitted_tokens"].tolist() == burst.output_tokens.tolist()
    assert result.gaps.sum() == burst.output_tokens.sum() - burst.requests
    assert result.refused == 0
    assert len(result.journal) == 0
    assert result.instances["busy_ns"].sum() <= result.end_s * 1e9 * pool.instances


@EVERY_POLICY
def test_run_keeps_what_the_unfinished_got_by_the_horizon(
    burst: Trace, h100x4: PoolSpec, name: str
) -> None:
    result = run(burst, h100x4, make_policy(name), SLO, horizon_s=4.0)
    results, whole = result.results, run(burst, h100x4, make_policy(name), SLO).results
    is_live = (results["phase"] > RequestPhase.FREE) & (results["phase"] < RequestPhase.DONE)
    assert is_live.any()
    assert (results["emitted_tokens"][is_live] > 0).any()
    assert (results["emitted_tokens"] <= whole["emitted_tokens"]).all()
    assert (results["phase"][burst.arrival_s > 4.0] == RequestPhase.FREE).all()
    assert (results["qos"][is_live] == 0).all()
    done = results["phase"] == RequestPhase.DONE
    assert results[done].tolist() == whole[done].tolist()


def test_run_reports_the_pool_as_the_policy_configured_it(burst: Trace, h100x4: PoolSpec) -> None:
    result = run(burst, h100x4, make_policy("aegaeon"), SLO, horizon_s=0.1)
    assert [role.value for role in result.pool.roles] == [1, 1, 2, 2]
    assert [model.checkpoint for model in result.models] == [
        "Qwen2.5-7B", "Yi-1.5-9B", "Llama-2-13B", "Qwen2.5-7B", "Yi-1.5-9B",
    ]  # fmt: skip


def test_run_measures_the_gaps_between_tokens(trace_of: Any, flat_pool: Any, script: Any) -> None:
    result = run(trace_of((0.0, 0, 100, 5)), flat_pool(), script([(0, 60.0)]), SLO)
    assert result.gaps.sum() == 4
    assert gap_quantile_s(result.gaps, 0.5) == pytest.approx(0.0102, rel=0.03)


def test_run_holds_each_model_to_its_own_slo(trace_of: Any, flat_pool: Any, script: Any) -> None:
    """All get the same tokens; a first token within 1 us, or others 1 ms apart, nobody gives."""
    trace = trace_of((0.0, 0, 10, 5), (10.0, 1, 10, 5), (20.0, 2, 10, 5))
    own = {"m1": ModelSlo(ttft_s=1e-6, tbt_s=60.0), "m2": ModelSlo(ttft_s=1e-6, tbt_s=1e-3)}
    script_of = script([(0, 60.0), (1, 60.0), (2, 60.0)])
    results = run(trace, flat_pool(), script_of, SloSpec(models=own)).results
    assert results["on_time_tokens"].tolist() == [5, 4, 0]
    assert results["emitted_tokens"].tolist() == [5, 5, 5]


def test_run_names_a_policy_that_is_stuck(trace_of: Any, flat_pool: Any, script: Any) -> None:
    trace = trace_of((0.0, 0, 1, 1), (0.0, 0, 1, 1))
    with pytest.raises(PolicyStuckError, match="policy script: 2 requests wait"):
        run(trace, flat_pool(), script(), SLO)


def test_run_fails_what_can_never_fit(trace_of: Any, flat_pool: Any, script: Any) -> None:
    """58.5 GB of KV hold 145,987 tokens of 401,408 bytes."""
    trace = trace_of((0.0, 0, 145_987, 1), (0.0, 0, 145_000, 1))
    pool = flat_pool(vram_bytes=80_000_000_000, kv_fraction=58.6 / 66)
    result = run(trace, pool, script([(0, 1.0)]), SLO)
    assert result.results["phase"].tolist() == [RequestPhase.FAILED, RequestPhase.DONE]


def test_run_sheds_beyond_the_queue_limit(trace_of: Any, flat_pool: Any, script: Any) -> None:
    trace = trace_of(*[(0.0, 0, 1, 1)] * 4)
    result = run(trace, flat_pool(max_queue=3), script([(0, 1.0)]), SLO)
    assert result.results["phase"].tolist() == [4, 4, 4, RequestPhase.SHED]


def test_run_names_the_checkpoint_that_the_profile_lacks(burst: Trace, h100x4: PoolSpec) -> None:
    pool = replace(h100x4, checkpoints=("sosp25/Qwen2.5-7B",))
    with pytest.raises(UserError, match=r"profile h100: no checkpoint 'sosp25/Qwen2\.5-7B'"):
        run(burst, pool, make_policy("fcfs"), SLO)
