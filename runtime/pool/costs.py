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


@inner
def load_ns(state: State, g: int, m: int) -> int:
    """Weights of m over the host link; a miss in the host cache is bound by the disk."""
    rate = state.pool[0].h2d_bytes_s
    if state.hosted[state.instances[g].node, m].is_cached == 0:
        rate = min(rate, state.pool[0].disk_bytes_s)
    return int(np.ceil(state.models[m].weight_bytes / rate * 1e9))


@inner
def load_left_ns(state: State, g: int) -> int:
    """Predicted rest of the load under way on g, if nothing else takes the link."""
    inst = state.instances[g]
    if inst.load_since_ns < 0:
        return inst.load_left_ns
    return max(0, inst.load_left_ns - (state.pool[0].now_ns - inst.load_since_ns))


@inner
def switch_left_ns(state: State, g: int, m: int) -> int:
    """Time until a turn of m could begin to work on g if it was ordered now."""
    inst, overhead_ns = state.instances[g], state.pool[0].turn_overhead_ns
    for s in range(state.slots.shape[1]):
        if state.slots[g, s].model == m:
            if s == inst.loading_slot:
                return overhead_ns + load_left_ns(state, g)
            return overhead_ns
    return overhead_ns + load_ns(state, g, m)


@inner
def kv_in_ns(state: State, g: int, kv_bytes: int, remote_bytes: int) -> int:
    """KV from host memory to g; `remote_bytes` of it also cross the network.

    Where KV is reloaded every turn, that is paid at the turn's start: what joins later is free.
    """
    pool = state.pool[0]
    if pool.kv_reload_every_turn != 0 and state.instances[g].decoded_ns > 0:
        return 0
    seconds = (kv_bytes - remote_bytes) / pool.h2d_bytes_s
    if remote_bytes > 0:
        seconds += remote_bytes / min(pool.h2d_bytes_s, pool.network_bytes_s)
    if pool.step_quantum_s > 0.0:
        seconds = np.floor(seconds / pool.step_quantum_s + 1e-9) * pool.step_quantum_s
    return int(np.ceil(seconds * 1e9 - 1e-3))


@inner
def kv_out_ns(state: State, kv_bytes: int) -> int:
    if state.pool[0].kv_out_free:
        return 0
    return int(np.ceil(kv_bytes / state.pool[0].d2h_bytes_s * 1e9))
