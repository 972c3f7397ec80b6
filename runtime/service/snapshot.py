"""The state tables in shared memory, for a process that decides on a copy of them.

One block, which belongs to the reader from a question to its answer: the writer asks nothing new
while an answer is owed, so a second buffer would never be used. Every question names the shapes of
that moment; the file grows with the request table and both sides map it anew.
"""

import mmap
import os
from typing import Any

import numpy as np
import numpy.typing as npt

from runtime.pool.state import State
from runtime.tables import LINE_BYTES, Field

Shapes = tuple[tuple[int, ...], ...]  # of the fields of State.layout, in order
UNREAD = ("outbox",)  # shaped, not copied: what the core says to drivers is nothing to decide on
GROWTH = 2


def shapes_of(state: State) -> Shapes:
    return tuple(getattr(state, name).shape for name in State.layout)


def block_bytes(shapes: Shapes) -> int:
    return sum(_size(name, shape) for name, shape in zip(State.layout, shapes, strict=True))


def _dtype(name: str) -> np.dtype[Any]:
    field = State.layout[name]
    assert isinstance(field, Field)
    return np.dtype(field.dtype)


def _size(name: str, shape: tuple[int, ...]) -> int:
    size = _dtype(name).itemsize * int(np.prod(shape, dtype=np.int64))
    return -(-size // LINE_BYTES) * LINE_BYTES


def view_of(memory: npt.NDArray[np.uint8], shapes: Shapes) -> State:
    """A State whose arrays lie side by side in `memory`."""
    arrays, start = {}, 0
    for name, shape in zip(State.layout, shapes, strict=True):
        dtype = _dtype(name)
        count = int(np.prod(shape, dtype=np.int64))
        data = memory[start : start + count * dtype.itemsize]
        arrays[name] = data.view(dtype).reshape(shape)
        start += _size(name, shape)
    return State(**arrays)


def _bytes(table: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
    """Records are copied ten times faster as bytes than field by field."""
    return table.reshape(-1).view(np.uint8)


class Block:
    """A shared file of at least `shapes`' bytes, mapped here; made of real memory or not at all."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self.shapes: Shapes = ()
        self.memory: npt.NDArray[np.uint8] = np.zeros(0, np.uint8)
        self.view: State | None = None

    @classmethod
    def made(cls) -> "Block":
        return cls(os.memfd_create("aegaeon-rl snapshot", os.MFD_CLOEXEC))

    def fit(self, shapes: Shapes, *, is_owner: bool = False) -> State:
        """The tables of these shapes in the file. The owner makes room first: OSError without."""
        if shapes == self.shapes and self.view is not None:
            return self.view
        needed = block_bytes(shapes)
        if is_owner and needed > os.fstat(self.fd).st_size:
            os.posix_fallocate(self.fd, 0, GROWTH * needed)
        if needed > len(self.memory):
            mapped = mmap.mmap(self.fd, os.fstat(self.fd).st_size)
            self.memory = np.frombuffer(mapped, np.uint8)
        self.shapes, self.view = shapes, view_of(self.memory, shapes)
        return self.view

    def write(self, state: State) -> Shapes:
        """Copy `state`; returns the shapes to read it by."""
        shapes = shapes_of(state)
        view = self.fit(shapes, is_owner=True)
        for name in State.layout:
            if name not in UNREAD:
                _bytes(getattr(view, name))[:] = _bytes(getattr(state, name))
        return shapes

    def close(self) -> None:
        self.view, self.memory = None, np.zeros(0, np.uint8)
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1
