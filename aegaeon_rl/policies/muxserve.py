"""`muxserve`: static co-location with a searched placement (MuxServe, arXiv:2404.02015).

The search is the greedy part of its algorithm 1: models in order of computation demand, each to the
instance where estimated throughput grows most. The outer enumeration of meshes is the pool's: an
instance is a GPU or a TP group. As in the paper, mean rates and lengths are known in advance.

Simplification: co-located models share an instance in time, by turns of a TBT divided by the number
of residents, where MuxServe shares its SMs. No turn loads weights or moves KV while there is room
for both, whatever the pool's engine can do otherwise. The cost: one model's decoding, bound by
memory bandwidth, never overlaps with another's prefill, bound by compute, so MuxServe is
understated where both are busy (the paper reports up to 1.8x the throughput of its baselines);
where one is idle nothing is lost.
"""

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from aegaeon_rl.policies.static import Static
from runtime.catalog import checkpoint
from runtime.compiled import kernel
from runtime.core import POOL_BOUNDS, Dispatch, PoolSpec, PrefetchMode
from runtime.pool.costs import prefill_s, step_s
from runtime.pool.memory import bytes_for, capacity_bytes
from runtime.pool.state import State
from runtime.protocol import Workload

KV_FLOOR_TOKENS = 4096  # each resident can hold one full context of Llama-2's length
GAIN_DIGITS = 9  # of requests/s: smaller gains are rounding


@kernel
def fill_loads(
    state: State,
    rates_rps: npt.NDArray[np.float64],
    prompt_tokens: npt.NDArray[np.float64],
    output_tokens: npt.NDArray[np.float64],
    loads: npt.NDArray[np.float64],
) -> None:
    """Share of an instance's time that each model needs, into `loads` [G, M].

    A request costs its prefill and its part of each step. The batch is what Little's law gives when
    tokens come at the TBT target, as far as an equal share of the KV memory holds it.
    """
    sharing = state.slots.shape[1]
    for g in range(loads.shape[0]):
        for m in range(loads.shape[1]):
            prompt, output = prompt_tokens[m], output_tokens[m]
            held = max(1, bytes_for(state, m, int(prompt + output)))
            most = capacity_bytes(state, m) / sharing / held
            in_flight = rates_rps[m] * output * state.models[m].tbt_ns / 1e9
            batch = max(1.0, min(in_flight, most))
            cost = state.costs[state.instances[g].gpu_type, m]
            step = step_s(cost, batch * (prompt + output / 2), batch) / batch
            request_s = prefill_s(cost, prompt) + output * step
            loads[g, m] = rates_rps[m] * request_s


def served_rps(
    load: npt.NDArray[np.float64], rate: npt.NDArray[np.float64]
) -> npt.NDArray[np.float64]:
    """Estimated throughput of instances that need `load` of their time for `rate` requests/s."""
    return np.asarray(rate / np.maximum(load, 1.0))


def models_per_instance(pool: PoolSpec) -> int:
    """The most models whose weights, at the largest size, leave each its KV floor; at least 1."""
    known = [checkpoint(name) for name in pool.checkpoints]
    weights = max(c.weight_bytes for c in known)
    floor = KV_FLOOR_TOKENS * max(c.kv_token_bytes for c in known)
    fits = int(pool.tp * pool.vram_bytes // (weights + floor / pool.kv_fraction))
    return max(1, min(fits, int(POOL_BOUNDS["weight_slots"][1])))


@dataclass(frozen=True, slots=True, kw_only=True)
class MuxServe(Static):
    name: str = "muxserve"

    def configure(self, pool: PoolSpec) -> PoolSpec:
        return replace(
            pool,
            roles=(),
            dispatch=Dispatch.PUSH,
            prefetch=PrefetchMode.NONE,
            weight_slots=models_per_instance(pool),
            slots_reserved=True,
            weight_budget_bytes=0,
            kv_stays=True,
            token_preempt=True,
        )

    def placement(self, state: State, workload: Workload) -> tuple[tuple[int, int], ...]:
        """Greedy: the most demanding model first, to the instance with a free slot where estimated
        throughput grows most (ties: least loaded, then lowest). A model that finds no slot has
        no place."""
        loads = np.zeros((len(state.instances), len(state.models)))
        fill_loads(state, *workload, loads)
        load, rate = np.zeros(len(state.instances)), np.zeros(len(state.instances))
        free = np.full(len(state.instances), state.slots.shape[1])
        pairs = []
        for m in sorted(range(len(state.models)), key=lambda m: (-loads[:, m].max(), m)):
            after, more = load + loads[:, m], rate + workload.rates_rps[m]
            gain = np.round(served_rps(after, more) - served_rps(load, rate), GAIN_DIGITS)
            able = np.flatnonzero(free)
            if not len(able):
                break
            g = int(able[np.lexsort((able, after[able], -gain[able]))[0]])
            load[g], rate[g], free[g] = after[g], more[g], free[g] - 1
            pairs.append((g, m))
        return tuple(pairs)
