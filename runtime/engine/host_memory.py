"""Host memory that the processes of a node share: a memfd (Linux), all of whose pages are there.

It is passed on by its file descriptor (`socket.send_fds`, `pass_fds`) and lives as long as anyone
holds that or a mapping. Its size is sealed, so no holder can pull pages from under another.
"""

from __future__ import annotations

import fcntl
import mmap
import os
from pathlib import Path
from typing import Any, cast

import torch

from runtime.errors import UserError

PAGE = 4096  # bytes


class HostMemory:
    """uint8 `bytes` [nbytes], shared and writable; `fd` belongs to this object."""

    def __init__(self, fd: int, nbytes: int) -> None:
        self.fd = fd
        self.nbytes = nbytes
        self.bytes = torch.frombuffer(mmap.mmap(fd, nbytes), dtype=torch.uint8)

    @classmethod
    def create(cls, nbytes: int, name: str = "weights") -> HostMemory:
        """Fresh memory, zeroed; UserError when the machine has not that much."""
        assert nbytes > 0, f"host memory of {nbytes} bytes"
        available = available_bytes()
        if nbytes > available:
            raise UserError(
                f"host memory: {nbytes} bytes for {name}, {available} available: expected a "
                "smaller host budget or fewer models"
            )
        fd = os.memfd_create(name[:100], os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            os.posix_fallocate(fd, 0, nbytes)
        except OSError as error:
            os.close(fd)
            raise UserError(
                f"host memory: {nbytes} bytes for {name}: {error.strerror}; expected a smaller "
                "host budget or fewer models"
            ) from error
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW)
        return cls(fd, nbytes)

    @classmethod
    def attach(cls, fd: int, nbytes: int) -> HostMemory:
        """The same pages in another process. `fd` is duplicated; the caller may close his."""
        found = os.fstat(fd).st_size
        if found != nbytes:
            raise UserError(f"host memory: passed with {found} bytes, expected {nbytes}")
        return cls(os.dup(fd), nbytes)

    def close(self) -> None:
        """Give the descriptor and this object's view back; views taken before stay valid."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1
            self.bytes = torch.empty(0, dtype=torch.uint8)


def available_bytes() -> int:
    """Memory the machine can still give. A memfd has no limit of its own: asked for more, the
    kernel starts to kill processes."""
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    raise AssertionError("/proc/meminfo has no MemAvailable")


def buffer(memory: torch.Tensor) -> memoryview:
    """The bytes of a uint8 tensor on the host, shared."""
    return memoryview(cast(Any, memory.numpy()))
