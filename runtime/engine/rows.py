"""One layer of the KV arena as rows of tokens, so that one index reads or writes any of them."""

from __future__ import annotations

from torch import Tensor


def token_rows(kv_layer: Tensor) -> Tensor:
    """The layer [blocks, 2, block, J, D] as rows [rows, J * D]: one token's keys or values each.

    Block b's keys start at row b * `row_stride`, its values a block's tokens further. Other
    layers' rows lie between them, so rows are no more than an address.
    """
    blocks, _, block, heads, size = kv_layer.shape
    width = heads * size
    rows = (blocks - 1) * row_stride(kv_layer) + 2 * block
    return kv_layer.as_strided((rows, width), (width, 1))


def row_stride(kv_layer: Tensor) -> int:
    """Rows from one block to the next: those of all layers of a block."""
    return kv_layer.stride(0) // kv_layer.stride(2)
