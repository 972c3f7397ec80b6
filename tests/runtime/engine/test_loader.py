"""Loads: all bytes or none that count, in order, cancellable, never into a slot in use."""

import threading

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.engine.arena import Arena
from runtime.engine.blob import blob_from
from runtime.engine.device import open_device
from runtime.engine.loader import LoadCancelledError, Loader, LoadState

CHUNK = 4096
CHUNKS = 6


def filled(value):
    """A blob all of whose bytes are `value`."""
    return blob_from({}, {"w": torch.full((CHUNK * CHUNKS,), value, dtype=torch.uint8)})


BLOBS = [filled(value) for value in (1, 2, 3)]


@pytest.fixture
def loader(device):
    made = Loader(device, chunk_bytes=CHUNK)
    yield made
    made.close()


@pytest.fixture
def slot(device):
    slot = device.empty(CHUNK * CHUNKS)
    slot.fill_(0)
    return slot


def held(loader):
    """Keep the weights stream from going on until the event is set."""
    gate = threading.Event()
    loader.stream.run(lambda: gate.wait(10))
    return gate


def test_load_brings_the_bytes_and_says_how_long_it_took(loader, slot):
    load = loader.load(BLOBS[0], slot)
    load.wait()
    assert load.done()
    assert torch.equal(slot, BLOBS[0].host)
    assert 0 < load.seconds < 10


def test_load_is_not_done_before_its_last_byte(loader, slot):
    gate = held(loader)
    load = loader.load(BLOBS[0], slot)
    assert not load.done()
    gate.set()
    load.wait()
    assert load.done()


def test_load_lets_a_stream_begin_with_the_first_bytes(device, loader, slot):
    load = loader.load(BLOBS[0], slot)
    stream = device.stream("models")
    seen = []
    load.wait_on(stream, CHUNK + 1)
    stream.run(lambda: seen.append(int(slot[: 2 * CHUNK].sum())))
    load.wait_on(stream)
    stream.run(lambda: seen.append(int(slot.sum())))
    stream.synchronize()
    assert seen == [2 * CHUNK, CHUNKS * CHUNK]


def test_load_begins_when_the_slot_is_free(device, loader, slot):
    stream = device.stream("models")
    gate = threading.Event()
    stream.run(lambda: gate.wait(10))
    seen = []
    stream.run(lambda: seen.append(int(slot.sum())))
    load = loader.load(BLOBS[0], slot, after=[stream.record()])
    assert not load.done()
    gate.set()
    load.wait()
    assert seen == [0]


def test_load_cancelled_stops_within_the_chunks_on_the_stream(loader, slot):
    gate = held(loader)
    load = loader.load(BLOBS[0], slot)
    load.cancel()
    gate.set()
    assert load.settle() is LoadState.CANCELLED
    assert int(slot.sum()) <= 2 * CHUNK
    assert not load.done()
    with pytest.raises(LoadCancelledError):
        load.wait()
    with pytest.raises(LoadCancelledError):
        load.wait_on(loader.stream, 1)


def test_load_cancelled_after_its_end_is_done_all_the_same(loader, slot):
    load = loader.load(BLOBS[0], slot)
    load.wait()
    load.cancel()
    assert load.done()
    assert load.settle() is LoadState.LOADED


def test_load_into_a_slot_too_small_is_refused_before_a_byte_moves(loader, slot):
    with pytest.raises(AssertionError, match="bytes for a slot"):
        loader.load(BLOBS[0], slot[:-1])
    assert int(slot.sum()) == 0


def test_load_that_fails_tells_whoever_waits(device, slot):
    loader = Loader(device, chunk_bytes=CHUNK)
    loader.stream.run(lambda: 1 / 0)
    load = loader.load(BLOBS[0], slot)
    with pytest.raises(ZeroDivisionError):
        load.wait()
    with pytest.raises(ZeroDivisionError):
        load.wait_on(device.compute)
    assert load.state is LoadState.FAILED
    assert not load.done()
    loader.close()


STEPS = st.lists(
    st.tuples(st.integers(0, 1), st.integers(0, 2), st.sampled_from(["run", "cancel", "replace"])),
    min_size=1,
    max_size=6,
)


@settings(max_examples=150, deadline=None)
@given(STEPS, st.none() | st.integers(0, 1 << 30))
def test_load_under_any_delays_gives_a_step_only_its_own_weights(steps, seed):
    """Loads into two slots, some cancelled, some replaced; each step sees all of its model."""
    device = open_device("cpu", delays=seed)
    arena = Arena(device, 2 * CHUNK * CHUNKS, [CHUNK * CHUNKS] * 2)
    loader = Loader(device, chunk_bytes=CHUNK)
    models = device.stream("models")
    seen = []
    try:
        for number, model, action in steps:
            slot = arena.slot(number)
            load = loader.load(BLOBS[model], slot, after=[models.record()])
            if action != "run":
                load.cancel()
            if action == "replace":
                load = loader.load(BLOBS[model], slot)
            if action == "cancel":
                continue
            load.wait_on(models)
            models.run(lambda s=slot, m=model: seen.append((m, s.unique().tolist())))
        models.synchronize()
    finally:
        loader.close()
        device.close()
    assert len(seen) == sum(action != "cancel" for _, _, action in steps)
    assert all(found == [model + 1] for model, found in seen)
