"""An engine with its memory, in one step."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from runtime.engine.arena import Arena
from runtime.engine.blob import Blob
from runtime.engine.blob_index import BlobIndex
from runtime.engine.device import Device
from runtime.engine.engine import Engine
from runtime.engine.host_kv import SLAB_BYTES, HostKv
from runtime.engine.kv import KvArena
from runtime.engine.residents import Blobs
from runtime.engine.text import Tokenizer


class Shelf:
    """Blobs that are in host memory for good, by name."""

    def __init__(self, blobs: Mapping[str, Blob]) -> None:
        self._blobs = blobs

    def take(self, name: str) -> Blob:
        return self._blobs[name]

    def release(self, name: str) -> None:
        pass


@contextmanager
def opened_engine(
    device: Device,
    blobs: Blobs,
    indexes: Mapping[str, BlobIndex],
    *,
    kv_bytes: int,
    host_kv_bytes: int | None = None,
    slots: int = 2,
    tokenizers: Mapping[str, Tokenizer] | None = None,
) -> Iterator[Engine]:
    """An engine that serves `indexes` with `slots` slots, each for the largest model, `kv_bytes`
    of KV on the device and (as many, when None) `host_kv_bytes` in host memory."""
    slot_bytes = max(index.nbytes for index in indexes.values())
    host_bytes = kv_bytes if host_kv_bytes is None else host_kv_bytes
    host = HostKv.create(host_bytes, slab_bytes=min(host_bytes, SLAB_BYTES))
    arena = Arena(device, slots * slot_bytes + kv_bytes, [slot_bytes] * slots)
    engine = Engine(device, arena, KvArena(device, arena.kv, host), blobs)
    try:
        for name, index in indexes.items():
            engine.add_model(name, index, (tokenizers or {}).get(name))
        yield engine
    finally:
        engine.close()
        device.unregister(host.bytes)
        host.close()
