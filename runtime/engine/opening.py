"""An engine with its memory, in one step."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from runtime.engine.arena import Arena
from runtime.engine.blob import Blob
from runtime.engine.blob_index import BlobIndex, rounded
from runtime.engine.device import Device
from runtime.engine.engine import Engine
from runtime.engine.host_kv import SLAB_BYTES, HostKv
from runtime.engine.host_memory import PAGE
from runtime.engine.kv import KvArena, KvSpec
from runtime.engine.model import geometry, read_config
from runtime.engine.residents import Blobs
from runtime.engine.text import Tokenizer
from runtime.errors import UserError

SLABS_OF_A_SIZE = 4  # at least, of every size of block, where host memory allows


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
    host: HostKv | None = None,
    block: int = 16,
) -> Iterator[Engine]:
    """An engine that serves `indexes` with `slots` slots, each for the largest model, `kv_bytes`
    of KV on the device and (as many, when None) `host_kv_bytes` in host memory, or those of
    `host`, which is closed with it."""
    if not indexes:
        raise UserError("engine: no models: expected at least one")
    for name, value in {"slots": slots, "kv_bytes": kv_bytes}.items():
        if value < 1:
            raise UserError(f"engine.{name}={value}: expected 1 or more")
    slot_bytes = max(index.nbytes for index in indexes.values())
    if host is None:
        wanted = kv_bytes if host_kv_bytes is None else host_kv_bytes
        host = open_host_kv(wanted, indexes, block)
    try:
        arena = Arena(device, slots * slot_bytes + kv_bytes, [slot_bytes] * slots)
        engine = Engine(device, arena, KvArena(device, arena.kv, host), blobs, block=block)
        try:
            for name, index in indexes.items():
                engine.add_model(name, index, (tokenizers or {}).get(name))
            yield engine
        finally:
            engine.close()
            device.unregister(host.bytes)
    finally:
        host.close()


def open_host_kv(nbytes: int, indexes: Mapping[str, BlobIndex], block: int = 16) -> HostKv:
    """Host memory whose slabs hold the blocks of all these models: small enough that each size
    of block can have several."""
    sizes = {
        KvSpec(*geometry(read_config(index.config)), index.dtype, block).block_bytes
        for index in indexes.values()
    }
    if nbytes < sum(sizes):
        raise UserError(
            f"engine.host_kv_bytes is {nbytes}: expected at least {sum(sizes)}, a block of each "
            "model"
        )
    share = min(nbytes // (SLABS_OF_A_SIZE * len(sizes)), SLAB_BYTES)
    slab_bytes = rounded(max(share, *sizes), PAGE)
    return HostKv.create(nbytes, slab_bytes=slab_bytes, min_block_bytes=min(sizes))
