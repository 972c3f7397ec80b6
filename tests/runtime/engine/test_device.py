"""The emulated device: order, events, bandwidth, errors."""

import threading
import time

import pytest
import torch

from runtime.engine.device import open_device
from runtime.errors import UserError


def gate(stream):
    """Hold a stream until the returned event is set."""
    held = threading.Event()
    stream.run(lambda: held.wait(10))
    return held


def test_device_runs_a_stream_in_order_beside_others(device):
    seen = []
    first, second = device.stream("first"), device.stream("second")
    held = gate(first)
    for i in range(5):
        first.run(lambda i=i: seen.append(i))
    second.run(lambda: seen.append("other"))
    second.synchronize()
    assert seen == ["other"]
    held.set()
    first.synchronize()
    assert seen == ["other", 0, 1, 2, 3, 4]


def test_device_stream_waits_for_an_event_of_another_without_the_host(device):
    first, second = device.stream("first"), device.stream("second")
    source, there, back = device.pinned(64), device.empty(64), device.pinned(64)
    source.fill_(7)
    there.fill_(0)
    held = gate(first)
    first.copy(there, source)
    copied = first.record()
    second.wait(copied)
    second.copy(back, there)
    assert not copied.done()
    held.set()
    second.synchronize()
    assert copied.done()
    assert back.eq(7).all()


def test_device_compute_waits_for_an_event_before_it_goes_on(device):
    weights = device.stream("weights")
    there = device.empty(8)
    there.fill_(0)
    held = gate(weights)
    weights.run(lambda: there.fill_(1))
    threading.Timer(0.01, held.set).start()
    device.compute.wait(weights.record())
    seen = []
    device.compute.run(lambda: seen.append(int(there.sum())))
    assert seen == [8]
    assert device.compute.record().done()


def test_device_event_times_are_in_order_and_between_host_times(device):
    stream = device.stream("s")
    before = time.perf_counter()
    first = stream.record()
    stream.run(lambda: time.sleep(0.002))
    second = stream.record()
    assert before <= first.time_s <= second.time_s - 0.002 <= time.perf_counter()


def test_device_error_on_a_stream_reaches_whoever_waits_and_stops_its_work(device):
    stream, other = device.stream("s"), device.stream("t")
    done = []
    before = stream.record()
    stream.run(lambda: 1 / 0)
    stream.run(lambda: done.append(1))
    event = stream.record()
    other.wait(event)
    before.wait()
    with pytest.raises(ZeroDivisionError):
        event.wait()
    with pytest.raises(ZeroDivisionError):
        other.synchronize()
    assert done == []


def test_device_bandwidth_is_shared_in_a_direction_and_free_within_the_device():
    device = open_device("cpu", bandwidth_gb_s=0.1)
    there, host = device.empty(2_000_000), device.pinned(2_000_000)
    start = device.stream("a").record().time_s
    device.stream("a").copy(there[:1_000_000], host[:1_000_000])
    device.stream("b").copy(there[1_000_000:], host[1_000_000:])
    device.stream("out").copy(host[:500_000], there[:500_000])
    ends = {name: device.stream(name).record().time_s - start for name in ("a", "b", "out")}
    assert max(ends["a"], ends["b"]) >= 0.02
    assert min(ends["a"], ends["b"]) >= 0.01
    assert ends["out"] >= 0.005
    again = device.stream("a").record().time_s
    device.stream("a").copy(there[:1_000_000], there[1_000_000:])
    device.close()
    assert again > start


def test_device_delays_show_a_copy_half_done():
    device = open_device("cpu", delays=1)
    stream, there, host = device.stream("s"), device.empty(300), device.pinned(300)
    seen = set()
    for i in range(200):
        host.fill_(i)
        stream.copy(there, host)
        copied = stream.record()
        while not copied.done():
            seen.add(len(there.unique()))
    device.close()
    assert seen >= {1, 2}


def test_device_counts_its_memory_and_aligns_it(device):
    arrays = [device.empty(n) for n in (1, 1000, 4096)]
    assert device.memory_used() == 5097
    assert all(array.data_ptr() % 256 == 0 and array.dtype == torch.uint8 for array in arrays)
    device.close()
    assert device.memory_used() == 0


def test_device_copy_of_unequal_bytes_is_refused_at_once(device):
    with pytest.raises(AssertionError, match="copy"):
        device.stream("s").copy(device.empty(8), device.pinned(9))


@pytest.mark.parametrize("name", ["gpu", "cpu:1", "cuda:x", "cuda:999", "", "cud"])
def test_device_name_that_is_none_is_named_in_a_line(name):
    with pytest.raises(UserError, match=r"engine\.device is ") as error:
        open_device(name)
    assert "\n" not in str(error.value)


def test_device_emulation_is_refused_on_cuda():
    with pytest.raises(UserError, match="emulated on cpu only"):
        open_device("cuda", bandwidth_gb_s=1.0)


def test_device_stream_keeps_its_order_whoever_does_its_work(device):
    stream = device.stream("s")
    seen = []
    events = []
    for i in range(300):
        stream.run(lambda i=i: seen.append(i))
        events.append(stream.record())
    waiting = [threading.Thread(target=event.wait) for event in events[::50]]
    for thread in waiting:
        thread.start()
    for event in events[::-1]:
        event.wait()
    for thread in waiting:
        thread.join()
    assert seen == list(range(300))
