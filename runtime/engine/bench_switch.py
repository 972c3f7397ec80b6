"""What a switch costs over a plain copy of its bytes.

Run alone: `python -m runtime.engine.bench_switch [cpu|cuda] [MB ...]`, one JSON line per size.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable
from typing import NamedTuple

import torch

from runtime.engine.blob import Blob, blob_from
from runtime.engine.device import Device, open_device
from runtime.engine.loader import Loader

SIZES_MB = (64, 256, 1024)
REPEATS = 21


class SwitchCost(NamedTuple):
    """Medians over runs in turn, copy and switch beside each other."""

    nbytes: int
    copy_s: float
    switch_s: float

    @property
    def over_copy(self) -> float:
        return self.switch_s / self.copy_s

    def row(self) -> dict[str, float]:
        """As fields of the bench."""
        return {
            "nbytes": self.nbytes,
            "switch_over_copy": round(self.over_copy, 3),
            "copy_gb_s": round(self.nbytes / self.copy_s / 1e9, 2),
            "switch_gb_s": round(self.nbytes / self.switch_s / 1e9, 2),
        }


def measure_switch(device: Device, nbytes: int, repeats: int = REPEATS) -> SwitchCost:
    """A cold switch (from asking the loader to the event that the compute stream waits for)
    against one copy of the same bytes from the same host memory into the same slot."""
    blob = random_blob(nbytes)
    device.register(blob.host)
    slot = device.empty(blob.nbytes)
    loader = Loader(device)

    def copy() -> None:
        device.compute.copy(slot, blob.host)
        device.compute.synchronize()

    def switch() -> None:
        loader.load(blob, slot).wait_on(device.compute)
        device.compute.synchronize()

    try:
        copies, switches = _paired(copy, switch, repeats)
    finally:
        loader.close()
        device.unregister(blob.host)
    assert torch.equal(slot.cpu(), blob.host)
    blob.close()
    return SwitchCost(blob.nbytes, statistics.median(copies), statistics.median(switches))


def random_blob(nbytes: int) -> Blob:
    """A blob of random bytes in eight tensors."""
    draw = torch.Generator().manual_seed(0)
    size = (nbytes // 8,)
    names = (f"layers.{i}.weight" for i in range(8))
    return blob_from(
        {}, {n: torch.randint(256, size, dtype=torch.uint8, generator=draw) for n in names}
    )


def _paired(
    first: Callable[[], None], second: Callable[[], None], repeats: int
) -> tuple[list[float], list[float]]:
    found: tuple[list[float], list[float]] = ([], [])
    pair = ((first, found[0]), (second, found[1]))
    for run in range(-2, repeats):  # two rounds to warm up; each goes first in every other round
        for act, times in pair if run % 2 else pair[::-1]:
            start = time.perf_counter()
            act()
            if run >= 0:
                times.append(time.perf_counter() - start)
    return found


def main(arguments: list[str]) -> None:
    device = open_device(arguments[0] if arguments else "cpu")
    for megabytes in [int(a) for a in arguments[1:]] or SIZES_MB:
        print(json.dumps(measure_switch(device, megabytes << 20).row()), flush=True)
    device.close()


if __name__ == "__main__":
    main(sys.argv[1:])
