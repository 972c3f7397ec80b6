from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.engine.kv_pages import Pages


def spans(size: int, blocks: list[int]) -> list[range]:
    return [range(block * size, (block + 1) * size) for block in blocks]


def test_one_size_alone_may_have_every_byte():
    pages = Pages(1000, 130)
    taken = pages.take(100, pages.free(100))
    assert sorted(taken) == list(range(10))
    assert pages.usage().taken_bytes == 1000


def test_a_page_serves_one_size_until_its_last_block_is_back():
    pages = Pages(240, 120)
    (small,) = pages.take(40, 1)
    assert pages.free(60) == 2  # the other page's
    pages.give(40, [small])
    assert pages.free(60) == 4


def test_a_block_larger_than_a_page_takes_several():
    pages = Pages(100, 10)
    assert pages.free(45) == 2
    (block,) = pages.take(45, 1)
    assert pages.free(10) == 5
    pages.check_integrity({45: [block]})


def test_blocks_of_a_fresh_region_are_neighbours():
    assert Pages(4096, 256).take(64, 9) == list(range(9))


@given(
    st.lists(st.tuples(st.sampled_from([24, 40, 64]), st.integers(0, 6), st.integers(0, 30))),
    st.integers(20, 200),
)
@settings(max_examples=80, deadline=None)
def test_no_two_blocks_of_any_sizes_ever_share_a_byte(steps, page_bytes):
    pages = Pages(700, page_bytes)
    held: dict[int, list[int]] = {}
    for size, count, gives in steps:
        mine = held.setdefault(size, [])
        back = [mine.pop() for _ in range(min(gives, len(mine)))]
        pages.give(size, back)
        mine += pages.take(size, min(count, pages.free(size)))
        pages.check_integrity(held)
        touched = [byte for s, blocks in held.items() for r in spans(s, blocks) for byte in r]
        assert len(touched) == len(set(touched))
        assert not touched or max(touched) < 700
        assert sum(pages.usage()) == 700
        assert pages.usage().taken_bytes == len(touched)
    for size, mine in held.items():
        pages.give(size, mine)
    assert pages.usage().empty_bytes == 700
