"""Events from outside: instances that fail and return, clients that leave."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aegaeon_rl.policies.registry import make_policy
from runtime.core import NS, EventKind, PoolSpec, RequestPhase, SloSpec
from runtime.emulator.run import Run, run
from runtime.emulator.script import departures, failures, outside, script_of
from runtime.emulator.tables import arrivals_of
from runtime.errors import UserError
from traces import Trace

CANCEL, FAIL, JOIN = EventKind.CANCEL, EventKind.INSTANCE_FAILED, EventKind.INSTANCE_JOINED
MS = 1_000_000
SLO = SloSpec()
Pool = Callable[..., PoolSpec]


def play(trace: Trace, pool: PoolSpec, policy: Any, *rows: tuple[float, EventKind, int]) -> Run:
    return run(trace, pool, policy, SLO, journal=True, script=script_of(rows))


def kinds(result: Run) -> list[str]:
    return [EventKind(kind).name for kind in result.journal["kind"]]


def test_a_script_is_in_order_of_time_and_kind() -> None:
    script = script_of([(2.0, JOIN, 1), (1.0, FAIL, 1), (2.0, CANCEL, 7)])
    assert script["time_ns"].tolist() == [NS, 2 * NS, 2 * NS]
    assert script["kind"].tolist() == [FAIL, CANCEL, JOIN]
    assert (script["id"].tolist(), script["instance"].tolist()) == ([-1, 7, -1], [1, -1, 1])


@pytest.mark.parametrize("row", [(-1.0, FAIL, 0), (1.0, EventKind.STEPS, 0), (1.0, CANCEL, -1)])
def test_a_script_holds_nothing_else(row: Any) -> None:
    with pytest.raises(ValueError, match="script"):
        script_of([row])


@pytest.mark.parametrize("row", [(1.0, FAIL, 1), (1.0, CANCEL, 1)])
def test_a_script_names_what_exists(trace_of: Any, flat_pool: Pool, row: Any) -> None:
    with pytest.raises(ValueError, match="does not exist"):
        outside(flat_pool(), arrivals_of(trace_of((0.0, 0, 1, 1))), script_of([row]))


def test_failures_alternate_with_returns_at_the_asked_rates(flat_pool: Pool) -> None:
    pool = flat_pool(instances_per_node=8, mtbf_s=20.0, mttr_s=5.0, seed=3)
    script = failures(pool, 4000 * NS)
    for g in range(8):
        own = script[script["instance"] == g]
        assert own["kind"].tolist() == [FAIL, JOIN] * (len(own) // 2)
        assert own["time_ns"][-2] <= 4000 * NS
    own = script["time_ns"][script["instance"] == 0] / NS
    gaps = np.diff(np.concatenate([[0.0], own]))
    assert gaps[0::2].mean() == pytest.approx(20.0, rel=0.25)
    assert gaps[1::2].mean() == pytest.approx(5.0, rel=0.25)
    assert failures(pool, 4000 * NS).tobytes() == script.tobytes()
    assert failures(replace(pool, seed=4), 4000 * NS).tobytes() != script.tobytes()


def test_patience_is_exponential_with_the_asked_mean(burst: Trace, flat_pool: Pool) -> None:
    pool = flat_pool(cancel_after_s=3.0)
    many = replace(burst, **{c: np.repeat(getattr(burst, c), 50) for c in COLUMNS})
    script = departures(pool, arrivals_of(many))
    waited = (script["time_ns"] - arrivals_of(many).time_ns) / NS
    assert waited.mean() == pytest.approx(3.0, rel=0.1)
    assert np.median(waited) == pytest.approx(3.0 * np.log(2), rel=0.1)


COLUMNS = ("model", "arrival_s", "prompt_tokens", "output_tokens")


def test_without_rates_nothing_comes_from_outside(burst: Trace, flat_pool: Pool) -> None:
    assert len(outside(flat_pool(), arrivals_of(burst))) == 0


def test_instances_cannot_fail_more_than_once_a_second(flat_pool: Pool) -> None:
    with pytest.raises(UserError, match=r"pool.mtbf_s=0.5: expected 0 \(none fails\) or 1 s"):
        flat_pool(mtbf_s=0.5)


def test_a_failed_instance_loses_its_turn_and_its_request_is_prefilled_again(
    trace_of: Any, flat_pool: Pool, script: Any
) -> None:
    """Load until 1 s, prefill 11 ms, 40 steps of about 10.2 ms; gone at 1.2 s, back at 3 s."""
    trace = trace_of((0.0, 0, 100, 40))
    result = play(trace, flat_pool(), script([(0, 9.0)] * 2), (1.2, FAIL, 0), (3.0, JOIN, 0))
    assert kinds(result) == [
        "ARRIVAL", "TURN", "WEIGHTS_READY", "SWITCHED", "PREFILLED", "INSTANCE_FAILED",
        "INSTANCE_JOINED", "TURN", "WEIGHTS_READY", "SWITCHED", "PREFILLED", "STEPS", "FINISHED",
        "TURN_ENDED",
    ]  # fmt: skip
    request = result.results[0]
    assert (request["emitted_tokens"], request["phase"]) == (40, RequestPhase.DONE)
    assert result.journal["time_ns"][10] == 4 * NS + 10 * MS + 101 * 10_000  # one token was out
    assert request["stall_ns"] == result.journal["time_ns"][10] - NS - 11 * MS


def test_kv_in_host_memory_survives_a_failure(trace_of: Any, flat_pool: Pool, script: Any) -> None:
    trace = trace_of((0.0, 0, 100, 9), (0.0, 1, 100, 1))
    turns = script([(0, 0.001), (1, 9.0), (1, 9.0), (0, 9.0)])
    result = play(trace, flat_pool(weight_slots=1), turns, (1.9, FAIL, 0), (2.6, JOIN, 0))
    assert kinds(result).count("KV_IN_DONE") == 1
    assert kinds(result).count("PREFILLED") == 2
    assert set(result.results["phase"]) == {RequestPhase.DONE}


def test_when_nothing_comes_back_the_run_ends_with_what_is_unfinished(
    trace_of: Any, flat_pool: Pool, script: Any
) -> None:
    result = play(trace_of((0.0, 0, 100, 40)), flat_pool(), script([(0, 9.0)]), (1.2, FAIL, 0))
    assert kinds(result)[-1] == "INSTANCE_FAILED"
    assert result.results["emitted_tokens"].tolist() == [1]


def test_an_event_that_finds_nothing_to_do_leaves_no_trace(
    trace_of: Any, flat_pool: Pool, script: Any
) -> None:
    trace = trace_of((0.0, 0, 100, 5), (4.0, 0, 100, 5))
    rows = [(0.5, CANCEL, 1), (3.0, CANCEL, 0), (0.6, JOIN, 0), (99.0, FAIL, 0)]
    plain = play(trace, flat_pool(), script([(0, 9.0)] * 2))
    result = play(trace, flat_pool(), script([(0, 9.0)] * 2), *rows)
    assert result.journal.tobytes() == plain.journal.tobytes()
    assert (result.refused, result.end_s) == (0, plain.end_s)


@pytest.mark.parametrize(
    ("at_s", "emitted", "ended_ns"),
    [
        (0.5, 0, None),  # during the load: the turn lets go of it after its prefill
        (1.2, 20, NS + 11 * MS + sum(10_100_000 + 1000 * (101 + j) for j in range(19))),
    ],
)
def test_an_owned_request_is_cancelled_at_its_next_boundary(
    trace_of: Any, flat_pool: Pool, script: Any, at_s: float, emitted: int, ended_ns: int | None
) -> None:
    trace = trace_of((0.0, 0, 100, 40))
    result = play(trace, flat_pool(), script([(0, 9.0)]), (at_s, CANCEL, 0))
    request = result.results[0]
    assert request["phase"] == RequestPhase.CANCELLED
    if ended_ns is None:
        assert request["emitted_tokens"] <= 1
    else:
        assert (request["emitted_tokens"], request["last_token_ns"]) == (emitted, ended_ns)
    assert kinds(result)[-1] == "TURN_ENDED"


def test_a_client_that_left_counts_its_missing_tokens_as_late(
    trace_of: Any, flat_pool: Pool, script: Any
) -> None:
    """As a failed one does, so that what is due is the same under every policy."""
    result = play(trace_of((0.0, 0, 100, 40)), flat_pool(), script(), (10.15, CANCEL, 0))
    request = result.results[0]
    assert (request["due_tokens"], request["on_time_tokens"]) == (40, 0)


SCRIPTS = st.lists(
    st.one_of(
        st.tuples(st.floats(0, 9), st.just(CANCEL), st.integers(0, 59)),
        st.tuples(st.floats(0, 9), st.sampled_from([FAIL, JOIN]), st.integers(0, 3)),
    ),
    max_size=30,
)


@settings(max_examples=25, deadline=None)
@given(
    rows=SCRIPTS,
    name=st.sampled_from(["fcfs", "index", "aegaeon", "serverlessllm"]),
    changes=st.fixed_dictionaries(
        {
            "noise": st.sampled_from([0.0, 0.4]),
            "mtbf_s": st.sampled_from([0.0, 4.0]),
            "cancel_after_s": st.sampled_from([0.0, 5.0]),
            "kv_survives_switch": st.booleans(),
            "token_preempt": st.booleans(),
            "priorities": st.booleans(),
            "prefill_chunk_tokens": st.sampled_from([0, 64, 300]),
            "max_wait_s": st.sampled_from([0.0, 0.5]),
            "host_kv_bytes": st.sampled_from([0, 10**11]),
            "seed": st.integers(0, 9),
        }
    ),
)
def test_every_request_ends_once_whatever_comes_from_outside(
    burst: Trace, h100x4: PoolSpec, rows: Any, name: str, changes: Any
) -> None:
    """Conservation, a clock that never goes back, liveness, and the same journal twice."""
    pool = replace(h100x4, mttr_s=0.5, **changes)
    end = [(20.0, JOIN, g) for g in range(4)]
    results = [play(burst, pool, make_policy(name), *rows, *end) for _ in range(2)]
    found, journal = results[0].results, results[0].journal
    assert journal.tobytes() == results[1].journal.tobytes()
    assert (np.diff(journal["time_ns"]) >= 0).all()
    assert (found["phase"] >= RequestPhase.DONE).all()
    is_done = found["phase"] == RequestPhase.DONE
    assert (found["emitted_tokens"][is_done] == burst.output_tokens[is_done]).all()
    cancelled = set(journal["id"][journal["kind"] == CANCEL].tolist())
    assert {int(i) for i in np.flatnonzero(found["phase"] == RequestPhase.CANCELLED)} <= cancelled
    if not changes["cancel_after_s"] and not rows and name != "serverlessllm":
        assert is_done.all()
