"""A streamed trace leaves the results of the same trace run whole, however it is cut."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from aegaeon_rl.policies.registry import make_policy
from runtime.core import PoolSpec, SloSpec
from runtime.emulator.run import run
from runtime.emulator.stream import replay
from runtime.errors import UserError
from traces import Trace
from traces.market import MarketSpec, generate
from traces.stream import Chunk, TraceStream, of_trace

SLO = SloSpec(ttft_s=2.0, tbt_s=0.05)


@pytest.fixture(scope="module")
def market() -> Trace:
    return generate(MarketSpec(name="m", models=6, duration_s=120.0, rate_rps=9.0, seed=3))


def cut(trace: Trace, rows: int) -> TraceStream:
    """The trace as a stream of chunks of `rows` requests."""
    whole = of_trace(trace)

    def chunks() -> Iterator[Chunk]:
        for chunk in whole.chunks():
            for i in range(0, chunk.requests, rows):
                yield chunk.rows(slice(i, i + rows))

    return replace(whole, start=chunks)


@pytest.mark.parametrize("rows", [1, 17, 400, 10_000])
@pytest.mark.parametrize("name", ["index", "aegaeon", "serverlessllm"])
def test_stream_has_the_results_of_the_whole(
    market: Trace, flat_pool: Callable[..., PoolSpec], name: str, rows: int
) -> None:
    """serverlessllm gives requests up after a while: its timer looks at arrivals by age."""
    pool, policy = flat_pool(instances_per_node=2), make_policy(name)
    whole = run(market, pool, policy, SLO).results
    parts = [part.copy() for part in replay(cut(market, rows), pool, policy, SLO)]
    assert np.concatenate(parts).tobytes() == whole.tobytes()


def test_tables_hold_what_is_not_over(market: Trace, flat_pool: Callable[..., PoolSpec]) -> None:
    """Ten times the trace needs no larger tables, in a pool that keeps up."""
    sizes = []
    for times in (2, 20):
        stream = cut(market.repeat(times, 150.0), 50)
        replayed = replay(stream, flat_pool(instances_per_node=6), make_policy("index"), SLO)
        largest = max((len(replayed.sim.results) for _ in replayed), default=0)
        sizes.append((largest, len(replayed.sim.state.requests)))
    (short, short_slots), (long, long_slots) = sizes
    assert long < 1.5 * short
    assert short < market.requests
    assert long_slots == short_slots


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("muxserve", {}, "policies=muxserve: it must know the trace before it begins"),
        ("serverlessllm_plus", {}, "policies=serverlessllm_plus: it must know the trace"),
        ("index", {"mtbf_s": 60.0}, "pool.mtbf_s=60.0: expected 0 with a stream"),
        ("index", {"cancel_after_s": 5.0}, "pool.cancel_after_s=5.0: expected 0 with a stream"),
    ],
)
def test_what_needs_the_whole_trace_is_refused(
    market: Trace,
    flat_pool: Callable[..., PoolSpec],
    name: str,
    changes: dict[str, Any],
    message: str,
) -> None:
    with pytest.raises(UserError, match=message):
        replay(of_trace(market), flat_pool(instances_per_node=2, **changes), make_policy(name), SLO)
