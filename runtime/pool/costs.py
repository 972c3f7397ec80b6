"""What things cost: predicted times from the profile, in one place for core, features and emulator.

Step times are linear (anchors: the SOSP'25 artifact's fits): prefill a + b*T + c*sum(T^2) over the
prompt tokens of one call; decode a + b*context + c*batch per step.
"""

import numpy as np

from runtime.compiled import inner
from runtime.core import NS
from runtime.pool.state import Record, State

MIN_SWITCH_NS = NS // 100  # the artifact's floor for a switch with prefetch credit


@inner
def truncated(seconds: float, quantum_s: float) -> float:
    """Whole quanta only, at least one; the SOSP'25 simulator counts in milliseconds."""
    if quantum_s <= 0.0:
        return seconds
    return max(1.0, np.floor(seconds / quantum_s + 1e-9)) * quantum_s


@inner
def prefill_s(cost: Record, tokens: float, tokens2: float) -> float:
    return cost.prefill_s + cost.prefill_token_s * tokens + cost.prefill_token2_s * tokens2


@inner
def step_s(cost: Record, context_tokens: float, batch: float) -> float:
    return cost.decode_s + cost.decode_context_s * context_tokens + cost.decode_batch_s * batch


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
    """Time until weights of m could be in place on g if a turn began now."""
    inst = state.instances[g]
    for s in range(state.slots.shape[1]):
        if state.slots[g, s].model == m:
            if s == inst.loading_slot:
                return load_left_ns(state, g)
            return 0
    return load_ns(state, g, m)


@inner
def kv_in_ns(state: State, g: int, kv_bytes: int, remote_bytes: int) -> int:
    """KV from host memory to g; `remote_bytes` of it also cross the network."""
    pool = state.pool[0]
    seconds = (kv_bytes - remote_bytes) / pool.h2d_bytes_s
    if remote_bytes > 0:
        seconds += remote_bytes / min(pool.h2d_bytes_s, pool.network_bytes_s)
    return int(np.ceil(seconds * 1e9))


@inner
def kv_out_ns(state: State, kv_bytes: int) -> int:
    if state.pool[0].kv_out_free:
        return 0
    return int(np.ceil(kv_bytes / state.pool[0].d2h_bytes_s * 1e9))
