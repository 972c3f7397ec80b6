"""Memory accounting, in the engine's unit: KV blocks on the device, bytes on the host."""

from runtime.compiled import inner, kernel
from runtime.core import KvPlace
from runtime.pool import lists
from runtime.pool.links import change_outgoing
from runtime.pool.state import State


@inner
def capacity_bytes(state: State, m: int) -> int:
    """KV bytes an instance has for model m beside its weights."""
    pool = state.pool[0]
    weights = pool.reserved_bytes if pool.reserved_bytes > 0 else state.models[m].weight_bytes
    return int(pool.kv_fraction * (pool.vram_bytes - weights))


@inner
def bytes_for(state: State, m: int, tokens: int) -> int:
    """KV bytes of `tokens` tokens of model m, in whole blocks."""
    block = state.pool[0].block_tokens
    return (tokens + block - 1) // block * state.models[m].block_bytes


@inner
def context_tokens(state: State, r: int) -> int:
    """Tokens whose KV the next step of r reads."""
    return state.requests[r].prompt_tokens + state.requests[r].emitted_tokens


@inner
def kv_bytes(state: State, r: int) -> int:
    """KV bytes of a prefilled request."""
    return bytes_for(state, state.requests[r].model, context_tokens(state, r))


@inner
def moved_bytes(state: State, r: int) -> int:
    """Bytes a move of r's KV carries over a link."""
    if state.pool[0].kv_move_token_bytes > 0:
        return context_tokens(state, r) * state.pool[0].kv_move_token_bytes
    return kv_bytes(state, r)


@inner
def prefill_bytes(state: State, r: int) -> int:
    """KV bytes a request holds while it waits for its prefill: room for the token that follows."""
    return bytes_for(state, state.requests[r].model, context_tokens(state, r) + 1)


@inner
def admission_bytes(state: State, r: int) -> int:
    """Room a turn must have before it takes r: its context and the look-ahead."""
    tokens = context_tokens(state, r) + max(1, state.pool[0].lookahead_tokens)
    return bytes_for(state, state.requests[r].model, tokens)


@inner
def has_host_room(state: State, g: int, r: int) -> bool:
    """Does the host of g have room for the KV of r?"""
    node = state.nodes[state.instances[g].node]
    return bool(node.host_kv_used_bytes + kv_bytes(state, r) <= node.host_kv_bytes)


@inner
def drop_host_kv(state: State, r: int) -> None:
    state.pool[0].host_freed = 1
    state.nodes[state.requests[r].node].host_kv_used_bytes -= kv_bytes(state, r)


@inner
def release_kv(state: State, r: int) -> None:
    """Give back whatever KV memory an unowned or ending request holds."""
    req = state.requests[r]
    if req.kv == KvPlace.DEVICE or req.kv == KvPlace.MOVING_OUT:
        state.instances[req.instance].kv_used_bytes -= kv_bytes(state, r)
    if req.kv == KvPlace.MOVING_OUT:
        change_outgoing(state, req.instance, -kv_bytes(state, r))
    if req.kv == KvPlace.HOST or req.kv == KvPlace.MOVING_OUT:
        drop_host_kv(state, r)
    req.kv = KvPlace.NOWHERE


@inner
def can_step(state: State, g: int) -> bool:
    """Does one more decode step of the whole batch on g fit?"""
    inst = state.instances[g]
    batch = lists.instance_list(state, g, lists.BATCH)
    block_bytes = state.models[inst.model].block_bytes
    free = capacity_bytes(state, inst.model) - inst.kv_used_bytes
    if lists.count(state, batch) * block_bytes <= free:
        return True
    return growth_bytes(state, g, 1) <= free


@inner
def grown_blocks(state: State, r: int, k: int) -> int:
    """KV blocks that k steps add to r."""
    block, context = state.pool[0].block_tokens, context_tokens(state, r)
    unused = (context + block - 1) // block * block - context
    return 0 if k <= unused else (k - unused + block - 1) // block


@inner
def growth_bytes(state: State, g: int, k: int) -> int:
    """KV bytes that k steps add to the batch on g."""
    return growth_of(state, lists.instance_list(state, g, lists.BATCH), k)


@inner
def growth_of(state: State, lst: int, k: int) -> int:
    """KV bytes that k steps add to the requests of a list, all of one model."""
    blocks, r = 0, lists.first(state, lst)
    if r < 0:
        return 0
    block_bytes = state.models[state.requests[r].model].block_bytes
    while r >= 0:
        blocks += grown_blocks(state, r, k)
        r = state.requests[r].next
    return blocks * block_bytes


@inner
def next_step_bytes(state: State, g: int) -> int:
    """KV bytes that the turn on g needs for its next step, requests on their way in included."""
    incoming = lists.instance_list(state, g, lists.INCOMING)
    return growth_bytes(state, g, 1) + growth_of(state, incoming, 1)


@inner
def steps_that_fit(state: State, g: int, k: int) -> int:
    """Largest number of steps, at most k, whose KV growth fits on g."""
    free = capacity_bytes(state, state.instances[g].model) - state.instances[g].kv_used_bytes
    most_blocks = 1 + (k - 1) // state.pool[0].block_tokens
    size = lists.count(state, lists.instance_list(state, g, lists.BATCH))
    if size * most_blocks * state.models[state.instances[g].model].block_bytes <= free:
        return k
    if growth_bytes(state, g, k) <= free:
        return k
    low, high = 0, k
    while high - low > 1:
        middle = (low + high) // 2
        if growth_bytes(state, g, middle) <= free:
            low = middle
        else:
            high = middle
    return low


@kernel
def room_for_steps(state: State, g: int, k: int) -> int:
    """`steps_that_fit`, for drivers in Python."""
    return steps_that_fit(state, g, k)
