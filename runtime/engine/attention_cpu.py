"""Decode on the CPU: requests of like length together, in groups that stay in the cache.

Letters: B requests, J key heads, G query heads a key head, D head size, W visible tokens.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from numpy.typing import NDArray
from torch import Tensor

from runtime.engine.rows import row_stride, token_rows

if TYPE_CHECKING:
    from runtime.engine.attention import AttentionBatch

GROUP_BYTES = 1 << 20  # keys and values gathered at once: what a core's own cache holds
WASTE = 1.25  # a group's longest request over its shortest


class Group(NamedTuple):
    """Requests attended together, padded to the longest of them."""

    requests: Tensor | None  # int64 [B of the group]; None: all, in order
    rows: Tensor  # int64 [2 * B * W]: rows of keys, then of values
    mask: Tensor | None  # [B, 1, 1, W]: 0 or -inf; None: nothing is padded


def decode(
    query: Tensor, kv_layer: Tensor, batch: AttentionBatch, *, scale: float, window: int | None
) -> Tensor:
    """Attention [B, H, D] of one new token a request, whose keys the cache holds already."""
    name = ("decode", row_stride(kv_layer), window)
    groups = batch.plans.get(name)
    if groups is None:
        groups = batch.plans[name] = _groups(query, kv_layer, batch, window)
    assert isinstance(groups, list)
    if len(groups) == 1:
        return _attend(query, kv_layer, groups[0], scale)
    out = torch.empty_like(query)
    for group in groups:
        out[group.requests] = _attend(query[group.requests], kv_layer, group, scale)
    return out


def _attend(query: Tensor, kv_layer: Tensor, group: Group, scale: float) -> Tensor:
    """The G query heads of a key head are one sequence of G queries: no key is repeated."""
    requests, heads, size = query.shape
    key_heads = kv_layer.shape[3]
    both = torch.index_select(token_rows(kv_layer), 0, group.rows)
    keys, values = both.view(2, requests, -1, key_heads, size).transpose(2, 3)
    grouped = query.reshape(requests, key_heads, heads // key_heads, size)
    out = F.scaled_dot_product_attention(grouped, keys, values, attn_mask=group.mask, scale=scale)
    return out.reshape(requests, heads, size)


def _groups(
    query: Tensor, kv_layer: Tensor, batch: AttentionBatch, window: int | None
) -> list[Group]:
    """Requests by visible length, cut where bytes or padding would be too many."""
    lengths = [min(c, window or c) for c in batch.context_lengths]
    row_bytes = 2 * kv_layer.stride(2) * kv_layer.element_size()
    runs: list[list[int]] = []
    for request in sorted(range(len(lengths)), key=lengths.__getitem__):
        run = runs[-1] if runs else []
        fits = (len(run) + 1) * lengths[request] * row_bytes <= GROUP_BYTES
        if run and fits and lengths[request] <= WASTE * lengths[run[0]] + batch.block:
            run.append(request)
        else:
            runs.append([request])
    if len(runs) == 1:
        return [_group(None, lengths, query, kv_layer, batch)]
    return [_group(run, lengths, query, kv_layer, batch) for run in runs]


def _group(
    requests: list[int] | None,
    lengths: list[int],
    query: Tensor,
    kv_layer: Tensor,
    batch: AttentionBatch,
) -> Group:
    """Padded places repeat a token, so that nothing unwritten is ever read."""
    chosen = requests if requests is not None else range(len(lengths))
    contexts = [batch.context_lengths[r] for r in chosen]
    seen = [lengths[r] for r in chosen]
    longest = max(seen)
    at = _table_rows(kv_layer, batch)
    if requests is not None:
        at = at[:, requests]
    if seen != contexts:  # a window: the last of each request's tokens
        ends = np.array(contexts)[:, None]
        places = ends - np.array(seen)[:, None] + np.arange(longest)
        at = np.take_along_axis(at, np.minimum(places, ends - 1)[None], 2)
    at = at[:, :, :longest]
    mask = None
    if min(seen) < longest:
        hidden = np.arange(longest) >= np.array(seen)[:, None]
        at = np.where(hidden, at[:, :, :1], at)
        share = query.shape[1] // kv_layer.shape[3]
        mask = torch.zeros(len(seen), 1, share, longest, dtype=query.dtype)
        mask.masked_fill_(torch.from_numpy(hidden)[:, None, None], float("-inf"))
    which = None if requests is None else torch.tensor(requests)
    return Group(which, torch.from_numpy(at.reshape(-1)), mask)


def _table_rows(kv_layer: Tensor, batch: AttentionBatch) -> NDArray[np.int64]:
    """int64 [2, B, tokens]: rows of keys, then of values, of all tokens that the tables hold, the
    unwritten ones included."""
    stride = row_stride(kv_layer)
    if stride not in batch.table_rows:
        tables = batch.block_tables.numpy().astype(np.int64)
        keys = tables[:, :, None] * stride + np.arange(batch.block)
        keys = keys.reshape(len(tables), -1)
        batch.table_rows[stride] = np.stack([keys, keys + batch.block])
    return batch.table_rows[stride]
