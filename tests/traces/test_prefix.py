"""`PrefixBlocks`: a list of lists, cut and joined like one."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from traces.prefix import PrefixBlocks, joined

LISTS = st.lists(st.lists(st.integers(0, 9), max_size=3), max_size=5)


def blocks(lists: list[list[int]], block_tokens: int | None = 16) -> PrefixBlocks:
    start = np.cumsum([0, *map(len, lists)]).astype(np.int64)
    ids = np.array([i for part in lists for i in part], np.int64)
    return PrefixBlocks(ids=ids, start=start, block_tokens=block_tokens)


@given(lists=LISTS, data=st.data())
def test_rows_are_those_of_a_list_of_lists(lists: list[list[int]], data: st.DataObject) -> None:
    whole = blocks(lists)
    index = data.draw(
        st.lists(st.integers(0, len(lists) - 1), max_size=6) if lists else st.just([])
    )
    part = whole[np.array(index, np.intp)]
    assert part.to_arrow().to_pylist() == [lists[i] for i in index]
    assert (len(part), part.block_tokens) == (len(index), 16)
    low, high = sorted(data.draw(st.tuples(st.integers(0, 6), st.integers(0, 6))))
    assert whole[low:high].to_arrow().to_pylist() == lists[low:high]


@given(parts=st.lists(LISTS, min_size=1, max_size=3))
def test_joined_is_all_rows_in_turn(parts: list[list[list[int]]]) -> None:
    whole = joined([blocks(part) for part in parts])
    assert whole.to_arrow().to_pylist() == [row for part in parts for row in part]
    assert whole.block_tokens == 16


def test_joined_of_different_block_sizes_has_none() -> None:
    assert joined([blocks([[1]], 16), blocks([[1]], 512)]).block_tokens is None
