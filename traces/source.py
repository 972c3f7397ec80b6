"""`TraceSource`: which trace, and which part of it at which speed, as a configuration names it."""

from dataclasses import dataclass, replace

from traces.bundled import RECIPES, load_bundled
from traces.errors import TraceError, nearest
from traces.fetch import cached
from traces.mapping import NOTHING, ColumnMap
from traces.public import PUBLIC
from traces.read import read
from traces.trace import Trace


@dataclass(frozen=True, slots=True, kw_only=True)
class TraceSource:
    """A file (`path`), or without one the bundled trace or fetched public set `name`; then window,
    then rate."""

    path: str | None = None
    name: str = "market_demo"
    format: str | None = None  # of the file; null: as its columns say
    map: ColumnMap = NOTHING  # which of the file's columns are what
    where: str | None = None  # column=value
    start_s: float = 0.0
    duration_s: float | None = None
    rate_scale: float = 1.0


def open_trace(source: TraceSource) -> Trace:
    """Raises TraceError when the file is not valid or the window holds no request."""
    trace = _whole(source)
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
    for key, value in (("where", source.where), ("format", source.format)):
        if value is not None:
            raise TraceError(f"trace.{key}={value}: expected a file in trace.path as well")
    return load_bundled(source.name)
