"""`PrefixBlocks`: what requests share at the start of their prompts, as lists of block ids.

N requests, B blocks of all of them.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PrefixBlocks:
    """The prompt's blocks of each request, first to last: request i has `ids[start[i]:start[i+1]]`.

    Two requests share a prefix as far as their ids agree. `block_tokens` is the size of a block,
    None where the source does not state it; the last block of a prompt may be partly filled.
    """

    ids: Ints  # [B]
    start: Ints  # [N + 1], rising from 0 to B
    block_tokens: int | None = None

    def __len__(self) -> int:
        return len(self.start) - 1

    def __getitem__(self, index: npt.NDArray[np.intp] | slice) -> "PrefixBlocks":
        """The blocks of the requests at `index`."""
        rows = np.arange(len(self))[index]
        counts = self.counts[rows]
        start = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
        places = np.arange(start[-1]) + np.repeat(self.start[rows] - start[:-1], counts)
        return PrefixBlocks(ids=self.ids[places], start=start, block_tokens=self.block_tokens)

    @property
    def counts(self) -> Ints:
        """Blocks of each request [N]."""
        return np.diff(self.start)

    def to_arrow(self) -> pa.LargeListArray:
        return pa.LargeListArray.from_arrays(pa.array(self.start), pa.array(self.ids))


def joined(parts: list[PrefixBlocks]) -> PrefixBlocks:
    """The requests of all parts in turn; equal ids are equal blocks across parts."""
    ends = np.cumsum([0] + [len(part.ids) for part in parts])
    starts = [part.start[1:] + end for part, end in zip(parts, ends, strict=False)]
    sizes = {part.block_tokens for part in parts}
    return PrefixBlocks(
        ids=np.concatenate([part.ids for part in parts]),
        start=np.concatenate([[0], *starts]).astype(np.int64),
        block_tokens=sizes.pop() if len(sizes) == 1 else None,
    )


def no_blocks(requests: int, block_tokens: int | None) -> PrefixBlocks:
    """Requests that share nothing."""
    start = np.zeros(requests + 1, np.int64)
    return PrefixBlocks(ids=start[:0], start=start, block_tokens=block_tokens)
