"""`TraceStream`: a workload of any length, chunk by chunk. R requests of a chunk, M models.

A file and a generator both give one, so what consumes chunks never holds a whole trace.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from traces.errors import TraceError
from traces.prefix import PrefixBlocks, no_blocks
from traces.prefix import joined as joined_blocks
from traces.schema import OPTIONAL
from traces.trace import Trace, TraceKind, renumbered

CHUNK_ROWS = 1 << 18


class Chunk(NamedTuple):
    """Consecutive requests, in order of arrival; at least one. `model` indexes the stream's
    `models`; a missing priority is 0; the columns after it are None when the stream has none."""

    arrival_s: npt.NDArray[np.float64]  # [R]
    model: npt.NDArray[np.int32]
    prompt_tokens: npt.NDArray[np.int32]
    output_tokens: npt.NDArray[np.int32]
    priority: npt.NDArray[np.int8]
    session: npt.NDArray[np.object_] | None = None
    client: npt.NDArray[np.object_] | None = None
    prefix_blocks: PrefixBlocks | None = None

    @property
    def requests(self) -> int:
        return len(self.arrival_s)

    def rows(self, index: Any) -> "Chunk":
        """The requests at `index`: a slice, a mask or positions."""
        columns: list[Any] = [None if column is None else column[index] for column in self]
        return Chunk(*columns)


@dataclass(frozen=True, slots=True, kw_only=True)
class TraceStream:
    """Requests in order of arrival, and what is known of them before the first one.

    `models` [M] may hold models without a request; `optional` names the optional columns it has.
    Each call of `chunks` starts from the first request again and gives the same rows; how they are
    cut into chunks is no part of the trace.
    """

    name: str
    kind: TraceKind
    models: tuple[str, ...]
    start: Callable[[], Iterator[Chunk]]
    optional: tuple[str, ...] = ()
    block_tokens: int | None = None  # of its prefix blocks
    lineage: tuple[str, ...] = ()
    licence: str = "not stated"

    def chunks(self) -> Iterator[Chunk]:
        """Raises TraceError where a chunk starts before the last one ended, or there is none."""
        latest_s, is_empty = 0.0, True
        for chunk in self.start():
            if chunk.requests == 0:
                continue
            if chunk.arrival_s[0] < latest_s:
                raise TraceError(
                    f"trace {self.name}: arrival_s {chunk.arrival_s[0]} after {latest_s}:"
                    " expected requests in order of arrival"
                )
            latest_s, is_empty = float(chunk.arrival_s[-1]), False
            yield chunk
        if is_empty:
            step = f" after: {self.lineage[-1]}" if self.lineage else ""
            raise TraceError(f"trace {self.name}: no requests{step}: expected at least one")


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
        trace.prefix_blocks,
    )
    return TraceStream(
        name=trace.name,
        kind=trace.kind,
        models=trace.models,
        start=lambda: pieces(whole, rows),
        optional=tuple(name for name in OPTIONAL.names if getattr(trace, name) is not None),
        block_tokens=None if trace.prefix_blocks is None else trace.prefix_blocks.block_tokens,
        lineage=trace.lineage,
        licence=trace.licence,
    )


def pieces(chunk: Chunk, rows: int = CHUNK_ROWS) -> Iterator[Chunk]:
    """The chunk, cut into chunks of at most `rows` requests."""
    for low in range(0, chunk.requests, rows):
        yield chunk.rows(slice(low, low + rows))


def collect(stream: TraceStream) -> Trace:
    """The whole trace in memory. Raises TraceError when it has no request."""
    whole = joined(stream.chunks())
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
        priority=whole.priority if "priority" in stream.optional else None,
        prefix_blocks=whole.prefix_blocks,
        lineage=stream.lineage,
        licence=stream.licence,
    )


def joined(chunks: Iterable[Chunk]) -> Chunk:
    """One chunk of all their rows; what a part has no column for is missing there."""
    parts = list(chunks)
    columns: list[Any] = [
        _column([getattr(part, name) for part in parts], [part.requests for part in parts])
        for name in Chunk._fields
    ]
    return Chunk(*columns)


def _column(values: list[Any], counts: list[int]) -> Any:
    present = [value for value in values if value is not None]
    if not present:
        return None
    pairs = list(zip(values, counts, strict=True))
    if isinstance(present[0], PrefixBlocks):
        size = present[0].block_tokens
        return joined_blocks([no_blocks(n, size) if v is None else v for v, n in pairs])
    return np.concatenate([np.full(n, None, object) if v is None else v for v, n in pairs])
