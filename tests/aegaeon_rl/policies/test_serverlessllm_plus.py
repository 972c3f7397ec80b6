"""`serverlessllm_plus`: shortest remaining time first, with the output lengths in hand."""

from typing import Any

import numpy as np
import pytest

from aegaeon_rl.policies.registry import POLICIES, make_policy
from aegaeon_rl.policies.serverlessllm_plus import ServerlessLlmPlus
from runtime.core import DecisionKind, EventKind, PoolSpec, SloSpec
from runtime.emulator.run import Run, run
from runtime.protocol import Oracle

SLO = SloSpec()


def play(trace: Any, pool: PoolSpec) -> Run:
    return run(trace, pool, ServerlessLlmPlus(), SLO, journal=True)


def column(result: Run, kind: EventKind, name: str) -> list[int]:
    return [int(v) for v in result.journal[result.journal["kind"] == kind][name]]


def changes(values: list[int]) -> list[int]:
    return [v for i, v in enumerate(values) if i == 0 or v != values[i - 1]]


def test_batch_with_a_place_takes_it_else_the_worker_with_the_fewest(
    trace_of: Any, flat_pool: Any
) -> None:
    models = [0, 1, 0, 0, 0, 0, 2]
    result = play(trace_of(*[(0.0, m, 10, 300) for m in models]), flat_pool(2))
    assert column(result, EventKind.ROUTE, "instance") == [0, 1, 0, 0, 0, 0, 1]
    assert column(result, EventKind.ROUTE, "tag") == [1, 2, 1, 1, 1, 3, 4]


def test_unfilled_batch_interrupts_and_the_other_loses_its_kv(
    trace_of: Any, flat_pool: Any
) -> None:
    result = play(trace_of((0.0, 0, 10, 400), (2.0, 1, 10, 50)), flat_pool(1))
    assert changes(column(result, EventKind.TURN, "model")) == [0, 1, 0]
    assert result.recomputed == 1
    assert len(column(result, EventKind.PREFILLED, "n")) == 3
    ends = result.results["last_token_ns"]
    assert ends[1] < ends[0]
    assert (result.results["emitted_tokens"] == [400, 50]).all()


@pytest.mark.parametrize(("output", "order"), [(52, [0, 1]), (900, [0, 1, 0])])
def test_batch_goes_on_when_it_needs_less_than_the_others_prefill(
    trace_of: Any, flat_pool: Any, output: int, order: list[int]
) -> None:
    """A step takes 10 ms, the second's prefill 60 ms; at 1.5 s the first has some 50 tokens."""
    result = play(trace_of((0.0, 0, 10, output), (1.5, 1, 5000, 5)), flat_pool(1))
    assert changes(column(result, EventKind.TURN, "model")) == order


def test_memory_holds_the_lengths_before_the_first_event(
    burst: Any, flat_pool: Any, spy: Any
) -> None:
    policy = ServerlessLlmPlus()
    seen: list[np.ndarray] = []

    class Watched(spy):  # type: ignore[misc, valid-type]
        def foresee(self, memory: Any, output_tokens: Any) -> None:
            self.policy.foresee(memory, output_tokens)
            seen.append(output_tokens)

    def look(state: Any, kind: int, index: int, event: Any, memory: Any) -> None:
        assert len(seen) == 1
        assert memory.output_tokens is seen[0]
        assert kind != DecisionKind.PREFETCH

    run(burst, flat_pool(3), Watched(policy, look), SLO)
    np.testing.assert_array_equal(seen[0], burst.output_tokens)


def test_it_alone_is_an_oracle() -> None:
    assert [n for n in POLICIES if isinstance(make_policy(n), Oracle)] == ["serverlessllm_plus"]


def test_configure_loses_the_kv_of_a_model_that_leaves(flat_pool: Any) -> None:
    pool = ServerlessLlmPlus().configure(flat_pool(2))
    assert not pool.kv_survives_switch
    assert (pool.weight_slots, pool.ttft_timeout_s) == (1, 15.0)
