"""The host cache: within its budget, least recently used first, never what is in use."""

import threading

import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from runtime.engine.blob import blob_from
from runtime.engine.device import open_device
from runtime.engine.host_cache import HostCache, HostCacheFullError
from runtime.errors import UserError

PAGE = 4096
NAMES = ["a", "b", "c", "d"]


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    """Models a, b, c, d of one to four pages, each filled with its number."""
    path = tmp_path_factory.mktemp("models")
    for i, name in enumerate(NAMES):
        blob_from({}, {"w": torch.full((PAGE * (i + 1),), i, dtype=torch.uint8)}).save(path / name)
    return path


@pytest.fixture
def cache(folder, device):
    made = HostCache(folder, 5 * PAGE, device)
    yield made
    made.check_integrity()
    made.close()


def use(cache, name):
    with cache.pinned(name) as blob:
        return int(blob.host[0])


def test_host_cache_reads_a_blob_once(cache):
    assert [use(cache, name) for name in "abab"] == [0, 1, 0, 1]
    assert (cache.hits, cache.misses) == (2, 2)
    assert cache.used_bytes == 3 * PAGE
    assert cache.models() == NAMES


def test_host_cache_drops_the_least_recently_used(cache):
    for name in "abac":
        use(cache, name)
    misses = cache.misses
    use(cache, "a")
    assert cache.misses == misses
    use(cache, "b")
    assert cache.misses == misses + 1


def test_host_cache_keeps_what_is_in_use(cache):
    blob = cache.take("b")
    cache.take("c")
    with pytest.raises(HostCacheFullError):
        cache.take("a")
    cache.release("c")
    assert use(cache, "a") == 0
    assert blob.host.eq(1).all()
    cache.release("b")


def test_host_cache_refuses_a_model_beyond_its_budget_and_keeps_the_others(folder, device):
    cache = HostCache(folder, 2 * PAGE, device)
    use(cache, "a")
    with pytest.raises(UserError, match=r"engine\.host_bytes is 8192: expected at least 12288"):
        cache.take("c")
    use(cache, "a")
    assert cache.misses == 1


@pytest.mark.parametrize("name", ["A", "", "..", "a/../b", "/etc"])
def test_host_cache_names_the_nearest_model(cache, name):
    with pytest.raises(UserError, match="known: a, b, c, d"):
        cache.take(name)


def test_host_cache_prefetch_is_a_read_that_a_take_finds(cache):
    cache.prefetch("b")
    assert use(cache, "b") == 1
    assert (cache.hits, cache.misses) == (1, 1)


def test_host_cache_forgets_a_damaged_blob_and_reads_it_anew(device, tmp_path):
    blob_from({}, {"w": torch.ones(9)}).save(tmp_path / "m")
    cache = HostCache(tmp_path, 10 * PAGE, device)
    weights = tmp_path / "m" / "weights.bin"
    whole = weights.read_bytes()
    weights.write_bytes(b"\1" + whole[1:])
    with pytest.raises(UserError, match="checksum"):
        cache.take("m")
    assert cache.used_bytes == 0
    cache.check_integrity()
    weights.write_bytes(whole)
    with cache.pinned("m") as blob:
        assert torch.equal(blob.tensors()["w"], torch.ones(9))


def test_host_cache_registers_what_it_holds_with_the_device(folder):
    class Pinning:
        """Counts registrations, as CUDA would hold them."""

        def __init__(self):
            self.pinned = set()

        def register(self, host):
            self.pinned.add(host.data_ptr())

        def unregister(self, host):
            self.pinned.remove(host.data_ptr())

    device = Pinning()
    cache = HostCache(folder, 5 * PAGE, device)
    for name in "abcab":
        use(cache, name)
        assert len(device.pinned) == len(cache._entries)
    cache.close()
    assert device.pinned == set()


def test_host_cache_reads_once_for_many_threads(cache):
    found = []
    threads = [threading.Thread(target=lambda: found.append(use(cache, "d"))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [3] * 8
    assert (cache.hits, cache.misses) == (7, 1)


def test_host_cache_holds_its_laws_under_any_use(folder):
    class Uses(RuleBasedStateMachine):
        def __init__(self):
            super().__init__()
            self.cache = HostCache(folder, 5 * PAGE, open_device("cpu"))
            self.held = []

        @rule(name=st.sampled_from(NAMES))
        def take(self, name):
            pinned = {n for n, _ in self.held} | {name}
            fits = sum(PAGE * (NAMES.index(n) + 1) for n in pinned) <= 5 * PAGE
            try:
                self.held.append((name, self.cache.take(name)))
            except HostCacheFullError:
                fits = not fits
            assert fits

        @precondition(lambda self: self.held)
        @rule(data=st.data())
        def release(self, data):
            place = data.draw(st.integers(0, len(self.held) - 1))
            self.cache.release(self.held.pop(place)[0])

        @invariant()
        def sound(self):
            self.cache.check_integrity()
            assert all(blob.host.eq(NAMES.index(name)).all() for name, blob in self.held)

        def teardown(self):
            for name, _ in self.held:
                self.cache.release(name)
            self.cache.close()

    settings_ = settings(max_examples=30, stateful_step_count=15, deadline=None)
    Uses.TestCase.settings = settings_
    Uses.TestCase().runTest()
