"""Blobs in host memory, up to a budget, over a folder of blobs on disk."""

from __future__ import annotations

import contextlib
import threading
from collections import OrderedDict
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from runtime.engine.blob import INDEX_FILE, Blob, open_blob, read_index
from runtime.engine.blob_index import BlobIndex
from runtime.engine.device import Device
from runtime.errors import UserError, nearest


class HostCacheFullError(Exception):
    """Every blob in memory is in use; try again when one has been released."""


class _Entry:
    def __init__(self, nbytes: int) -> None:
        self.nbytes = nbytes
        self.pins = 0
        self.blob: Future[Blob] = Future()


class HostCache:
    """The least recently used blob leaves first; one that is pinned or being read never does.

    Checksums are verified at every read from disk. Blobs are registered with the device while
    they are here. All methods may be called from any thread.
    """

    def __init__(self, folder: Path | str, budget_bytes: int, device: Device) -> None:
        self.folder = Path(folder)
        self.budget_bytes = budget_bytes
        self.hits = 0
        self.misses = 0
        self._device = device
        self._entries: OrderedDict[str, _Entry] = OrderedDict()  # least recently used first
        self._lock = threading.Lock()
        self._reader = ThreadPoolExecutor(1, thread_name_prefix="host cache")

    def models(self) -> list[str]:
        """Names of the blobs on disk."""
        return sorted(path.parent.name for path in self.folder.glob(f"*/{INDEX_FILE}"))

    def index(self, name: str) -> BlobIndex:
        """What a model is, without reading its weights."""
        return read_index(self._folder_of(name))

    @property
    def used_bytes(self) -> int:
        with self._lock:
            return self._used_bytes()

    def take(self, name: str) -> Blob:
        """The blob, pinned until `release`; blocks while it is read from disk.

        Raises UserError for an unknown, damaged or oversized blob, HostCacheFullError when pinned
        blobs leave no room for it.
        """
        entry = self._pinned(name)
        try:
            return entry.blob.result()
        except BaseException:
            self.release(name)
            raise

    def release(self, name: str) -> None:
        """Undo one `take`."""
        with self._lock:
            entry = self._entries[name]
            assert entry.pins > 0, f"{name} is not pinned"
            entry.pins -= 1
            if not entry.pins and entry.blob.done() and entry.blob.exception() is not None:
                del self._entries[name]

    @contextlib.contextmanager
    def pinned(self, name: str) -> Iterator[Blob]:
        """`take` and `release` around a block."""
        blob = self.take(name)
        try:
            yield blob
        finally:
            self.release(name)

    def prefetch(self, name: str) -> None:
        """Begin to read a blob, unless there is no room now; a read that fails tells `take`."""
        with contextlib.suppress(HostCacheFullError):
            entry = self._pinned(name)
            entry.blob.add_done_callback(lambda _: self.release(name))

    def close(self) -> None:
        """Give all blobs back; none may be pinned."""
        self._reader.shutdown()
        with self._lock:
            for name in tuple(self._entries):
                self._evict(name)

    def check_integrity(self) -> None:
        """Sizes add up within the budget; no failed read stays without a pin."""
        with self._lock:
            assert self._used_bytes() <= self.budget_bytes, "host cache: over its budget"
            for name, entry in self._entries.items():
                assert entry.pins >= 0, f"host cache: {name} has {entry.pins} pins"
                if entry.blob.done() and entry.blob.exception() is None:
                    assert entry.blob.result().nbytes == entry.nbytes, f"host cache: {name}"
                else:
                    assert entry.pins > 0, f"host cache: {name} is being read for no one"

    def _pinned(self, name: str) -> _Entry:
        """The entry with one pin more; a fresh one is being read."""
        nbytes = None
        if name not in self._entries:
            nbytes = self._checked_size(name)
        with self._lock:
            entry = self._entries.get(name)
            if entry is None:
                nbytes = self._checked_size(name) if nbytes is None else nbytes
                self._make_room(nbytes)
                entry = self._entries[name] = _Entry(nbytes)
                self.misses += 1
                self._reader.submit(self._read, name, entry)
            else:
                self.hits += 1
            entry.pins += 1
            self._entries.move_to_end(name)
            return entry

    def _read(self, name: str, entry: _Entry) -> None:
        try:
            blob = open_blob(self._folder_of(name))
            if blob.nbytes != entry.nbytes:
                blob.close()
                raise UserError(f"{name}: changed on disk while it was read; try again")
            self._device.register(blob.host)
        except BaseException as error:  # handed to whoever takes this blob
            entry.blob.set_exception(error)
        else:
            entry.blob.set_result(blob)

    def _make_room(self, nbytes: int) -> None:
        spare = [n for n, e in self._entries.items() if not e.pins]
        short = self._used_bytes() + nbytes - self.budget_bytes
        if sum(self._entries[n].nbytes for n in spare) < short:
            raise HostCacheFullError(f"{nbytes} bytes do not fit beside the models in use")
        for name in spare:
            if self._used_bytes() + nbytes <= self.budget_bytes:
                break
            self._evict(name)

    def _evict(self, name: str) -> None:
        entry = self._entries.pop(name)
        assert not entry.pins, f"{name} is in use"
        blob = entry.blob.result()
        self._device.unregister(blob.host)
        blob.close()

    def _used_bytes(self) -> int:
        return sum(entry.nbytes for entry in self._entries.values())

    def _checked_size(self, name: str) -> int:
        nbytes = self.index(name).nbytes
        if nbytes > self.budget_bytes:
            raise UserError(
                f"engine.host_bytes is {self.budget_bytes}: expected at least {nbytes}, for {name}"
            )
        return nbytes

    def _folder_of(self, name: str) -> Path:
        known = self.models()
        if name not in known:
            raise UserError(f"model {name!r:.80} is not in {self.folder}: {nearest(name, known)}")
        return self.folder / name
