"""Attention over a paged KV cache: one call writes the new tokens' keys and values, then attends.

The reference gathers each request's tokens and computes in float32: the oracle of every faster
path. Letters: B requests, T new tokens of all requests, C tokens of context (the new ones
included), H query heads, J key heads, G = H / J, D head size, W visible tokens, padded.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from runtime.engine import attention_cpu, attention_prefill
from runtime.engine.attention_prefill import visible
from runtime.engine.rows import row_stride, token_rows


@dataclass(frozen=True, eq=False)
class AttentionBatch:
    """Where the tokens of one model call live; one object serves all the layers of the call.

    `of` builds it from lists. Entries of a table beyond a request's blocks are never read.
    """

    block_tables: Tensor  # int32 [B, most blocks]: block ids of each request, in order
    context_tokens: Tensor  # int32 [B]: tokens of each request, the new ones included
    slot_mapping: Tensor  # int64 [T]: block id * block + offset of each new token
    block: int
    max_query_tokens: int
    max_context_tokens: int
    query_lengths: tuple[int, ...] = ()  # the host's copies: no path waits for the device
    context_lengths: tuple[int, ...] = ()
    tables: tuple[tuple[int, ...], ...] = ()  # not padded; empty in a captured step
    plans: dict[tuple[object, ...], object] = field(default_factory=dict, repr=False)
    table_rows: dict[int, NDArray[np.int64]] = field(default_factory=dict, repr=False)  # by stride

    @property
    def is_decode(self) -> bool:
        """One new token for every request."""
        return self.max_query_tokens == 1

    @classmethod
    def of(
        cls,
        tables: Sequence[Sequence[int]],
        new_tokens: Sequence[int],
        context_tokens: Sequence[int],
        *,
        block: int,
        device: torch.device | str = "cpu",
        last: AttentionBatch | None = None,
    ) -> AttentionBatch:
        """A batch of requests with these block tables, numbers of new tokens and contexts.

        `last`: the batch before; what depends on the tables alone is its, if they are the same.
        """
        ids = tuple(map(tuple, tables))
        if last is None or ids != last.tables or block != last.block:
            last = None
        slots = []
        for table, new, context in zip(tables, new_tokens, context_tokens, strict=True):
            assert 0 < new <= context <= len(table) * block
            slots += [table[p // block] * block + p % block for p in range(context - new, context)]
        return cls(
            placed(padded(ids), np.int32, device) if last is None else last.block_tables,
            placed(context_tokens, np.int32, device),
            placed(slots, np.int64, device),
            block,
            max(new_tokens),
            max(context_tokens),
            tuple(new_tokens),
            tuple(context_tokens),
            ids,
            table_rows={} if last is None else last.table_rows,
        )


def padded(tables: Sequence[Sequence[int]]) -> list[list[int]]:
    """Tables of one length: the shorter ones repeat their first block."""
    most = max(map(len, tables))
    return [[*table, *[table[0]] * (most - len(table))] for table in tables]


def placed(values: object, dtype: type[np.integer], device: torch.device | str) -> Tensor:
    """A tensor on the device; the host does not wait for the copy."""
    tensor = torch.from_numpy(np.array(values, dtype))
    return tensor if str(device) == "cpu" else tensor.to(device, non_blocking=True)


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    kv_layer: Tensor,
    batch: AttentionBatch,
    *,
    scale: float,
    window: int | None = None,
    softcap: float | None = None,
    sinks: Tensor | None = None,
) -> Tensor:
    """Causal attention of the new tokens, which are written to the cache first.

    Args:
        query: [T, H, D]; key and value: [T, J, D].
        kv_layer: [blocks, 2, block, J, D], the view of one layer in the KV arena.
        scale: what scores are multiplied by.
        window: a token sees itself and the window - 1 tokens before it; None: all.
        softcap: scores become softcap * tanh(scores / softcap).
        sinks: [H], a score beside each row's that takes probability and gives no value.

    Returns:
        [T, H, D] of the query's type.
    """
    store(key, value, kv_layer, batch)
    plain = softcap is None and sinks is None
    if batch.is_decode and query.is_cuda:
        from runtime.engine.attention_triton import paged_decode

        return paged_decode(
            query, kv_layer, batch, scale=scale, window=window, softcap=softcap, sinks=sinks
        )
    if batch.is_decode and plain:
        return attention_cpu.decode(query, kv_layer, batch, scale=scale, window=window)
    if plain:
        return attention_prefill.prefill(
            query, key, value, kv_layer, batch, scale=scale, window=window
        )
    return reference(
        query, kv_layer, batch, scale=scale, window=window, softcap=softcap, sinks=sinks
    )


def store(key: Tensor, value: Tensor, kv_layer: Tensor, batch: AttentionBatch) -> None:
    """Write the new tokens' keys and values to their slots."""
    rows = token_rows(kv_layer)
    name = ("store", row_stride(kv_layer))
    target = batch.plans.get(name)
    if target is None:
        target = batch.plans[name] = stored_rows(batch, row_stride(kv_layer))
    assert isinstance(target, Tensor)
    rows.index_copy_(0, target, torch.cat([key, value]).view(-1, rows.shape[1]))


def stored_rows(batch: AttentionBatch, stride: int) -> Tensor:
    """int64 [2 * T]: the rows of the new tokens' keys, then of their values."""
    block = batch.block
    if batch.slot_mapping.is_cuda:
        at = (batch.slot_mapping // block) * stride + batch.slot_mapping % block
        return torch.cat([at, at + block])
    rows = [slot // block * stride + slot % block for slot in batch.slot_mapping.tolist()]
    return placed([*rows, *[row + block for row in rows]], np.int64, "cpu")


def reference(
    query: Tensor,
    kv_layer: Tensor,
    batch: AttentionBatch,
    *,
    scale: float,
    window: int | None = None,
    softcap: float | None = None,
    sinks: Tensor | None = None,
) -> Tensor:
    """What `attend` returns once keys and values are stored: plain, in float32, one by one."""
    out = torch.empty_like(query)
    start = 0
    for row, (new, context) in enumerate(
        zip(batch.query_lengths, batch.context_lengths, strict=True)
    ):
        table = batch.block_tables[row, : -(-context // batch.block)].long()
        keys, values = kv_layer[table].float().movedim(1, 0).flatten(1, 2)[:, :context]
        share = query.shape[1] // keys.shape[1]
        keys, values = keys.repeat_interleave(share, 1), values.repeat_interleave(share, 1)
        scores = torch.einsum("qhd,khd->hqk", query[start : start + new].float(), keys) * scale
        if softcap is not None:
            scores = softcap * torch.tanh(scores / softcap)
        hidden = ~visible(new, context, window, query.device)
        scores = scores.masked_fill(hidden, float("-inf"))
        if sinks is not None:
            column = sinks.float()[:, None, None].expand(-1, new, 1)
            scores = torch.cat([scores, column], -1)
        weights = scores.softmax(-1)[..., :context]
        out[start : start + new] = torch.einsum("hqk,khd->qhd", weights, values).to(query.dtype)
        start += new
    return out
