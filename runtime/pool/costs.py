"""What things cost: predicted times from the profile, in one place for core, features, emulator.

A prefill call takes a + sum(b*T + c*T^2) over its prompts of T tokens. A decode step takes
a + b*context + c*batch, or a + b*context + table(batch), the table linear between its knots. At a
fixed batch each step takes b*batch more than the last, so a run of steps has a closed form.
"""

import numpy as np

from runtime.compiled import inner, kernel
from runtime.core import NS
from runtime.pool.state import Record, State

MIN_SWITCH_NS = NS // 100  # the artifact's floor for a switch with prefetch credit


@inner
def truncated(seconds: float, quantum_s: float) -> float:
    """Whole quanta only, at least one; the SOSP'25 simulator counts in milliseconds."""
    if quantum_s <= 0.0:
        return seconds
    return max(1.0, np.floor(seconds / quantum_s + 1e-9)) * quantum_s


@kernel
def prompt_s(cost: Record, tokens: float) -> float:
    """What one prompt adds to its prefill call. A concave fit is flat from its vertex on."""
    if cost.prefill_token2_s < 0.0:
        tokens = min(tokens, -0.5 * cost.prefill_token_s / cost.prefill_token2_s)
    return cost.prefill_token_s * tokens + cost.prefill_token2_s * tokens * tokens


@kernel
def prefill_s(cost: Record, tokens: float) -> float:
    """A prefill call of one prompt; never negative, never less for more tokens."""
    return cost.prefill_s + prompt_s(cost, tokens)


@kernel
def step_s(cost: Record, context_tokens: float, batch: float) -> float:
    seconds = cost.decode_s + cost.decode_context_s * context_tokens
    if cost.knots == 0:
        return seconds + cost.decode_batch_s * batch
    return seconds + _table_s(cost, batch)


@inner
def _table_s(cost: Record, batch: float) -> float:
    """Linear between knots; beyond the last knot its segment goes on."""
    k = 1
    while k < cost.knots - 1 and cost.knot_batch[k] < batch:
        k += 1
    low, high = cost.knot_batch[k - 1], cost.knot_batch[k]
    share = (batch - low) / (high - low)
    return cost.knot_s[k - 1] + share * (cost.knot_s[k] - cost.knot_s[k - 1])


@kernel
def slowness(flows: int, share: float) -> float:
    """How many times longer than alone a transfer takes beside `flows` - 1 others, if alone it
    uses `share` of the port: each may have 1/flows of it."""
    return max(1.0, flows * share)


@kernel
def stretched_ns(left_ns: int, slow: float) -> int:
    return int(np.ceil(left_ns * slow))


@kernel
def rest_ns(left_ns: int, elapsed_ns: int, slow: float) -> int:
    """What is left of `left_ns` of transfer, as if alone, after some time at `slow`."""
    return max(0, left_ns - int(elapsed_ns / slow))


@inner
def load_rate(state: State, g: int, m: int) -> float:
    """Bytes a second of weights of m to g alone; a miss in the host cache is bound by the disk."""
    pool = state.pool[0]
    if state.hosted[state.instances[g].node, m].is_cached == 0:
        return min(pool.h2d_bytes_s, pool.disk_bytes_s)
    return pool.h2d_bytes_s


@inner
def load_share(state: State, g: int, m: int) -> float:
    return load_rate(state, g, m) / state.pool[0].h2d_bytes_s


@inner
def load_ns(state: State, g: int, m: int) -> int:
    """Weights of m over the host link, alone on its port."""
    if state.hosted[state.instances[g].node, m].is_cached != 0:
        return state.models[m].load_ns
    return int(np.ceil(state.models[m].weight_bytes / load_rate(state, g, m) * 1e9))


@inner
def load_slow(state: State, g: int) -> float:
    """Slowness of the load under way on g; one that waits for KV will have the KV's share."""
    inst = state.instances[g]
    return slowness(state.links[inst.port].in_flows, inst.load_share)


@inner
def load_rest_ns(state: State, g: int) -> int:
    """The rest of the load under way on g, as if alone on its port."""
    inst = state.instances[g]
    if inst.load_since_ns < 0:
        return inst.load_left_ns
    elapsed = state.pool[0].now_ns - inst.load_since_ns
    return rest_ns(inst.load_left_ns, elapsed, load_slow(state, g))


@inner
def load_left_ns(state: State, g: int) -> int:
    """Predicted time until the load under way on g ends, if the port's transfers stay as many."""
    return stretched_ns(load_rest_ns(state, g), load_slow(state, g))


@inner
def dropped_rest_ns(state: State, g: int, m: int) -> int:
    """What a load under way on g still moves before one of m begins in its place: the rest of its
    present chunk, in the time that as many bytes of m take alone if that is longer. Chunks are
    counted from the end of a load, so that the first may be the smaller one."""
    inst, pool = state.instances[g], state.pool[0]
    if inst.loading_slot < 0 or pool.load_chunk_bytes == 0:
        return 0
    rate = inst.load_share * pool.h2d_bytes_s
    chunk_ns = max(1, int(np.ceil(pool.load_chunk_bytes / rate * 1e9)))
    rest, share = load_rest_ns(state, g) % chunk_ns, load_share(state, g, m)
    if inst.load_share > share:
        return int(np.ceil(rest * (inst.load_share / share)))
    return rest


@inner
def new_load_ns(state: State, g: int, m: int) -> int:
    """Predicted time of a load of m that would begin on g now, in the place of one under way."""
    inst = state.instances[g]
    has_flow = inst.moving_in > 0 or inst.load_since_ns >= 0
    flows = state.links[inst.port].in_flows + (0 if has_flow else 1)
    alone_ns = dropped_rest_ns(state, g, m) + load_ns(state, g, m)
    if flows == 1:
        return alone_ns
    return stretched_ns(alone_ns, slowness(flows, load_share(state, g, m)))


@inner
def switch_left_ns(state: State, g: int, m: int, s: int) -> int:
    """Time until a turn of m, which slot s of g holds or loads, could begin to work on g if it was
    ordered now; s NONE: no slot does."""
    overhead_ns = state.pool[0].turn_overhead_ns
    if s < 0:
        return overhead_ns + new_load_ns(state, g, m)
    if s == state.instances[g].loading_slot:
        return overhead_ns + load_left_ns(state, g)
    return overhead_ns


@inner
def kv_in_s(state: State, kv_bytes: int, remote_bytes: int) -> float:
    """KV from host memory, alone on its port; `remote_bytes` of it also cross the network."""
    pool = state.pool[0]
    seconds = (kv_bytes - remote_bytes) / pool.h2d_bytes_s
    if remote_bytes > 0:
        seconds += remote_bytes / min(pool.h2d_bytes_s, pool.network_bytes_s)
    return seconds


@inner
def kv_in_ns(state: State, g: int, seconds: float) -> int:
    """The time of such a move to g, in whole quanta.

    Where KV is reloaded every turn, that is paid at the turn's start: what joins later is free.
    """
    pool = state.pool[0]
    if pool.kv_reload_every_turn != 0 and state.instances[g].decoded_ns > 0:
        return 0
    if pool.step_quantum_s > 0.0:
        seconds = np.floor(seconds / pool.step_quantum_s + 1e-9) * pool.step_quantum_s
    return int(np.ceil(seconds * 1e9 - 1e-3))


@inner
def kv_in_share(state: State, kv_bytes: int, seconds: float) -> float:
    """Mean share of the port that KV uses alone: 1 without a network behind it."""
    return kv_bytes / state.pool[0].h2d_bytes_s / seconds


@inner
def kv_out_ns(state: State, kv_bytes: int) -> int:
    if state.pool[0].kv_out_free:
        return 0
    return int(np.ceil(kv_bytes / state.pool[0].d2h_bytes_s * 1e9))
