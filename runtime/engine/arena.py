"""The device's memory, taken once: weight slots first, KV bytes behind them."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from runtime.engine.blob_index import BLOB_ALIGNMENT, rounded
from runtime.engine.device import Device
from runtime.errors import UserError


class Arena:
    """`nbytes` of the device: slots of `slot_bytes` (each rounded up to 4096), the rest for KV.

    A slot holds one model's weights. Slots may differ in size, so that several small models stay
    resident beside a large one; which model sits where is the caller's to know.
    """

    def __init__(self, device: Device, nbytes: int, slot_bytes: Sequence[int]) -> None:
        self.nbytes = nbytes
        self._slot_bytes = [rounded(size, BLOB_ALIGNMENT) for size in slot_bytes]
        kv_bytes = nbytes - sum(self._slot_bytes)
        if not slot_bytes or min(slot_bytes) <= 0 or kv_bytes < 0:
            raise UserError(
                f"engine.memory_bytes is {nbytes}: expected slots of one byte or more and room for "
                f"them all, here {len(slot_bytes)} of together {sum(self._slot_bytes)} bytes"
            )
        try:
            self._memory = device.empty(nbytes)
        except (RuntimeError, MemoryError) as error:
            raise UserError(
                f"engine.memory_bytes is {nbytes}: expected what the device has left"
            ) from error
        *self._slots, self.kv = torch.split(self._memory, [*self._slot_bytes, kv_bytes])
        self._held: dict[int, int] = {}  # slot -> bytes of the weights in it

    def __len__(self) -> int:
        return len(self._slots)

    def slot(self, number: int) -> torch.Tensor:
        """uint8 view of a slot, aligned to 256 bytes."""
        return self._slots[number]

    @property
    def largest_slot_bytes(self) -> int:
        return max(self._slot_bytes)

    def fit(self, nbytes: int) -> int | None:
        """The smallest vacant slot for `nbytes`, the first of equals; None when there is none."""
        vacant = [
            (size, number)
            for number, size in enumerate(self._slot_bytes)
            if number not in self._held and size >= nbytes
        ]
        return min(vacant)[1] if vacant else None

    def take(self, number: int, nbytes: int) -> torch.Tensor:
        """Hold a vacant slot for weights of `nbytes`."""
        assert number not in self._held, f"slot {number} is held"
        assert 0 < nbytes <= self._slot_bytes[number], f"{nbytes} bytes for slot {number}"
        self._held[number] = nbytes
        return self._slots[number]

    def give(self, number: int) -> None:
        """Vacate a slot."""
        del self._held[number]

    @property
    def weight_bytes_used(self) -> int:
        """Bytes of weights in slots."""
        return sum(self._held.values())

    @property
    def weight_bytes_free(self) -> int:
        """Bytes of vacant slots; what a held slot has to spare is neither used nor free."""
        return sum(size for number, size in enumerate(self._slot_bytes) if number not in self._held)

    def check_integrity(self) -> None:
        """Slots and KV cover the arena without overlap; held weights fit."""
        parts = [*self._slots, self.kv]
        end = self._memory.data_ptr()
        for part in parts:
            assert part.data_ptr() == end or part.numel() == 0, "arena: parts are not adjacent"
            end += part.numel()
        assert end == self._memory.data_ptr() + self.nbytes, "arena: bytes are lost"
        assert all(n <= self._slot_bytes[i] for i, n in self._held.items()), "arena: slot overrun"
