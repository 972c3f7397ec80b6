"""What the engine asks of a device: byte arrays, streams and events. CPU and CUDA answer alike.

Work is put on a stream and runs in the order it was put there; streams run side by side. An event
marks a point of one stream; another stream, or the host, can wait for it.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Protocol

import torch
from torch import Tensor

from runtime.errors import UserError, nearest


class Event(Protocol):
    """A point of a stream."""

    def done(self) -> bool: ...

    def wait(self) -> None:
        """Block the host until the point is reached; raises what failed on its stream before it."""

    @property
    def time_s(self) -> float:
        """When the point was reached, on the clock of `time.perf_counter`; waits for it."""


class Stream(Protocol):
    """Work in order."""

    @property
    def name(self) -> str: ...

    def copy(self, dst: Tensor, src: Tensor) -> None:
        """Copy `src` to `dst`, uint8 views of equal size; neither may be touched before an event
        recorded behind the copy is reached. Across the bus, the host side must be pinned."""

    def run(self, work: Callable[[], object]) -> None:
        """Do `work` in its turn; on CUDA it launches now and its kernels run in their turn."""

    def record(self) -> Event:
        """The point behind all work put here so far."""

    def wait(self, event: Event) -> None:
        """Work put here from now on starts after `event`; the host does not wait."""

    def synchronize(self) -> None:
        """Block the host until all work put here is done; raises what failed."""


class Device(Protocol):
    """One device. Its memory is taken at the start: `empty` is no allocator for every turn."""

    @property
    def torch(self) -> torch.device: ...

    @property
    def compute(self) -> Stream:
        """The stream models run on. On CPU it is the caller's own thread: `run` returns when the
        work is done, and `wait` blocks, so everything keeps its order."""

    def computing(self) -> AbstractContextManager[object]:
        """Inside, the caller's torch operations go to `compute`."""

    def empty(self, nbytes: int) -> Tensor:
        """uint8 [nbytes] on the device, aligned to 256 bytes."""

    def pinned(self, nbytes: int) -> Tensor:
        """uint8 [nbytes] of host memory that copies can read and write without staging."""

    def register(self, host: Tensor) -> None:
        """Pin host memory that exists (shared between processes, say). Nothing on CPU."""

    def unregister(self, host: Tensor) -> None:
        """Take back `register`; the memory may be freed then."""

    def stream(self, name: str) -> Stream:
        """A stream of its own; the same name gives the same stream."""

    def memory_used(self) -> int:
        """Bytes of device memory that this process holds, as the device counts them."""

    def synchronize(self) -> None:
        """Block the host until every stream is done."""

    def close(self) -> None:
        """Finish the work under way and give everything back."""


def open_device(
    name: str, *, bandwidth_gb_s: float | None = None, delays: int | None = None
) -> Device:
    """`cpu`, `cuda` or `cuda:1`. `bandwidth_gb_s` (10^9 bytes per second, each direction) and
    `delays` (a seed of random pauses, for race tests) are of the CPU's emulation only."""
    kind, _, index = name.partition(":")
    if kind == "cpu" and not index:
        from runtime.engine.device_cpu import CpuDevice

        return CpuDevice(bandwidth_gb_s=bandwidth_gb_s, delays=delays)
    if kind != "cuda" or (index and not index.isdecimal()):
        raise UserError(
            f"engine.device is {name!r}: expected cpu, cuda or cuda:0; "
            f"{nearest(kind, ('cpu', 'cuda'))}"
        )
    if bandwidth_gb_s is not None or delays is not None:
        raise UserError(f"engine.device is {name!r}: bandwidth and delays are emulated on cpu only")
    found = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if int(index or 0) >= found:
        raise UserError(
            f"engine.device is {name!r}: this machine has {found} CUDA devices; try cpu"
        )
    from runtime.engine.device_cuda import CudaDevice

    return CudaDevice(int(index or 0))
