"""The device on CPU: streams are threads, so that overlap, cancelling and races are real.

Copies to and from device memory may be held to a bandwidth that the streams of a direction share,
and every step may be preceded by a pause drawn from a seed.
"""

from __future__ import annotations

import collections
import mmap
import queue
import random
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

from runtime.engine.host_memory import available_bytes

ALIGNMENT = 256  # bytes; what CUDA's allocator gives
PAUSES_S = (0.0, 0.0, 0.0, 5e-5, 2e-4, 1e-3)  # before a step of a stream with delays
PIECES = 3  # of a copy with delays, so that it can be seen half done


class CpuEvent:
    """A point of a CPU stream."""

    def __init__(self, stream: ThreadStream | None = None) -> None:
        self._stream = stream
        self._reached = threading.Event()
        self._time_s = 0.0
        self._error: BaseException | None = None

    def reach(self, error: BaseException | None) -> None:
        self._error = error
        self._time_s = time.perf_counter()
        self._reached.set()

    def done(self) -> bool:
        return self._reached.is_set()

    def wait(self) -> None:
        if self._stream is not None:
            self._stream.help(self)
        self._reached.wait()
        if self._error is not None:
            raise self._error

    @property
    def time_s(self) -> float:
        self.wait()
        return self._time_s


class Link:
    """One direction of the bus: copies of all streams share its bandwidth, one after another."""

    def __init__(self, bandwidth_gb_s: float | None) -> None:
        self._bytes_per_s = None if bandwidth_gb_s is None else bandwidth_gb_s * 1e9
        self._free_s = 0.0
        self._lock = threading.Lock()

    def finish_s(self, nbytes: int) -> float:
        """Reserve the link for a copy that is ready now; when it would be through."""
        now_s = time.perf_counter()
        if self._bytes_per_s is None:
            return now_s
        with self._lock:
            self._free_s = max(self._free_s, now_s) + nbytes / self._bytes_per_s
            return self._free_s


class InlineStream:
    """The compute stream: the caller's own thread."""

    def __init__(self, name: str) -> None:
        self.name = name

    def copy(self, dst: torch.Tensor, src: torch.Tensor) -> None:
        check_copy(dst, src)
        dst.copy_(src)

    def run(self, work: Callable[[], object]) -> None:
        work()

    def record(self) -> CpuEvent:
        event = CpuEvent()
        event.reach(None)
        return event

    def wait(self, event: Any) -> None:
        event.wait()

    def synchronize(self) -> None:
        pass


class ThreadStream:
    """A stream with a thread. After an error it only reaches its events, which raise it.

    Whoever waits for one of its events does its work meanwhile, as long as no other thread is at
    it: on a busy machine waking the stream's thread may take longer than a copy. With pauses only
    the thread works.
    """

    def __init__(self, name: str, device: CpuDevice, pauses: random.Random | None) -> None:
        self.name = name
        self._device = device
        self._pauses = pauses
        self._error: BaseException | None = None
        self._steps: collections.deque[Callable[[], object] | CpuEvent] = collections.deque()
        self._turn = threading.Lock()  # held by whoever takes a step off and does it
        self._calls: queue.SimpleQueue[bool] = queue.SimpleQueue()  # one a step; False: close
        self._thread = threading.Thread(target=self._work, name=f"stream {name}", daemon=True)
        self._thread.start()

    def copy(self, dst: torch.Tensor, src: torch.Tensor) -> None:
        check_copy(dst, src)
        self._put(lambda: self._copy(dst, src))

    def run(self, work: Callable[[], object]) -> None:
        self._put(work)

    def record(self) -> CpuEvent:
        event = CpuEvent(self)
        self._put(event)
        return event

    def wait(self, event: Any) -> None:
        self._put(event.wait)

    def synchronize(self) -> None:
        self.record().wait()

    def close(self) -> None:
        self._calls.put(False)
        self._thread.join()

    def help(self, event: CpuEvent) -> None:
        """Work in the caller's thread until `event` is reached or another thread is at work."""
        while self._pauses is None and not event.done() and self._turn.acquire(blocking=False):
            try:
                self._step()
            finally:
                self._turn.release()

    def _put(self, step: Callable[[], object] | CpuEvent) -> None:
        self._steps.append(step)
        self._calls.put(True)

    def _work(self) -> None:
        while self._calls.get():
            with self._turn:
                self._step()

    def _step(self) -> None:
        if not self._steps:
            return  # someone who waited has done it
        step = self._steps.popleft()
        if isinstance(step, CpuEvent):
            step.reach(self._error)
        elif self._error is None:
            self._pause()
            try:
                step()
            except BaseException as error:  # handed to whoever waits for this stream
                self._error = error

    def _copy(self, dst: torch.Tensor, src: torch.Tensor) -> None:
        finish_s = self._device.finish_s(dst, src)
        if self._pauses is None or dst.numel() < PIECES:
            dst.copy_(src)
        else:
            for to, from_ in zip(dst.chunk(PIECES), src.chunk(PIECES), strict=True):
                to.copy_(from_)
                self._pause()
        time.sleep(max(0.0, finish_s - time.perf_counter()))

    def _pause(self) -> None:
        if self._pauses is not None and (pause_s := self._pauses.choice(PAUSES_S)):
            time.sleep(pause_s)


class CpuDevice:
    """Device memory is ordinary memory that the device holds until it is closed."""

    def __init__(self, *, bandwidth_gb_s: float | None = None, delays: int | None = None) -> None:
        self.torch = torch.device("cpu")
        self.compute = InlineStream("compute")
        self._delays = delays
        self._in, self._out = Link(bandwidth_gb_s), Link(bandwidth_gb_s)
        self._held: dict[int, torch.Tensor] = {}  # by first address
        self._streams: dict[str, ThreadStream] = {}

    def computing(self) -> AbstractContextManager[object]:
        return nullcontext()

    def empty(self, nbytes: int) -> torch.Tensor:
        if nbytes > (left := available_bytes()):  # the system would promise it, and then kill
            raise MemoryError(f"{nbytes} bytes, {left} available")
        memory = torch.empty(nbytes + ALIGNMENT, dtype=torch.uint8)
        start = -memory.data_ptr() % ALIGNMENT
        memory = memory[start : start + nbytes]
        self._held[memory.data_ptr()] = memory
        return memory

    def pinned(self, nbytes: int) -> torch.Tensor:
        return paged(nbytes)

    def register(self, host: torch.Tensor) -> None:
        pass

    def unregister(self, host: torch.Tensor) -> None:
        pass

    def stream(self, name: str) -> ThreadStream:
        if name not in self._streams:
            pauses = None if self._delays is None else random.Random(f"{self._delays} {name}")
            self._streams[name] = ThreadStream(name, self, pauses)
        return self._streams[name]

    def memory_used(self) -> int:
        return sum(memory.numel() for memory in self._held.values())

    def synchronize(self) -> None:
        for stream in tuple(self._streams.values()):
            stream.synchronize()

    def close(self) -> None:
        for stream in self._streams.values():
            stream.close()
        self._streams.clear()
        self._held.clear()

    def finish_s(self, dst: torch.Tensor, src: torch.Tensor) -> float:
        """When a copy that is ready now would be through its direction of the bus."""
        to_device, from_device = self._holds(dst), self._holds(src)
        if to_device == from_device:
            return time.perf_counter()
        return (self._in if to_device else self._out).finish_s(dst.numel())

    def _holds(self, memory: torch.Tensor) -> bool:
        address = memory.data_ptr()
        return any(0 <= address - first < held.numel() for first, held in self._held.items())


def check_copy(dst: torch.Tensor, src: torch.Tensor) -> None:
    """A copy moves bytes: equal sizes, no conversion."""
    assert dst.dtype == src.dtype == torch.uint8, f"copy of {src.dtype} to {dst.dtype}"
    assert dst.shape == src.shape, f"copy of {tuple(src.shape)} to {tuple(dst.shape)}"


def paged(nbytes: int) -> torch.Tensor:
    """uint8 [nbytes] of anonymous host memory, page aligned, every page there from the start."""
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | getattr(mmap, "MAP_POPULATE", 0)
    return torch.frombuffer(mmap.mmap(-1, max(nbytes, 1), flags=flags), dtype=torch.uint8)[:nbytes]
