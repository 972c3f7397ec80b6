"""`TraceSource`: which trace, and which part of it at which speed, as a configuration names it."""

from dataclasses import dataclass, replace
from math import inf
from pathlib import Path

from traces import steps
from traces.bundled import FILES, RECIPES, load_bundled, stream_bundled
from traces.errors import TraceError, nearest
from traces.fetch import cached
from traces.mapping import NOTHING, ColumnMap
from traces.parquet_stream import is_ours, stream_parquet
from traces.public import PUBLIC
from traces.reading import read
from traces.stream import TraceStream, collect, of_trace
from traces.trace import Trace, TraceKind, lower

STREAMED = [name for name in RECIPES if name not in FILES]
MOST_HELD = 20_000_000  # requests of a trace in memory, of 0.5 GB


@dataclass(frozen=True, slots=True, kw_only=True)
class TraceSource:
    """A file (`path`), or without one the bundled trace or fetched public set `name`; then window,
    then rate."""

    path: str | None = None
    name: str = "market_demo"
    format: str | None = None  # of the file; null: as its columns say
    map: ColumnMap = NOTHING  # which of the file's columns are what
    kind: TraceKind = TraceKind.LOG  # at best: files without metadata do not tell
    where: str | None = None  # column=value
    start_s: float = 0.0
    duration_s: float | None = None
    rate_scale: float = 1.0


def open_trace(source: TraceSource) -> Trace:
    """Raises TraceError when the file is not valid or the window holds no request."""
    if source.path is None and source.name in STREAMED:
        _check_fits(source)
        return collect(open_stream(source))
    trace = _whole(source)
    trace = replace(trace, kind=lower(trace.kind, source.kind))
    if source.start_s != 0 or source.duration_s is not None:
        span_s, lineage = trace.span_s, trace.lineage
        trace = trace.window(source.start_s, source.duration_s)
        if trace.requests == 0:
            raise TraceError(
                f"trace.start_s={source.start_s:g}: no request in the window;"
                f" the trace spans 0 to {span_s:.0f} s"
            )
        if source.duration_s is None:  # infinite windows say nothing in the lineage
            trace = replace(trace, lineage=(*lineage, f"window start_s={source.start_s:g}"))
    return trace.scale_rate(source.rate_scale)


def open_stream(source: TraceSource) -> TraceStream:
    """The same requests chunk by chunk: a file of ours and a generated market never lie in memory
    whole, other files do. Raises TraceError when the file is not valid."""
    if source.path is None and source.name in STREAMED:
        _refuse_file_keys(source)
        stream = stream_bundled(source.name)
    elif source.path is not None and is_ours(Path(source.path)) and source.map == NOTHING:
        stream = stream_parquet(Path(source.path), source.where)
    else:
        return of_trace(open_trace(source))
    if source.start_s != 0 or source.duration_s is not None:
        stream = steps.window(stream, source.start_s, source.duration_s)
    if source.rate_scale != 1:
        stream = steps.scale(stream, source.rate_scale)
    return replace(stream, kind=lower(stream.kind, source.kind))


def _check_fits(source: TraceSource) -> None:
    spec = RECIPES[source.name]
    length_s = min(source.duration_s or inf, spec.duration_s - source.start_s)
    if length_s * spec.rate_rps > MOST_HELD:
        raise TraceError(
            f"trace.name={source.name}: about {length_s * spec.rate_rps:,.0f} requests do not fit:"
            f" expected at most {MOST_HELD:,}; name a part, as trace.duration_s=3600"
        )


def _refuse_file_keys(source: TraceSource) -> None:
    for key, value in (("where", source.where), ("format", source.format)):
        if value is not None:
            raise TraceError(f"trace.{key}={value}: expected a file in trace.path as well")
    for column, name in source.map.named.items():
        raise TraceError(f"trace.map.{column}={name}: expected a file in trace.path as well")


def _whole(source: TraceSource) -> Trace:
    if source.path is not None:
        return read(source.path, source.where, columns=source.map, form=source.format)
    if source.name in PUBLIC:
        public = PUBLIC[source.name]
        path = cached(source.name)
        trace = read(path, source.where, columns=source.map, form=source.format)
        return replace(trace, licence=public.licence, kind=public.kind)
    if source.name not in RECIPES:
        choices = nearest(source.name, [*RECIPES, *PUBLIC])
        raise TraceError(f"trace.name={source.name}: no such trace; {choices}")
    _refuse_file_keys(source)
    return load_bundled(source.name)
