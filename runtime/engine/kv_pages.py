"""Who may use which bytes of the KV region: pages, each held by one block size while it is in use.

A block of size s with number i lies at bytes [i * s, (i + 1) * s) of the region, so all blocks of a
size are one typed view. A block may be had when every page it touches is nobody's or of its size:
one size alone loses nothing, two sizes lose under a block where their pages meet. A page is
nobody's again when no taken block touches it.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray


class Usage(NamedTuple):
    """Where the region's bytes are."""

    taken_bytes: int  # in blocks that are handed out
    held_bytes: int  # free, but in pages that a size holds: for that size only
    empty_bytes: int  # in pages that any size may take


class Stack:
    """Numbers of blocks; the last one pushed leaves first."""

    def __init__(self, first: NDArray[np.int64], then: NDArray[np.int64]) -> None:
        self._items = np.concatenate([then[::-1], first[::-1]])
        self.count = len(self._items)

    def pop(self, count: int) -> list[int]:
        self.count -= count
        taken: list[int] = self._items[self.count : self.count + count][::-1].tolist()
        return taken

    def push(self, blocks: list[int]) -> None:
        end = self.count + len(blocks)
        if end > len(self._items):
            self._items = np.concatenate([self._items[: self.count], np.empty(end, np.int64)])
        self._items[self.count : end] = sorted(blocks, reverse=True)
        self.count = end


class Pages:
    """Free blocks of every size. Bookkeeping only: it knows neither bytes nor streams."""

    def __init__(self, nbytes: int, page_bytes: int) -> None:
        self.nbytes = nbytes
        self.page_bytes = page_bytes
        pages = -(-nbytes // page_bytes)
        self._holder = np.zeros(pages, np.int64)  # block size; 0: nobody's
        self._taken = np.zeros(pages, np.int64)  # taken blocks that touch the page
        self._free: dict[int, Stack] = {}  # by size; dropped when out of date
        self._marks: dict[int, NDArray[np.bool_]] = {}  # by size: is the block taken

    def free(self, size: int) -> int:
        """Blocks of this size that `take` could give."""
        return self._free_blocks(size).count

    def take(self, size: int, count: int) -> list[int]:
        """`count` blocks of this size; the caller asked `free`."""
        free = self._free_blocks(size)
        taken = free.pop(count)
        touches = self._touches(size, taken)
        if (self._holder[touches > 0] == 0).any():
            self._holder[touches > 0] = size
            self._forget_other(size)
        self._taken += touches
        self._marks[size][taken] = True
        return taken

    def give(self, size: int, blocks: list[int]) -> None:
        """Take blocks back."""
        free = self._free_blocks(size)
        assert self._marks[size][blocks].all(), f"a block of {size} bytes is free already"
        self._marks[size][blocks] = False
        touches = self._touches(size, blocks)
        self._taken -= touches
        left = (touches > 0) & (self._taken == 0)
        if left.any():
            self._holder[left] = 0
            self._forget_other(size)
        free.push(blocks)

    def order(self) -> None:
        """From now on free blocks leave in order again, the lowest first."""
        self._free.clear()

    def _touches(self, size: int, blocks: list[int]) -> NDArray[np.int64]:
        """How many of these blocks touch each page."""
        start = np.asarray(blocks, np.int64) * size
        change = np.zeros(len(self._taken) + 1, np.int64)
        np.add.at(change, start // self.page_bytes, 1)
        np.add.at(change, (start + size - 1) // self.page_bytes + 1, -1)
        return np.cumsum(change)[:-1]

    def _forget_other(self, size: int) -> None:
        """A page changed hands: what other sizes may have has changed."""
        own = self._free[size]
        self._free = {size: own}

    def _free_blocks(self, size: int) -> Stack:
        """Blocks in pages that the size holds already come first, then the lowest."""
        if size not in self._free:
            start = np.arange(self.nbytes // size) * size
            first, last = start // self.page_bytes, (start + size - 1) // self.page_bytes
            marks = self._marks.setdefault(size, np.zeros(len(start), np.bool_))
            foreign = np.concatenate([[0], np.cumsum((self._holder != 0) & (self._holder != size))])
            usable = (foreign[last + 1] == foreign[first]) & ~marks
            held = self._holder[first] + self._holder[last] > 0
            self._free[size] = Stack(np.flatnonzero(usable & held), np.flatnonzero(usable & ~held))
        return self._free[size]

    def usage(self) -> Usage:
        """Where the region's bytes are; they add up to all of it."""
        taken = sum(size * int(marks.sum()) for size, marks in self._marks.items())
        bytes_of = np.minimum(
            self.page_bytes, self.nbytes - self.page_bytes * np.arange(len(self._holder))
        )
        empty = int(bytes_of[self._holder == 0].sum())
        return Usage(taken, self.nbytes - taken - empty, empty)

    def check_integrity(self, taken: dict[int, list[int]]) -> None:
        """Exactly the blocks of `taken` (by size) are taken, and pages are held for them alone."""
        touching = np.zeros_like(self._taken)
        for size in self._marks.keys() | taken.keys():
            marks = self._marks.get(size, np.zeros(0, np.bool_))
            blocks = taken.get(size, [])
            assert np.flatnonzero(marks).tolist() == sorted(blocks), f"blocks of {size} bytes"
            touches = self._touches(size, blocks)
            assert (self._holder[touches > 0] == size).all()
            touching += touches
        assert np.array_equal(touching, self._taken)
        assert np.array_equal(touching == 0, self._holder == 0)
