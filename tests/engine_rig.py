"""An engine over tiny models, and what a test needs to drive it."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from runtime.core import EventKind
from runtime.engine.arena import Arena
from runtime.engine.blob import Blob, blob_of
from runtime.engine.device import open_device
from runtime.engine.engine import Engine
from runtime.engine.host_kv import HostKv
from runtime.engine.kv import KvArena
from runtime.engine.loader import Loader
from runtime.engine.plan import Plan, Request, RequestId, TurnEvent

KV_BYTES = 1 << 20
BLOCK = 4


class Memory:
    """Blobs that are in memory already; counts pins."""

    def __init__(self, blobs: Mapping[str, Blob]) -> None:
        self.blobs = dict(blobs)
        self.pins = dict.fromkeys(blobs, 0)

    def take(self, model: str) -> Blob:
        self.pins[model] += 1
        return self.blobs[model]

    def release(self, model: str) -> None:
        self.pins[model] -= 1


@contextmanager
def engine_of(
    models: Mapping[str, Any],
    *,
    slots: int = 2,
    kv_bytes: int = KV_BYTES,
    delays: int | None = None,
    tokenizer: Any = None,
    poison: bool = True,
) -> Iterator[Engine]:
    """An engine on the CPU that serves these transformers models; freed KV is NaN."""
    blobs = {name: blob_of(model) for name, model in models.items()}
    device = open_device("cpu", delays=delays)
    largest = max(blob.nbytes for blob in blobs.values())
    host = HostKv.create(2 * kv_bytes, slab_bytes=kv_bytes // 4, min_block_bytes=256)
    arena = Arena(device, slots * largest + kv_bytes, [largest] * slots)
    kv = KvArena(device, arena.kv, host, page_bytes=1 << 14, poison=poison)
    memory = Memory(blobs)
    loader = Loader(device, chunk_bytes=1 << 14)
    engine = Engine(device, arena, kv, memory, loader=loader, block=BLOCK)
    for name, blob in blobs.items():
        engine.add_model(name, blob.index, tokenizer)
    try:
        yield engine
        engine.check_integrity()
        engine.close()
        assert not any(memory.pins.values())
    finally:
        device.close()
        host.close()


def ask(name: RequestId, model: str, prompt: list[int], max_tokens: int, **keys: Any) -> Request:
    return Request(id=name, model=model, prompt=tuple(prompt), max_tokens=max_tokens, **keys)


def tokens_of(events: list[TurnEvent]) -> dict[RequestId, list[int]]:
    """What each request got, in order."""
    found: dict[RequestId, list[int]] = {}
    for event in events:
        if event.kind in (EventKind.PREFILLED, EventKind.STEPS):
            for name, token in zip(event.requests, event.tokens, strict=True):
                found.setdefault(name, []).append(token)
    return found


def turn(engine: Engine, model: str, **keys: Any) -> list[TurnEvent]:
    """One whole turn; parts are checked at its end."""
    events = list(engine.run_turn(Plan(model=model, **keys)))
    engine.check_integrity()
    return events
