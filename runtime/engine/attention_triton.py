"""Decode over the paged cache in Triton: each request's context cut into splits that run at once.

One program attends one key head's query heads to one split; a second kernel merges the splits. All
sizes are known on the host from shapes alone, so a CUDA graph may hold the calls.
Letters: B requests, H query heads, J key heads, D head size, S splits.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import triton
import triton.language as tl
from torch import Tensor

if TYPE_CHECKING:
    from runtime.engine.attention import AttentionBatch

TILE = 64  # tokens a step of a program reads
PROGRAMS_PER_CORE = 2  # what keeps a GPU's cores busy while others wait for memory
CORES = 132  # of an H100 or H200; taken where the device cannot be asked


@triton.jit  # type: ignore[untyped-decorator, unused-ignore]
def _attend_split(
    query: Any,
    kv: Any,
    tables: Any,
    contexts: Any,
    partial: Any,
    peaks: Any,
    totals: Any,
    scale: Any,
    softcap: Any,
    query_request: Any,
    query_head: Any,
    kv_block: Any,
    kv_value: Any,
    kv_token: Any,
    kv_head: Any,
    table_request: Any,
    WINDOW: tl.constexpr,  # noqa: N803
    CAPPED: tl.constexpr,  # noqa: N803
    SHARE: tl.constexpr,  # noqa: N803
    SHARE_PADDED: tl.constexpr,  # noqa: N803
    SIZE: tl.constexpr,  # noqa: N803
    SIZE_PADDED: tl.constexpr,  # noqa: N803
    BLOCK: tl.constexpr,  # noqa: N803
    STEP: tl.constexpr,  # noqa: N803
    SPLITS: tl.constexpr,  # noqa: N803
) -> None:
    request = tl.program_id(0)
    head = tl.program_id(1)
    split = tl.program_id(2)
    context = tl.load(contexts + request)
    first = tl.maximum(context - WINDOW, 0) if WINDOW > 0 else 0
    first_step = first // STEP
    steps = tl.cdiv(tl.cdiv(context, STEP) - first_step, SPLITS)
    begin = (first_step + split * steps) * STEP
    end = tl.minimum(begin + steps * STEP, context)

    share = tl.arange(0, SHARE_PADDED)
    size = tl.arange(0, SIZE_PADDED)
    heads = head * SHARE + share
    inside = (share < SHARE)[:, None] & (size < SIZE)[None, :]
    at = request * query_request + heads[:, None] * query_head + size[None, :]
    q = tl.load(query + at, mask=inside, other=0.0)
    peak = tl.full([SHARE_PADDED], float("-inf"), tl.float32)
    total = tl.zeros([SHARE_PADDED], tl.float32)
    out = tl.zeros([SHARE_PADDED, SIZE_PADDED], tl.float32)
    for start in range(begin, end, STEP):
        place = start + tl.arange(0, STEP)
        seen = (place < end) & (place >= first)
        block = tl.load(tables + request * table_request + place // BLOCK, mask=seen, other=0)
        row = block.to(tl.int64) * kv_block + (place % BLOCK) * kv_token + head * kv_head
        cells = kv + row[:, None] + size[None, :]
        loaded = seen[:, None] & (size < SIZE)[None, :]
        keys = tl.load(cells, mask=loaded, other=0.0)
        scores = tl.dot(q, tl.trans(keys), input_precision="ieee") * scale
        if CAPPED:
            # tanh by its definition: Triton's language has none of its own
            scores = softcap * (1.0 - 2.0 / (tl.exp(2.0 * scores / softcap) + 1.0))
        scores = tl.where(seen[None, :], scores, float("-inf"))
        new_peak = tl.maximum(peak, tl.max(scores, 1))
        fade = tl.exp(peak - new_peak)
        weights = tl.exp(scores - new_peak[:, None])
        total = total * fade + tl.sum(weights, 1)
        values = tl.load(cells + kv_value, mask=loaded, other=0.0)
        added = tl.dot(weights.to(values.dtype), values, input_precision="ieee")
        out = out * fade[:, None] + added
        peak = new_peak
    cell = (request * tl.num_programs(1) * SHARE + heads) * SPLITS + split
    tl.store(partial + cell[:, None] * SIZE + size[None, :], out, mask=inside)
    tl.store(peaks + cell, peak, mask=share < SHARE)
    tl.store(totals + cell, total, mask=share < SHARE)


@triton.jit  # type: ignore[untyped-decorator, unused-ignore]
def _merge_splits(
    partial: Any,
    peaks: Any,
    totals: Any,
    sinks: Any,
    out: Any,
    SUNK: tl.constexpr,  # noqa: N803
    SIZE: tl.constexpr,  # noqa: N803
    SIZE_PADDED: tl.constexpr,  # noqa: N803
    SPLITS: tl.constexpr,  # noqa: N803
) -> None:
    cell = tl.program_id(0) * tl.num_programs(1) + tl.program_id(1)
    split = cell * SPLITS + tl.arange(0, SPLITS)
    size = tl.arange(0, SIZE_PADDED)
    peak = tl.load(peaks + split)
    top = tl.max(peak, 0)
    if SUNK:
        sink = tl.load(sinks + tl.program_id(1)).to(tl.float32)
        top = tl.maximum(top, sink)
    weight = tl.exp(peak - top)
    total = tl.sum(weight * tl.load(totals + split), 0)
    if SUNK:
        total += tl.exp(sink - top)
    parts = tl.load(
        partial + split[:, None] * SIZE + size[None, :], mask=(size < SIZE)[None, :], other=0.0
    )
    merged = tl.sum(parts * weight[:, None], 0) / total
    tl.store(out + cell * SIZE + size, merged.to(out.dtype.element_ty), mask=size < SIZE)


def paged_decode(
    query: Tensor,
    kv_layer: Tensor,
    batch: AttentionBatch,
    *,
    scale: float,
    window: int | None = None,
    softcap: float | None = None,
    sinks: Tensor | None = None,
    splits: int | None = None,
) -> Tensor:
    """Attention [B, H, D] of one new token a request, whose keys the cache holds already.

    `splits` (a power of two) is chosen from the shapes when it is not given.
    """
    requests, heads, size = query.shape
    key_heads, tables = kv_layer.shape[3], batch.block_tables
    share = heads // key_heads
    splits = splits or _splits(requests * key_heads, tables.shape[1] * batch.block, query)
    partial = query.new_empty((requests, heads, splits, size), dtype=torch.float32)
    peaks, totals = query.new_empty((2, requests, heads, splits), dtype=torch.float32)
    padded = max(16, triton.next_power_of_2(size))
    _attend_split[(requests, key_heads, splits)](
        query,
        kv_layer,
        tables,
        batch.context_tokens,
        partial,
        peaks,
        totals,
        scale,
        softcap or 1.0,
        query.stride(0),
        query.stride(1),
        kv_layer.stride(0),
        kv_layer.stride(1),
        kv_layer.stride(2),
        kv_layer.stride(3),
        tables.stride(0),
        WINDOW=window or 0,
        CAPPED=softcap is not None,
        SHARE=share,
        SHARE_PADDED=max(16, triton.next_power_of_2(share)),
        SIZE=size,
        SIZE_PADDED=padded,
        BLOCK=batch.block,
        STEP=TILE,
        SPLITS=splits,
    )
    out = torch.empty_like(query, memory_format=torch.contiguous_format)
    _merge_splits[(requests, heads)](
        partial,
        peaks,
        totals,
        peaks if sinks is None else sinks,
        out,
        SUNK=sinks is not None,
        SIZE=size,
        SIZE_PADDED=padded,
        SPLITS=splits,
    )
    return out


def _splits(programs: int, tokens: int, query: Tensor) -> int:
    """Enough programs for all cores, but no split without a tile of the longest table."""
    cores = CORES
    if query.is_cuda:
        cores = torch.cuda.get_device_properties(query.device).multi_processor_count
    wanted = min(-(-PROGRAMS_PER_CORE * cores // programs), -(-tokens // TILE))
    return 1 << max(0, wanted.bit_length() - 1)
