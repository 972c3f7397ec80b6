"""What all instances of a node share: weights in host memory, and host memory for KV.

Both are memfds whose pages are all there from the start; workers get their descriptors. The agent
lives in the controller's process and alone takes and gives blocks of host KV.
"""

from __future__ import annotations

from contextlib import ExitStack

from runtime.engine.blob import Blob
from runtime.engine.host_kv import HostKv, HostKvFullError
from runtime.engine.host_memory import available_bytes
from runtime.engine.opening import open_host_kv
from runtime.errors import UserError
from runtime.service.models import ModelFacts, facts_of, open_source
from runtime.service.spec import ModelSource, ServiceSpec


class NodeAgent:
    """Loads every model of the spec; `close` gives all memory back.

    Raises UserError, in one line, where a model cannot be read or memory is short.
    """

    def __init__(self, spec: ServiceSpec) -> None:
        self.spec = spec
        self.sources: dict[str, ModelSource] = {}
        self.blobs: dict[str, Blob] = {}
        self.facts: dict[str, ModelFacts] = {}
        with ExitStack() as opened:
            opened.callback(self._close_blobs)
            for name, source in spec.models.items():
                self.add_model(name, source)
            self._check_instances()
            indexes = {name: blob.index for name, blob in self.blobs.items()}
            self.host_kv: HostKv = open_host_kv(spec.host_kv_bytes, indexes, spec.block_tokens)
            opened.pop_all()

    def add_model(self, name: str, source: ModelSource) -> ModelFacts:
        """Read a model; workers started from now on know it."""
        blob = open_source(name, source, self.spec.device)
        self.sources[name], self.blobs[name] = source, blob
        self.facts[name] = facts_of(name, source, blob.index, self.spec.block_tokens)
        return self.facts[name]

    def remove_model(self, name: str) -> None:
        """Forget a model; its memory is back once no worker that knew it is left."""
        self.blobs.pop(name).close()
        del self.sources[name], self.facts[name]

    def _check_instances(self) -> None:
        """On CPU the instances' own memory comes from the same machine."""
        spec = self.spec
        if spec.device != "cpu":
            return
        each = spec.weight_slots * self.slot_bytes + spec.kv_bytes
        wanted, available = spec.instances * each + spec.host_kv_bytes, available_bytes()
        if wanted > available:
            raise UserError(
                f"instances={spec.instances}: {each} bytes each (weight_slots, kv_bytes) and "
                f"host_kv_bytes={spec.host_kv_bytes}: expected at most {available} in all, what "
                "the machine has available"
            )

    @property
    def slot_bytes(self) -> int:
        """Of a weight slot: the largest model's."""
        return max(blob.nbytes for blob in self.blobs.values())

    # Host KV

    def lease(self, block_bytes: int, count: int) -> tuple[int, ...]:
        """Offsets of `count` blocks for a move out; empty when there is no room."""
        try:
            return tuple(self.host_kv.take(block_bytes, count))
        except HostKvFullError:
            return ()

    def give_back(self, block_bytes: int, offsets: tuple[int, ...]) -> None:
        """Blocks that no process will write or read any more."""
        self.host_kv.give(block_bytes, list(offsets))

    def close(self) -> None:
        self.host_kv.close()
        self._close_blobs()

    def _close_blobs(self) -> None:
        while self.blobs:
            self.blobs.popitem()[1].close()
