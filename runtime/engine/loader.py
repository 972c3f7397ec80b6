"""Weights from host memory into a slot, in chunks on a stream of their own.

A thread feeds the stream a few chunks ahead, so that a load can be cancelled on CUDA as well,
where work once enqueued runs. Loads follow one another. A prefetch is a load begun early.
"""

from __future__ import annotations

import enum
import queue
import threading
from collections.abc import Sequence

import torch

from runtime.engine.blob import Blob
from runtime.engine.device import Device, Event, Stream

CHUNK_BYTES = 64 << 20
AHEAD = 2  # chunks on the stream at once: the bus is never idle, a cancel waits for these


class LoadState(enum.Enum):
    LOADING = "loading"
    LOADED = "loaded"  # every chunk is there, or will be when the last event is reached
    CANCELLED = "cancelled"
    FAILED = "failed"


class LoadCancelledError(Exception):
    """Someone waited for weights whose load was cancelled: the slot holds no model."""


class Load:
    """One load under way. The slot is its own until it is done, cancelled or failed."""

    def __init__(self, blob: Blob, slot: torch.Tensor, after: Sequence[Event], chunk: int) -> None:
        assert slot.numel() >= blob.nbytes, f"{blob.nbytes} bytes for a slot of {slot.numel()}"
        self.blob = blob
        self.slot = slot
        self._after = tuple(after)
        self._chunk_bytes = chunk
        self._began: Event | None = None
        self._events: list[Event] = []  # of each chunk that is on the stream
        self._state = LoadState.LOADING
        self._error: BaseException | None = None
        self._wanted = True
        self._moved = threading.Condition()

    @property
    def state(self) -> LoadState:
        return self._state

    def done(self) -> bool:
        """Whether all bytes are in the slot."""
        return self._state is LoadState.LOADED and (not self._events or self._events[-1].done())

    def cancel(self) -> None:
        """Stop after the chunks on the stream. The slot may be loaded anew at once, by this
        loader; for any other use `settle` first. Nothing happens to a load that is through."""
        with self._moved:
            self._wanted = False

    def settle(self) -> LoadState:
        """Block the host until no byte of the slot will be written any more."""
        with self._moved:
            self._moved.wait_for(lambda: self._state is not LoadState.LOADING)
        if self._events and self._state is not LoadState.FAILED:
            self._events[-1].wait()
        return self._state

    def wait_on(self, stream: Stream, nbytes: int | None = None) -> None:
        """`stream` goes on when the first `nbytes` (None: all) are in the slot. The host blocks
        only until their copies are on the weights stream. Raises LoadCancelledError, or what
        failed."""
        wanted = self.blob.nbytes if nbytes is None else min(nbytes, self.blob.nbytes)
        count = -(-wanted // self._chunk_bytes)
        with self._moved:
            self._moved.wait_for(
                lambda: len(self._events) >= count or self._state is not LoadState.LOADING
            )
        if self._error is not None:
            raise self._error
        if len(self._events) < count or self._state is LoadState.CANCELLED:
            raise LoadCancelledError(f"{len(self._events)} of {count} chunks were loaded")
        if count:
            stream.wait(self._events[count - 1])

    def wait(self) -> None:
        """Block the host until all bytes are in the slot. Raises as `wait_on` does."""
        if self.settle() is LoadState.CANCELLED:
            raise LoadCancelledError(f"{len(self._events)} chunks were loaded")
        if self._error is not None:
            raise self._error

    @property
    def begun(self) -> bool:
        return self._began is not None

    @property
    def seconds(self) -> float:
        """From the first byte's turn on the bus to the last byte; waits for it."""
        self.wait()
        assert self._began is not None
        return self._events[-1].time_s - self._began.time_s

    def begin(self, stream: Stream) -> None:
        """Put the first chunks on the stream; the host does not wait."""
        for event in self._after:
            stream.wait(event)
        self._began = stream.record()
        while len(self._events) < AHEAD and self._state is LoadState.LOADING:
            self._put_chunk(stream)

    def feed(self, stream: Stream) -> None:
        """Put the other chunks on the stream, each when an earlier one has arrived."""
        try:
            while self._state is LoadState.LOADING:
                self._events[-AHEAD].wait()
                self._put_chunk(stream)
        except BaseException as error:  # handed to whoever waits for this load
            with self._moved:
                self._error = error
                self._state = LoadState.FAILED
                self._moved.notify_all()

    def _put_chunk(self, stream: Stream) -> None:
        with self._moved:
            start = len(self._events) * self._chunk_bytes
            stop = min(start + self._chunk_bytes, self.blob.nbytes)
            if self._wanted:
                stream.copy(self.slot[start:stop], self.blob.host[start:stop])
                self._events.append(stream.record())
                if stop == self.blob.nbytes:
                    self._state = LoadState.LOADED
            else:
                self._state = LoadState.CANCELLED
            self._moved.notify_all()


class Loader:
    """Loads weights on one device, one load after another."""

    def __init__(self, device: Device, *, chunk_bytes: int = CHUNK_BYTES) -> None:
        assert chunk_bytes > 0, f"chunks of {chunk_bytes} bytes"
        self.stream = device.stream("weights")
        self._chunk_bytes = chunk_bytes
        self._waiting = 0  # loads that have chunks not yet on the stream
        self._order = threading.Lock()
        self._loads: queue.SimpleQueue[Load | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, name="loader", daemon=True)
        self._thread.start()

    def load(self, blob: Blob, slot: torch.Tensor, after: Sequence[Event] = ()) -> Load:
        """Begin to copy `blob` into `slot` once the events `after` are reached: those that free
        the slot (the last step of the model that was there). The blob must stay in host memory
        until the load has settled."""
        load = Load(blob, slot, after, self._chunk_bytes)
        with self._order:
            if not self._waiting:
                load.begin(self.stream)
            if load.state is LoadState.LOADING:
                self._waiting += 1
                self._loads.put(load)
        return load

    def close(self) -> None:
        """Finish the loads under way."""
        self._loads.put(None)
        self._thread.join()

    def _work(self) -> None:
        while (load := self._loads.get()) is not None:
            if not load.begun:
                load.begin(self.stream)
            load.feed(self.stream)
            with self._order:
                self._waiting -= 1
