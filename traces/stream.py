"""`TraceStream`: a workload of any length, chunk by chunk. R requests of a chunk, M models.

A file and a generator both give one, so what consumes chunks never holds a whole trace.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from traces.errors import TraceError
from traces.trace import Trace, TraceKind, renumbered

CHUNK_ROWS = 1 << 18


class Chunk(NamedTuple):
    """Consecutive requests, in order of arrival; at least one. `model` indexes the stream's
    `models`; a missing priority is 0; `session` and `client` are None when the stream has none."""

    arrival_s: npt.NDArray[np.float64]  # [R]
    model: npt.NDArray[np.int32]
    prompt_tokens: npt.NDArray[np.int32]
    output_tokens: npt.NDArray[np.int32]
    priority: npt.NDArray[np.int8]
    session: npt.NDArray[np.object_] | None = None
    client: npt.NDArray[np.object_] | None = None

    @property
    def requests(self) -> int:
        return len(self.arrival_s)

    def rows(self, index: Any) -> "Chunk":
        """The requests at `index`: a slice, a mask or positions."""
        return Chunk(*(None if column is None else column[index] for column in self))


@dataclass(frozen=True, slots=True, kw_only=True)
class TraceStream:
    """Requests in order of arrival, and what is known of them before the first one.

    `models` [M] may hold models without a request. Each call of `chunks` starts from the first
    request again and gives the same rows; how they are cut into chunks is no part of the trace.
    """

    name: str
    kind: TraceKind
    models: tuple[str, ...]
    start: Callable[[], Iterator[Chunk]]
    lineage: tuple[str, ...] = ()
    licence: str = "not stated"

    def chunks(self) -> Iterator[Chunk]:
        """Raises TraceError where a chunk starts before the last one ended."""
        latest_s = 0.0
        for chunk in self.start():
            if chunk.requests == 0:
                continue
            if chunk.arrival_s[0] < latest_s:
                raise TraceError(
                    f"trace {self.name}: arrival_s {chunk.arrival_s[0]} after {latest_s}:"
                    " expected requests in order of arrival"
                )
            latest_s = float(chunk.arrival_s[-1])
            yield chunk


def of_trace(trace: Trace, rows: int = CHUNK_ROWS) -> TraceStream:
    """A trace in memory as chunks of `rows` requests, without copies."""
    priority = trace.priority
    if priority is None:
        priority = np.zeros(trace.requests, np.int8)
    whole = Chunk(
        trace.arrival_s,
        trace.model,
        trace.prompt_tokens,
        trace.output_tokens,
        priority,
        trace.session,
        trace.client,
    )
    return TraceStream(
        name=trace.name,
        kind=trace.kind,
        models=trace.models,
        start=lambda: pieces(whole, rows),
        lineage=trace.lineage,
        licence=trace.licence,
    )


def pieces(chunk: Chunk, rows: int = CHUNK_ROWS) -> Iterator[Chunk]:
    """The chunk, cut into chunks of at most `rows` requests."""
    for low in range(0, chunk.requests, rows):
        yield chunk.rows(slice(low, low + rows))


def collect(stream: TraceStream) -> Trace:
    """The whole trace in memory. Raises TraceError when it has no request."""
    chunks = list(stream.chunks())
    if not chunks:
        raise TraceError(f"trace {stream.name}: no requests: expected at least one")
    whole = joined(chunks)
    model, models = renumbered(whole.model, stream.models)
    return Trace(
        name=stream.name,
        kind=stream.kind,
        models=models,
        model=model,
        arrival_s=whole.arrival_s,
        prompt_tokens=whole.prompt_tokens,
        output_tokens=whole.output_tokens,
        session=whole.session,
        client=whole.client,
        priority=whole.priority if whole.priority.any() else None,
        lineage=stream.lineage,
        licence=stream.licence,
    )


def joined(chunks: Iterable[Chunk]) -> Chunk:
    """One chunk of all their rows; a label column that one of them lacks is None there."""
    parts = list(chunks)
    columns: list[Any] = []
    for name in Chunk._fields:
        values = [getattr(part, name) for part in parts]
        if all(value is None for value in values):
            columns.append(None)
        else:
            blank = [np.full(part.requests, None, object) for part in parts]
            filled = [b if v is None else v for v, b in zip(values, blank, strict=True)]
            columns.append(np.concatenate(filled))
    return Chunk(*columns)
