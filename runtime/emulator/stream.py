"""A stream of requests through one emulated pool: memory does not grow with the trace.

The tables hold the requests since the oldest one that is not over; the results of those before it
are handed on with each new chunk.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from runtime.core import PoolSpec, SloSpec
from runtime.emulator.loop import Signal, keep_unfinished
from runtime.emulator.profile import load_profile
from runtime.emulator.run import PolicyStuckError, build_state
from runtime.emulator.tables import Sim, arrivals_of, feed, grow_slots, new_sim
from runtime.errors import UserError
from runtime.pool.state import Table
from runtime.protocol import Oracle, Places, Policy
from traces.stream import TraceStream


@dataclass(slots=True)
class Replay:
    """One pass over a stream. Iterate it once for the RESULT rows, in order of arrival, a batch at
    a time; `sim` then holds the pool's counters."""

    sim: Sim
    stream: TraceStream
    policy: Policy

    def __iter__(self) -> Iterator[Table]:
        """Raises PolicyStuckError."""
        sim, chunks = self.sim, self.stream.chunks()
        memory, control = self.policy.memory(sim.state), sim.control[0]
        control["has_more"] = 1
        while True:
            signal = self.policy.drive(sim, memory)
            if signal == Signal.SLOTS_FULL:
                grow_slots(sim)
            elif signal == Signal.ARRIVALS_OUT:
                chunk = next(chunks, None)
                if chunk is None:
                    control["has_more"] = 0
                else:
                    yield feed(sim, arrivals_of(chunk))
            elif signal == Signal.END:
                keep_unfinished(sim)
                yield sim.results
                return
            else:
                raise PolicyStuckError(f"policy {self.policy.name}: requests wait, nothing happens")


def check_streams(pool: PoolSpec, policy: Policy) -> None:
    """Raises UserError for what needs to know the whole trace before it begins."""
    if isinstance(policy, Oracle | Places):
        raise UserError(
            f"policies={policy.name}: it must know the trace before it begins; a stream cannot say"
        )
    for name in ("mtbf_s", "cancel_after_s"):
        if getattr(pool, name) > 0:
            raise UserError(f"pool.{name}={getattr(pool, name)}: expected 0 with a stream")


def replay(stream: TraceStream, pool: PoolSpec, policy: Policy, slo: SloSpec) -> Replay:
    """Raises UserError, see `check_streams`."""
    check_streams(pool, policy)
    configured = policy.configure(pool)
    state = build_state(configured, stream.models, slo, load_profile(configured.profile))
    nothing = arrivals_of(next(stream.chunks()).rows(slice(0)))
    sim = new_sim(
        state,
        nothing,
        ttft_timeout_s=configured.ttft_timeout_s,
        noise=configured.noise,
        seed=configured.seed,
    )
    return Replay(sim, stream, policy)
