"""Which models' weights are on the device: slots, the loads into them, who must go."""

from __future__ import annotations

from collections.abc import Container
from dataclasses import dataclass
from typing import Protocol

from runtime.engine.arena import Arena
from runtime.engine.blob import Blob
from runtime.engine.device import Device
from runtime.engine.host_cache import HostCacheFullError
from runtime.engine.loader import Load, Loader, LoadState
from runtime.errors import UserError


class NoRoomError(UserError):
    """Nothing that could leave makes enough room now."""


class Blobs(Protocol):
    """Where weights come from (`HostCache`); what is taken stays in host memory until released."""

    def take(self, name: str) -> Blob: ...

    def release(self, name: str) -> None: ...


@dataclass(slots=True)
class Resident:
    """A model in a slot, or on its way there."""

    model: str
    slot: int
    load: Load
    used: int  # when it was last asked for, as a count

    @property
    def is_loading(self) -> bool:
        return self.load.state is LoadState.LOADING or not self.load.done()


class Residents:
    """Weights in slots of one device; the least recently used model goes first."""

    def __init__(self, device: Device, arena: Arena, loader: Loader, blobs: Blobs) -> None:
        self.arena = arena
        self._device, self._loader, self._blobs = device, loader, blobs
        self._by_model: dict[str, Resident] = {}
        self._leaving: list[Resident] = []  # dropped while chunks may still be under way
        self._clock = 0

    def find(self, model: str) -> Resident | None:
        return self._by_model.get(model)

    def require(self, model: str, nbytes: int, keep: str | None = None) -> Resident:
        """The model's place; its load begins now if it is not there. `keep` does not go.

        Raises NoRoomError when no slot may be had, or no host memory.
        """
        self._clock += 1
        self._collect()
        found = self._by_model.get(model)
        if found is not None and found.load.state in (LoadState.CANCELLED, LoadState.FAILED):
            self.drop(model)
            found = None
        if found is None:
            found = self._by_model[model] = self._begin(model, nbytes, keep)
        found.used = self._clock
        return found

    def keep_only(self, models: Container[str]) -> None:
        """Empty the slots of all other models."""
        for model in tuple(self._by_model):
            if model not in models:
                self.drop(model)

    def drop(self, model: str) -> None:
        """Empty a model's slot; a load under way is cancelled."""
        resident = self._by_model.pop(model)
        self.arena.give(resident.slot)
        if resident.is_loading:
            resident.load.cancel()
        self._leaving.append(resident)
        self._collect()

    def close(self) -> None:
        """Empty all slots and wait until nothing writes to them."""
        for model in tuple(self._by_model):
            self.drop(model)
        for resident in self._leaving:
            resident.load.settle()
        self._collect()

    def _begin(self, model: str, nbytes: int, keep: str | None) -> Resident:
        slot = self._vacate(model, nbytes, keep)
        blob = self._taken(model, keep)
        after = [self._device.compute.record()]
        load = self._loader.load(blob, self.arena.take(slot, nbytes), after)
        return Resident(model, slot, load, self._clock)

    def _taken(self, model: str, keep: str | None) -> Blob:
        """Its blob in host memory; where that is full, other models leave their slots for it."""
        while True:
            try:
                return self._blobs.take(model)
            except HostCacheFullError as error:
                others = [r for r in self._by_model.values() if r.model != keep]
                if others:
                    self.drop(min(others, key=lambda resident: resident.used).model)
                elif not self._leaving:
                    raise NoRoomError(
                        f"model {model}: {error}: expected a larger engine.host_bytes"
                    ) from error
                for resident in self._leaving:
                    resident.load.settle()
                self._collect()

    def _vacate(self, model: str, nbytes: int, keep: str | None) -> int:
        """A vacant slot that fits; else that of an unfinished load or of the longest unused."""
        slot = self.arena.fit(nbytes)
        if slot is not None:
            return slot
        others = [
            resident
            for resident in self._by_model.values()
            if resident.model != keep and self.arena.slot(resident.slot).numel() >= nbytes
        ]
        if not others:
            sizes = [self.arena.slot(i).numel() for i in range(len(self.arena))]
            raise NoRoomError(
                f"model {model} has {nbytes} bytes of weights: expected a slot that fits and may "
                f"be vacated, among slots of {', '.join(map(str, sizes))} bytes"
            )
        least = min(others, key=lambda resident: (not resident.is_loading, resident.used))
        self.drop(least.model)
        return least.slot

    def _collect(self) -> None:
        """Release the blobs of dropped models that nothing reads any more."""
        for resident in tuple(self._leaving):
            if resident.load.state is not LoadState.LOADING:
                resident.load.settle()
                self._blobs.release(resident.model)
                self._leaving.remove(resident)

    def check_integrity(self) -> None:
        slots = [resident.slot for resident in self._by_model.values()]
        assert len(slots) == len(set(slots)), "two models in a slot"
        self.arena.check_integrity()
