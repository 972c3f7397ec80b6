"""The device on an NVIDIA GPU: torch's streams and events, host memory pinned in place."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch

from runtime.engine.device_cpu import check_copy, paged

PORTABLE = 1  # cudaHostRegisterPortable: pinned for every context of the process


class CudaEvent:
    """A point of a CUDA stream. Times are exact to 0.5 us at the start, to 0.5 ms after an hour
    (CUDA gives the time since the device was opened in float32 ms)."""

    def __init__(self, raw: torch.cuda.Event, device: CudaDevice) -> None:
        self.raw = raw
        self._device = device

    def done(self) -> bool:
        return bool(self.raw.query())  # type: ignore[no-untyped-call]

    def wait(self) -> None:
        self.raw.synchronize()

    @property
    def time_s(self) -> float:
        self.wait()
        return self._device.opened_s + self._device.opened.elapsed_time(self.raw) * 1e-3


class CudaStream:
    """Work in order on the GPU."""

    def __init__(self, name: str, device: CudaDevice) -> None:
        self.name = name
        self.raw = torch.cuda.Stream(device.torch)  # type: ignore[no-untyped-call]
        self._device = device

    def copy(self, dst: torch.Tensor, src: torch.Tensor) -> None:
        check_copy(dst, src)
        with torch.cuda.stream(self.raw):
            dst.copy_(src, non_blocking=True)

    def run(self, work: Callable[[], object]) -> None:
        with torch.cuda.stream(self.raw):
            work()

    def record(self) -> CudaEvent:
        return CudaEvent(mark(self.raw), self._device)

    def wait(self, event: Any) -> None:
        self.raw.wait_event(event.raw)

    def synchronize(self) -> None:
        self.raw.synchronize()


class CudaDevice:
    """One GPU of this process."""

    def __init__(self, index: int) -> None:
        self.torch = torch.device("cuda", index)
        self._streams: dict[str, CudaStream] = {}
        self._registered: dict[int, torch.Tensor] = {}  # by first address
        with torch.cuda.device(self.torch):
            self.compute = self.stream("compute")
            self.opened = mark(self.compute.raw)
            self.opened.synchronize()
        self.opened_s = time.perf_counter()

    def computing(self) -> AbstractContextManager[object]:
        return torch.cuda.stream(self.compute.raw)

    def empty(self, nbytes: int) -> torch.Tensor:
        return torch.empty(nbytes, dtype=torch.uint8, device=self.torch)

    def pinned(self, nbytes: int) -> torch.Tensor:
        memory = paged(nbytes)  # torch's own pinned memory is rounded up to a power of two
        self.register(memory)
        return memory

    def register(self, host: torch.Tensor) -> None:
        if host.numel() and host.data_ptr() not in self._registered:
            with torch.cuda.device(self.torch):
                check(cudart().cudaHostRegister(host.data_ptr(), host.numel(), PORTABLE))
            self._registered[host.data_ptr()] = host

    def unregister(self, host: torch.Tensor) -> None:
        if self._registered.pop(host.data_ptr(), None) is not None:
            check(cudart().cudaHostUnregister(host.data_ptr()))

    def stream(self, name: str) -> CudaStream:
        if name not in self._streams:
            self._streams[name] = CudaStream(name, self)
        return self._streams[name]

    def memory_used(self) -> int:
        return int(torch.cuda.memory_reserved(self.torch))

    def synchronize(self) -> None:
        torch.cuda.synchronize(self.torch)

    def close(self) -> None:
        self.synchronize()
        for host in tuple(self._registered.values()):
            self.unregister(host)
        self._streams.clear()


def mark(stream: torch.cuda.Stream) -> torch.cuda.Event:
    event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
    event.record(stream)
    return event


def cudart() -> Any:
    return torch.cuda.cudart()  # type: ignore[no-untyped-call]


def check(status: Any) -> None:
    """Raise for a CUDA runtime call that did not answer cudaSuccess."""
    if int(status) != 0:
        raise RuntimeError(f"CUDA: {cudart().cudaGetErrorString(status)}")
