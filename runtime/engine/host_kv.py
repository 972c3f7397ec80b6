"""KV in host memory: slabs, each for one block size, shared by all instances of a node.

Bytes and bookkeeping lie in one memory file whose descriptor is handed to other processes; takes
and gives hold its lock, so that any instance may move a request in that another moved out.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple, Self

import numpy as np
import torch

from runtime.engine.host_memory import available_bytes
from runtime.errors import UserError

SLAB_BYTES = 1 << 30
MIN_BLOCK_BYTES = 4096
PAGE = 4096
_FIELDS = 3  # nbytes, slab_bytes, min_block_bytes


class HostRecord(NamedTuple):
    """A request's KV in host memory: plain data, valid on every instance of the node."""

    block_bytes: int
    tokens: int
    offsets: tuple[int, ...]  # of each block, in order, among the bytes of the slabs


class HostKvFullError(RuntimeError):
    """No slab has room."""


class HostKv:
    """`create` it once a node; `attach` to its `fd` in other processes."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self._lock = threading.Lock()
        memory = mmap.mmap(fd, os.fstat(fd).st_size)
        head = np.frombuffer(memory, np.int64, _FIELDS)
        self.nbytes, self.slab_bytes, self.min_block_bytes = map(int, head)
        slabs = self.nbytes // self.slab_bytes
        most = self.slab_bytes // self.min_block_bytes
        at = 8 * _FIELDS
        self._size = np.frombuffer(memory, np.int64, slabs, at)  # block bytes; 0: nobody's
        self._count = np.frombuffer(memory, np.int64, slabs, at + 8 * slabs)  # taken blocks
        used = np.frombuffer(memory, np.uint8, slabs * most, at + 16 * slabs)
        self._used = used.reshape(slabs, most)
        self.bytes = torch.frombuffer(
            memory, dtype=torch.uint8, offset=_head_bytes(slabs, most), count=self.nbytes
        )

    @classmethod
    def create(
        cls,
        nbytes: int,
        *,
        slab_bytes: int = SLAB_BYTES,
        min_block_bytes: int = MIN_BLOCK_BYTES,
    ) -> HostKv:
        """Room for `nbytes`, rounded down to whole slabs and taken from the system at once."""
        slab_bytes = min(slab_bytes, nbytes)
        available = available_bytes()
        if not min_block_bytes <= slab_bytes or nbytes > available:
            raise UserError(
                f"engine.host_kv_bytes is {nbytes}: expected {min_block_bytes}, a block, to "
                f"{available}, what the machine has available"
            )
        slabs, most = nbytes // slab_bytes, slab_bytes // min_block_bytes
        fd = os.memfd_create("kv")
        try:
            os.posix_fallocate(fd, 0, _head_bytes(slabs, most) + slabs * slab_bytes)
        except OSError as error:
            os.close(fd)
            raise UserError(
                f"engine.host_kv_bytes is {nbytes}: {error.strerror}; expected less"
            ) from error
        head = np.array([slabs * slab_bytes, slab_bytes, min_block_bytes], np.int64)
        os.pwrite(fd, head.tobytes(), 0)
        return cls(fd)

    @classmethod
    def attach(cls, fd: int) -> Self:
        """The same memory through a descriptor that another process (or this one) created."""
        return cls(os.open(f"/proc/self/fd/{fd}", os.O_RDWR))  # its own lock, unlike a dup

    def close(self) -> None:
        """Give the descriptor and this object's views back; the bytes live as long as anyone maps
        them."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1
            self.bytes = torch.empty(0, dtype=torch.uint8)
            self._size = self._count = np.empty(0, np.int64)
            self._used = np.empty((0, 0), np.uint8)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        with self._lock:
            fcntl.flock(self.fd, fcntl.LOCK_EX)
            try:
                yield
            finally:
                fcntl.flock(self.fd, fcntl.LOCK_UN)

    def fits(self, block_bytes: int) -> bool:
        """Whether slabs can hold blocks of this size at all."""
        return self.min_block_bytes <= block_bytes <= self.slab_bytes

    def free(self, block_bytes: int) -> int:
        """Blocks of this size that `take` could give now."""
        each = self.slab_bytes // block_bytes
        room = np.where(self._size == block_bytes, each - self._count, 0)
        return int(room.sum()) + each * int((self._size == 0).sum())

    def take(self, block_bytes: int, count: int) -> list[int]:
        """Offsets of `count` blocks.

        Raises:
            HostKvFullError: fewer are free; nothing is taken.
        """
        assert self.fits(block_bytes), f"block of {block_bytes} bytes"
        with self._locked():
            if (room := self.free(block_bytes)) < count:
                raise HostKvFullError(f"{count} blocks of {block_bytes} bytes, room for {room}")
            taken: list[int] = []
            for slab in self._open_slabs(block_bytes):
                if len(taken) == count:
                    break
                taken += self._take_from(slab, block_bytes, count - len(taken))
            return taken

    def _open_slabs(self, block_bytes: int) -> list[int]:
        """Slabs of this size with room, then those of nobody."""
        each = self.slab_bytes // block_bytes
        own = np.flatnonzero((self._size == block_bytes) & (self._count < each))
        return [*own.tolist(), *np.flatnonzero(self._size == 0).tolist()]

    def _take_from(self, slab: int, block_bytes: int, count: int) -> list[int]:
        each = self.slab_bytes // block_bytes
        chosen = np.flatnonzero(self._used[slab, :each] == 0)[:count]
        self._used[slab, chosen] = 1
        self._size[slab] = block_bytes
        self._count[slab] += len(chosen)
        return (slab * self.slab_bytes + chosen * block_bytes).tolist()

    def give(self, block_bytes: int, offsets: list[int]) -> None:
        """Take blocks back; a slab that is all free serves any size again."""
        with self._locked():
            for offset in offsets:
                slab, within = divmod(offset, self.slab_bytes)
                block = within // block_bytes
                assert self._size[slab] == block_bytes
                assert self._used[slab, block]
                self._used[slab, block] = 0
                self._count[slab] -= 1
                if self._count[slab] == 0:
                    self._size[slab] = 0

    def view(self, offset: int, nbytes: int) -> torch.Tensor:
        """uint8 [nbytes] of the slabs."""
        return self.bytes[offset : offset + nbytes]

    def taken(self) -> int:
        """Bytes of blocks that are handed out."""
        return int((self._size * self._count).sum())

    def check_integrity(self) -> None:
        """Counts and marks agree, and only slabs in use have a size."""
        with self._locked():
            assert np.array_equal(self._used.sum(axis=1, dtype=np.int64), self._count)
            assert np.array_equal(self._size == 0, self._count == 0)


class LeasedHostKv(HostKv):
    """Host memory whose blocks another process takes and gives: this one only copies.

    `lease` holds the offsets that the next `take` may use, once, all of one block size; what it
    leaves is the lessor's to take back, as is whatever `give` names.
    """

    def __init__(self, fd: int) -> None:
        super().__init__(fd)
        self.lease: list[int] = []

    def take(self, block_bytes: int, count: int) -> list[int]:
        if len(self.lease) < count:
            raise HostKvFullError(
                f"{count} blocks of {block_bytes} bytes, {len(self.lease)} leased"
            )
        taken, self.lease = self.lease[:count], []
        return taken

    def give(self, block_bytes: int, offsets: list[int]) -> None:
        pass


def _head_bytes(slabs: int, most: int) -> int:
    return -(-(8 * _FIELDS + 16 * slabs + slabs * most) // PAGE) * PAGE
