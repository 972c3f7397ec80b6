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


class Pages:
    """Free blocks of every size. Bookkeeping only: it knows neither bytes nor streams."""

    def __init__(self, nbytes: int, page_bytes: int) -> None:
        self.nbytes = nbytes
        self.page_bytes = page_bytes
        pages = -(-nbytes // page_bytes)
        self._holder = np.zeros(pages, np.int64)  # block size; 0: nobody's
        self._taken = np.zeros(pages, np.int64)  # taken blocks that touch the page
        self._free: dict[int, list[int]] = {}  # by size, next one last; dropped when out of date
        self._marks: dict[int, NDArray[np.bool_]] = {}  # by size: is the block taken

    def free(self, size: int) -> int:
        """Blocks of this size that `take` could give."""
        return len(self._free_blocks(size))

    def take(self, size: int, count: int) -> list[int]:
        """`count` blocks of this size; the caller asked `free`."""
        free = self._free_blocks(size)
        taken = [free.pop() for _ in range(count)]
        for block in taken:
            touched = self._touched(size, block)
            if (self._holder[touched] == 0).any():
                self._holder[touched] = size
                self._forget_other(size)
            self._taken[touched] += 1
            self._marks[size][block] = True
        return taken

    def give(self, size: int, blocks: list[int]) -> None:
        """Take blocks back."""
        free = self._free_blocks(size)
        for block in blocks:
            assert self._marks[size][block], f"block {block} of {size} bytes is free already"
            touched = self._touched(size, block)
            self._marks[size][block] = False
            self._taken[touched] -= 1
            left = self._taken[touched] == 0
            if left.any():
                self._holder[touched][left] = 0
                self._forget_other(size)
        free.extend(sorted(blocks, reverse=True))

    def _touched(self, size: int, block: int) -> slice:
        return slice(
            block * size // self.page_bytes, ((block + 1) * size - 1) // self.page_bytes + 1
        )

    def _forget_other(self, size: int) -> None:
        """A page changed hands: what other sizes may have has changed."""
        own = self._free[size]
        self._free = {size: own}

    def _free_blocks(self, size: int) -> list[int]:
        if size not in self._free:
            count = self.nbytes // size
            marks = self._marks.setdefault(size, np.zeros(count, np.bool_))
            number = np.arange(count)
            first, last = (
                number * size // self.page_bytes,
                ((number + 1) * size - 1) // self.page_bytes,
            )
            foreign = np.concatenate([[0], np.cumsum((self._holder != 0) & (self._holder != size))])
            usable = np.flatnonzero((foreign[last + 1] == foreign[first]) & ~marks)
            opens = self._holder[first[usable]] + self._holder[last[usable]] == 0
            self._free[size] = usable[np.lexsort((usable, opens))][::-1].tolist()
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
            for block in blocks:
                assert (self._holder[self._touched(size, block)] == size).all()
                touching[self._touched(size, block)] += 1
        assert np.array_equal(touching, self._taken)
        assert np.array_equal(touching == 0, self._holder == 0)
