"""KV on the emulated device: what moves, what is free when, and that no byte is lost or mixed."""

import time
from contextlib import suppress

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.engine.device import open_device
from runtime.engine.host_kv import HostKv, HostKvFullError
from runtime.engine.kv import KvArena, KvFullError, KvSpec, runs

SMALL = KvSpec(layers=2, kv_heads=1, head_dim=4, dtype=torch.float32, block=4)  # 256 bytes a block
LARGE = KvSpec(layers=3, kv_heads=2, head_dim=4, dtype=torch.float32, block=4)  # 768 bytes
HALF = KvSpec(layers=2, kv_heads=1, head_dim=4, dtype=torch.float16, block=4)  # 128 bytes


class Node:
    """An instance with its device and the node's host memory."""

    def __init__(self, *, region=4096, host=8192, delays=None, bandwidth_gb_s=None, page=512):
        self.device = open_device("cpu", delays=delays, bandwidth_gb_s=bandwidth_gb_s)
        self.host = HostKv.create(host, slab_bytes=2048, min_block_bytes=64)
        self.kv = self.arena(region, page)

    def arena(self, region=4096, page=512) -> KvArena:
        return KvArena(
            self.device, self.device.empty(region), self.host, page_bytes=page, poison=True
        )


@pytest.fixture
def node():
    made = []

    def make(**options) -> Node:
        made.append(Node(**options))
        return made[-1]

    yield make
    for one in made:
        one.kv.check_integrity()
        one.device.close()
        one.host.close()


def write(kv, request, spec, value):
    """Every element of the request's blocks becomes `value` plus the block's place."""
    for place, block in enumerate(kv.table(request)):
        kv.view(spec)[block] = value + place


def read(kv, request, spec) -> list[float]:
    """One number a block; NaN if its elements differ."""
    blocks = [kv.view(spec)[block] for block in kv.table(request)]
    return [
        float(b.flatten()[0]) if bool((b == b.flatten()[0]).all()) else float("nan") for b in blocks
    ]


def test_spec_counts_bytes_and_blocks():
    assert (SMALL.block_bytes, LARGE.block_bytes, HALF.block_bytes) == (256, 768, 128)
    assert [SMALL.blocks(tokens) for tokens in (0, 1, 4, 5)] == [0, 1, 1, 2]


def test_view_is_block_major_so_that_a_block_is_one_copy(node):
    view = node().kv.view(LARGE)
    assert view.shape == (5, 3, 2, 4, 2, 4)
    assert view.is_contiguous()
    assert view[:, 1].stride(0) * 4 == LARGE.block_bytes


def test_allocate_and_extend_give_blocks_for_all_tokens(node):
    kv = node().kv
    kv.allocate("a", 5, SMALL)
    first = list(kv.table("a"))
    kv.extend("a", 8)
    assert kv.table("a") == first
    kv.extend("a", 9)
    assert kv.table("a")[:2] == first
    assert len(kv.table("a")) == 3
    assert kv.unused_bytes() == 3 * 256 - 9 * SMALL.token_bytes


def test_allocate_without_room_raises_and_changes_nothing(node):
    kv = node().kv
    kv.allocate("a", 4 * 15, SMALL)
    with pytest.raises(KvFullError, match="2 blocks of 256 bytes wanted, 1 free"):
        kv.allocate("b", 5, SMALL)
    with pytest.raises(KvFullError):
        kv.extend("a", 4 * 17)
    assert kv.free_blocks(SMALL) == 1
    kv.allocate("b", 4, SMALL)


def test_models_of_any_shape_share_the_bytes(node):
    kv = node().kv
    for request, spec, value in (("a", SMALL, 1.0), ("b", LARGE, 10.0), ("c", HALF, 20.0)):
        kv.allocate(request, 8, spec)
        write(kv, request, spec, value)
    kv.check_integrity()
    assert read(kv, "a", SMALL) == [1, 2]
    assert read(kv, "b", LARGE) == [10, 11]
    assert read(kv, "c", HALF) == [20, 21]
    for request in "abc":
        kv.free(request)
    assert kv.free_blocks(LARGE) == 5


def test_blocks_that_hold_pages_of_their_size_move_together_for_another_size(node):
    kv = node(page=1024).kv
    count = kv.free_blocks(SMALL)
    for number in range(count):
        kv.allocate(number, SMALL.block, SMALL)
        write(kv, number, SMALL, float(number))
    left = range(0, count, 4)  # one block in each page
    for number in set(range(count)) - set(left):
        kv.free(number)
    assert kv.free_blocks(LARGE) == 0
    kv.allocate("large", 3 * LARGE.block, LARGE)
    write(kv, "large", LARGE, -1.0)
    kv.check_integrity()
    assert kv.counts.repacks == 1
    assert all(read(kv, number, SMALL)[0] == number for number in left)
    with pytest.raises(KvFullError):
        kv.allocate("more", 2 * LARGE.block, LARGE)


def test_a_request_that_grows_when_blocks_move_together_keeps_its_own(node):
    kv = node(page=1024).kv
    kv.allocate("first", LARGE.block, LARGE)
    kv.allocate("large", LARGE.block, LARGE)
    write(kv, "large", LARGE, -1.0)
    before, count = read(kv, "large", LARGE), kv.free_blocks(SMALL)
    for number in range(count):
        kv.allocate(number, SMALL.block, SMALL)
        write(kv, number, SMALL, float(number))
    left = range(0, count, 4)  # one block in each page
    for number in set(range(count)) - set(left):
        kv.free(number)
    kv.free("first")  # moved together, "large" lies elsewhere
    kv.extend("large", 3 * LARGE.block)
    kv.check_integrity()
    assert kv.counts.repacks == 1
    assert read(kv, "large", LARGE)[: len(before)] == before
    assert all(read(kv, number, SMALL)[0] == number for number in left)


def test_freed_blocks_are_poisoned(node):
    kv = node().kv
    kv.allocate("a", 8, SMALL)
    write(kv, "a", SMALL, 1.0)
    blocks = list(kv.table("a"))
    kv.free("a")
    assert bool(kv.view(SMALL)[blocks].isnan().all())


def test_a_moved_request_comes_back_as_it_was(node):
    one = node()
    one.kv.allocate("a", 16, SMALL)
    write(one.kv, "a", SMALL, 5.0)
    one.kv.move_out("a")
    assert not one.kv.is_on_device("a")
    one.kv.settle()
    assert one.kv.free_blocks(SMALL) == 16
    one.kv.move_in("a")
    one.kv.wait_for(["a"])
    assert one.kv.is_ready("a")
    assert read(one.kv, "a", SMALL) == [5, 6, 7, 8]
    one.kv.settle()
    assert one.host.taken() == 0
    assert one.kv.counts.moved_in_bytes == one.kv.counts.moved_out_bytes == 4 * 256


def test_a_request_resumes_on_another_instance_of_the_node(node):
    one = node()
    other = one.arena()
    one.kv.allocate("a", 8, LARGE)
    write(one.kv, "a", LARGE, 3.0)
    one.kv.move_out("a")
    other.adopt("a", one.kv.hand_over("a"), LARGE)
    other.move_in("a")
    other.wait_for(["a"])
    assert read(other, "a", LARGE) == [3, 4]
    other.settle()
    other.check_integrity()


def test_blocks_on_their_way_out_are_not_free_yet(node):
    kv = node(bandwidth_gb_s=2e-5).kv  # 20 KB/s: 4 KB take 0.2 s
    kv.allocate("a", 64, SMALL)
    write(kv, "a", SMALL, 1.0)
    event = kv.move_out("a")
    assert kv.usage().taken_bytes == 4096
    assert not event.done()
    kv.allocate("b", 64, SMALL)
    assert event.done(), "the compute stream had to wait for the space"
    write(kv, "b", SMALL, 50.0)
    kv.free("b")
    kv.move_in("a")
    kv.wait_for("a")
    assert read(kv, "a", SMALL) == [1.0 + place for place in range(16)]


def test_a_request_on_its_way_in_is_not_ready(node):
    kv = node(bandwidth_gb_s=1e-5).kv
    kv.allocate("a", 16, SMALL)
    write(kv, "a", SMALL, 1.0)
    kv.move_out("a").wait()
    kv.move_in("a")
    assert kv.is_on_device("a")
    assert not kv.is_ready("a")
    kv.wait_for(["a"])
    assert kv.is_ready("a")


def test_move_out_without_host_room_moves_nothing(node):
    kv = node(host=2048).kv
    kv.allocate("a", 36, SMALL)
    with pytest.raises(HostKvFullError):
        kv.move_out("a")
    assert kv.is_on_device("a")


def test_space_may_be_freed_while_it_moves(node):
    one = node(bandwidth_gb_s=1e-4)
    for request, moves in (("out", ["out"]), ("back", ["out", "in"])):
        one.kv.allocate(request, 16, SMALL)
        write(one.kv, request, SMALL, 1.0)
        for move in moves:
            (one.kv.move_out if move == "out" else one.kv.move_in)(request)
        one.kv.free(request)
        one.kv.check_integrity()
    one.kv.settle()
    assert one.kv.free_blocks(SMALL) == 16
    assert one.host.taken() == 0


def test_a_request_may_leave_again_before_it_has_come_back(node):
    kv = node(bandwidth_gb_s=1e-4).kv
    kv.allocate("a", 16, SMALL)
    write(kv, "a", SMALL, 1.0)
    for move in (kv.move_out, kv.move_in, kv.move_out, kv.move_in):
        move("a")
    kv.wait_for("a")
    assert read(kv, "a", SMALL) == [1, 2, 3, 4]


def test_a_copy_of_a_request_that_left_spares_the_next_owner(node):
    kv = node().kv
    kv.allocate("a", 64, SMALL)
    write(kv, "a", SMALL, 1.0)
    kv.move_out("a").wait()
    kv.device.stream("kv in").run(lambda: time.sleep(0.1))
    kv.move_in("a")
    kv.free("a")
    kv.allocate("b", 64, SMALL)
    write(kv, "b", SMALL, 50.0)
    kv.settle()
    kv.device.synchronize()
    assert read(kv, "b", SMALL) == [50.0 + place for place in range(16)]


def test_neighbours_are_one_copy():
    assert runs([3, 4, 5, 7, 8], [0, 10, 20, 30, 50], 10) == [(3, 0, 3), (7, 30, 1), (8, 50, 1)]


STEP = st.tuples(
    st.sampled_from(["allocate", "extend", "free", "out", "out", "in", "in", "step", "switch"]),
    st.integers(0, 3),
    st.integers(1, 30),
)


class Schedule:
    """Requests whose every block holds a number that says whose it is."""

    specs = (SMALL, LARGE, HALF)

    def __init__(self, node: Node) -> None:
        self.kv = node.kv
        self.blocks: dict[int, int] = {}  # request -> blocks that carry its number

    def spec(self, request: int) -> KvSpec:
        return self.specs[request % 3]

    def mark(self, request: int) -> None:
        """Write the blocks that are new, as a model step would."""
        self.kv.wait_for([request])
        table = self.kv.table(request)
        for place in range(self.blocks[request], len(table)):
            self.kv.view(self.spec(request))[table[place]] = self.number(request, place)
        self.blocks[request] = len(table)

    @staticmethod
    def number(request: int, place: int) -> float:
        return 64.0 * request + place

    def check(self, request: int) -> None:
        """Read all of a request's blocks, as a model step would."""
        self.kv.wait_for([request])
        expected = [self.number(request, place) for place in range(self.blocks[request])]
        assert read(self.kv, request, self.spec(request)) == expected

    def do(self, what: str, request: int, tokens: int) -> None:
        known = request in self.blocks
        here = known and self.kv.is_on_device(request)
        if what == "allocate" and not known:
            self.kv.allocate(request, tokens, self.spec(request))
            self.blocks[request] = 0
            self.mark(request)
        elif what == "extend" and here:
            self.kv.extend(request, self.kv.tokens(request) + tokens)
            self.mark(request)
        elif what == "free" and known:
            self.kv.free(request)
            del self.blocks[request]
        elif what == "out" and here:
            self.kv.move_out(request)
        elif what == "in" and known and not here:
            self.kv.move_in(request)
        elif what == "step" and here:
            self.check(request)
        elif what == "switch":
            for other in self.blocks:
                self.do("out", other, 0)

    def run(self, steps) -> None:
        for step in steps:
            with suppress(KvFullError, HostKvFullError):
                self.do(*step)
            self.kv.check_integrity()
        self.finish()

    def finish(self) -> None:
        """Every request is read a last time, wherever it is, and leaves; nothing is left over."""
        for request in sorted(self.blocks, key=self.kv.is_on_device, reverse=True):
            if not self.kv.is_on_device(request):
                self.kv.move_in(request)
            self.check(request)
            self.do("free", request, 0)
        self.kv.settle()
        self.kv.check_integrity()
        assert self.kv.usage().empty_bytes == sum(self.kv.usage())
        assert self.kv.host.taken() == 0


def race(steps, seed: int) -> None:
    node = Node(delays=seed, region=6144, host=16384)
    try:
        Schedule(node).run(steps)
    finally:
        node.device.close()
        node.host.close()


@given(steps=st.lists(STEP, min_size=15, max_size=40), seed=st.integers(0, 1000))
@settings(max_examples=60, deadline=None)
def test_no_schedule_of_moves_reads_a_byte_of_another_or_of_nobody(steps, seed):
    race(steps, seed)


@pytest.mark.long
@given(steps=st.lists(STEP, min_size=10, max_size=60), seed=st.integers(0, 10**6))
@settings(max_examples=3000, deadline=None)
def test_no_schedule_of_thousands_reads_a_byte_of_another_or_of_nobody(steps, seed):
    race(steps, seed)
