"""Prefill of many requests in one call, each over its own length: whole prompts and chunks."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from runtime.engine.rows import row_stride, token_rows

if TYPE_CHECKING:
    from runtime.engine.attention import AttentionBatch


def prefill(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    kv_layer: Tensor,
    batch: AttentionBatch,
    *,
    scale: float,
    window: int | None,
) -> Tensor:
    """Attention [T, H, D] of requests with several new tokens each; the cache holds them already.

    A prompt's first chunk attends to the keys at hand, a later one to those of the cache.
    """
    out = torch.empty_like(query)
    start = 0
    for row, (new, context) in enumerate(
        zip(batch.query_lengths, batch.context_lengths, strict=True)
    ):
        part = slice(start, start + new)
        if new == context:
            keys, values = key[part], value[part]
        else:
            keys, values = cached(kv_layer, batch, row, context)
        out[part] = _sdpa(query[part], keys, values, batch, scale, window)
        start += new
    return out


def cached(
    kv_layer: Tensor, batch: AttentionBatch, row: int, context: int
) -> tuple[Tensor, Tensor]:
    """Keys and values [C, J, D] of one request, gathered from its blocks."""
    name = ("cached", row, row_stride(kv_layer))
    at = batch.plans.get(name)
    if at is None:
        place = torch.arange(context, device=kv_layer.device)
        table = batch.block_tables[row].long()
        at = table[place // batch.block] * row_stride(kv_layer) + place % batch.block
        at = batch.plans[name] = torch.cat([at, at + batch.block])
    assert isinstance(at, Tensor)
    both = torch.index_select(token_rows(kv_layer), 0, at)
    keys, values = both.view(2, context, *kv_layer.shape[3:])
    return keys, values


def _sdpa(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    batch: AttentionBatch,
    scale: float,
    window: int | None,
) -> Tensor:
    """[Q, H, D] of the last Q of the C tokens."""
    new, context = query.shape[0], keys.shape[0]
    whole = new == context and (window is None or window >= context)
    mask = None if whole or (new == 1 and window is None) else _mask(batch, new, context, window)
    if mask is not None and query.is_cuda:  # CUDA's kernel for masks shares no heads
        share = query.shape[1] // keys.shape[1]
        keys, values = (x.repeat_interleave(share, 1) for x in (keys, values))
    out = F.scaled_dot_product_attention(
        query.transpose(0, 1)[None],
        keys.transpose(0, 1)[None],
        values.transpose(0, 1)[None],
        attn_mask=mask,
        is_causal=whole and new > 1,
        scale=scale,
        enable_gqa=query.shape[1] != keys.shape[1],
    )
    return out[0].transpose(0, 1)


def _mask(batch: AttentionBatch, new: int, context: int, window: int | None) -> Tensor:
    name = ("mask", new, context, window)
    mask = batch.plans.get(name)
    if mask is None:
        device = batch.block_tables.device
        mask = batch.plans[name] = visible(new, context, window, device)
    assert isinstance(mask, Tensor)
    return mask


def visible(new: int, context: int, window: int | None, device: torch.device) -> Tensor:
    """Bool [new, context]: which tokens each of the last `new` ones sees."""
    at = torch.arange(context - new, context, device=device)[:, None]
    seen = torch.arange(context, device=device)[None]
    mask = seen <= at
    return mask if window is None else mask & (at - seen < window)
