"""Requests of many models, or chunks of many traces, in one order of arrival."""

from collections.abc import Iterator, Sequence
from typing import Protocol

import numpy as np

from traces.sessions import Requests
from traces.stream import Chunk
from traces.warp import seconds


class Source(Protocol):
    """One model's requests in order."""

    def until(self, stop: int) -> Requests: ...


def merged(sources: Sequence[Source], end: int, block: int) -> Iterator[Chunk]:
    """Chunks of `block` microseconds until `end`; model i is source i. At one instant the lower
    model comes first."""
    for start in range(0, end, block):
        stop = min(start + block, end)
        parts = [(index, source.until(stop)) for index, source in enumerate(sources)]
        present = [(index, part) for index, part in parts if len(part.time)]
        if present:
            yield chunk_of(present)


def chunk_of(parts: Sequence[tuple[int, Requests]]) -> Chunk:
    """The requests of some models (number, requests), of one stretch of time, in order."""
    time = np.concatenate([part.time for _, part in parts])
    order = np.argsort(time, kind="stable")
    models = np.array([index for index, _ in parts], np.int32)
    counts = [len(part.time) for _, part in parts]
    session = None
    if parts[0][1].session is not None:
        labels = [f"{index}-{n}" for index, part in parts for n in _numbers(part)]
        session = np.array(labels, object)[order]
    return Chunk(
        seconds(time[order]),
        np.repeat(models, counts)[order],
        np.concatenate([part.prompt for _, part in parts])[order],
        np.concatenate([part.output for _, part in parts])[order],
        np.zeros(len(time), np.int8),
        session,
    )


def _numbers(part: Requests) -> list[int]:
    assert part.session is not None
    return part.session.tolist()
