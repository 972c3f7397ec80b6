"""Steps of composition: each makes a stream of one or two others, and says so in its lineage.

What only selects requests leaves the kind; what changes their times, their number or their owners
makes a log semi-synthetic. No step makes a kind better. Memory stays that of a few chunks.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from traces.errors import TraceError, nearest
from traces.stream import Chunk, TraceStream, joined
from traces.trace import LATEST_S, TraceKind, check_factor, lower
from traces.warp import DAY_S


def window(stream: TraceStream, start_s: float, duration_s: float | None = None) -> TraceStream:
    """Requests with start_s <= arrival < start_s + duration_s, re-based to start at 0."""
    if not 0 <= start_s < np.inf:
        raise TraceError(f"start_s={start_s}: expected a number of seconds, 0 or more")
    if duration_s is not None and not duration_s > 0:
        raise TraceError(f"duration_s={duration_s}: expected more than 0 seconds")
    stop_s = np.inf if duration_s is None else start_s + duration_s

    def start() -> Iterator[Chunk]:
        for chunk in stream.chunks():
            low, high = np.searchsorted(chunk.arrival_s, [start_s, stop_s])
            part = chunk.rows(slice(int(low), int(high)))
            yield part._replace(arrival_s=part.arrival_s - start_s)
            if high < chunk.requests:
                return

    length = "" if duration_s is None else f" duration_s={duration_s:g}"
    return _made(stream, start, f"window start_s={start_s:g}{length}")


def scale(stream: TraceStream, factor: float) -> TraceStream:
    """The same requests `factor` times as fast: bursts keep their shape."""
    check_factor("factor", factor)

    def change(chunk: Chunk) -> Chunk:
        arrival_s = chunk.arrival_s / factor
        if len(arrival_s) and not arrival_s[-1] <= LATEST_S:
            raise TraceError(
                f"factor={factor:g}: requests of {stream.name} arrive up to {arrival_s[-1]:.3g} s:"
                f" expected at most {LATEST_S:.0f}"
            )
        return chunk._replace(arrival_s=arrival_s)

    return _mapped(stream, change, f"scale {factor:g}", TraceKind.SEMI_SYNTHETIC)


def retime(stream: TraceStream, rps: float) -> TraceStream:
    """Scaled in time so that the mean rate is `rps`; reads the stream once to know its own."""
    requests, span_s = extent(stream)
    if not 0 < rps < np.inf:
        raise TraceError(f"rps={rps}: expected a positive number")
    if span_s <= 0:
        raise TraceError(f"trace {stream.name} spans no time: expected two arrivals")
    scaled = scale(stream, rps * span_s / requests)
    return replace(scaled, lineage=(*stream.lineage, f"retime {rps:g} ({scaled.lineage[-1]})"))


def thin(stream: TraceStream, share: float, seed: int = 0) -> TraceStream:
    """Each request kept with probability `share`, by draws of its own."""
    if not 0 < share <= 1:
        raise TraceError(f"share={share}: expected over 0 and up to 1")
    if seed < 0:
        raise TraceError(f"seed={seed}: expected 0 or more")

    def start() -> Iterator[Chunk]:
        rng = np.random.Generator(np.random.PCG64(seed))
        for chunk in stream.chunks():
            yield chunk.rows(rng.random(chunk.requests) < share)

    return _made(stream, start, f"thin {share:g} seed={seed}", TraceKind.SEMI_SYNTHETIC)


def keep(stream: TraceStream, *models: str) -> TraceStream:
    """Only the requests of these models."""
    return _selected(stream, models, True, f"keep {' '.join(models)}")


def drop(stream: TraceStream, *models: str) -> TraceStream:
    """The requests of all models but these."""
    return _selected(stream, models, False, f"drop {' '.join(models)}")


def part(stream: TraceStream, number: int, of: int, by: str = "time") -> TraceStream:
    """Part `number` (from 1) of `of`: by=time cuts the span into equal pieces, by=model deals the
    models in turn."""
    if not 1 <= number <= of:
        raise TraceError(f"number={number}: expected 1 to {of}")
    step = f"part {number} {of} by={by}"
    if by == "model":
        mine = [name for i, name in enumerate(stream.models) if i % of == number - 1]
        return _selected(stream, mine, True, step)
    if by != "time":
        raise TraceError(f"by={by}: {nearest(by, ('time', 'model'))}")
    _, span_s = extent(stream)
    length = span_s / of
    last = number == of
    cut = window(stream, (number - 1) * length, None if last else length)
    return replace(cut, lineage=(*stream.lineage, step))


def days(stream: TraceStream, first: int, last: int) -> TraceStream:
    """Days `first` to `last` (from 0, both included), re-based to start at 0."""
    if not 0 <= first <= last:
        raise TraceError(f"first={first}: expected 0 to {last}")
    cut = window(stream, first * DAY_S, (last - first + 1) * DAY_S)
    return replace(cut, lineage=(*stream.lineage, f"days {first} {last}"))


def rename(stream: TraceStream, /, **names: str) -> TraceStream:
    """Models under new names; two under one name become one model."""
    check_models(stream, names)
    step = "rename " + " ".join(f"{old}={new}" for old, new in names.items())
    return _renamed(stream, {old: names.get(old, old) for old in stream.models}, step)


def checkpoints(stream: TraceStream, /, **shares: int) -> TraceStream:
    """Models dealt to checkpoints in turn, as NAME@CHECKPOINT: `A=6 B=2` gives six of every eight
    to A, in the order of the stream's models."""
    cycle = [name for name, count in shares.items() for _ in range(count)]
    if not cycle or min(shares.values()) < 0:
        raise TraceError("expected names with whole numbers, as Qwen3-8B=6 Qwen3-32B=2")
    names = {name: f"{name}@{cycle[i % len(cycle)]}" for i, name in enumerate(stream.models)}
    step = "checkpoints " + " ".join(f"{name}={count}" for name, count in shares.items())
    return _renamed(stream, names, step)


def clients(stream: TraceStream) -> TraceStream:
    """Each client becomes a model; reads the stream once to know them."""
    if "client" not in stream.optional:
        raise TraceError(f"trace {stream.name} has no column client")
    found: dict[str, int] = {}
    for chunk in stream.chunks():
        for name in dict.fromkeys(_clients(chunk).tolist()):
            if name is None:
                raise TraceError(f"trace {stream.name} has requests without a client")
            found.setdefault(name, len(found))

    def change(chunk: Chunk) -> Chunk:
        codes = np.array([found[name] for name in _clients(chunk).tolist()], np.int32)
        return chunk._replace(model=codes)

    made = _mapped(stream, change, "clients", TraceKind.SEMI_SYNTHETIC)
    return replace(made, models=tuple(found))


def _clients(chunk: Chunk) -> npt.NDArray[np.object_]:
    assert chunk.client is not None
    return chunk.client


def merge(stream: TraceStream, other: TraceStream, prefix: str = "") -> TraceStream:
    """Both streams' requests in order of arrival, those of `stream` first at one instant. The
    other's models get `prefix`; equal names are one model."""
    theirs = tuple(prefix + name for name in other.models)
    models = tuple(dict.fromkeys((*stream.models, *theirs)))
    codes = np.array([models.index(name) for name in theirs], np.int32)

    def recoded() -> Iterator[Chunk]:
        for chunk in other.chunks():
            yield chunk._replace(model=codes[chunk.model])

    step = f"merge {other.name}" + (f" prefix={prefix}" if prefix else "")
    return TraceStream(
        name=f"{stream.name}+{other.name}",
        kind=lower(stream.kind, other.kind, TraceKind.SEMI_SYNTHETIC),
        models=models,
        start=lambda: in_order([stream.chunks(), recoded()]),
        optional=tuple(dict.fromkeys((*stream.optional, *other.optional))),
        block_tokens=stream.block_tokens if stream.block_tokens == other.block_tokens else None,
        lineage=(*stream.lineage, f"{step} ({'; '.join(other.lineage)})"),
        licence=" AND ".join(dict.fromkeys((stream.licence, other.licence))),
    )


class _Held:
    """A stream's rows that were read and not yet given."""

    def __init__(self, chunks: Iterator[Chunk]) -> None:
        self.chunks = chunks
        self.rows: Chunk | None = None
        self.is_over = False
        self.more()

    @property
    def end_s(self) -> float:
        """No row before it is still to be read."""
        if self.is_over or self.rows is None:
            return np.inf
        return float(self.rows.arrival_s[-1])

    def more(self) -> None:
        following = next(self.chunks, None)
        if following is None:
            self.is_over = True
        else:
            self.rows = following if self.rows is None else joined([self.rows, following])

    def take(self, before_s: float) -> Chunk | None:
        if self.rows is None:
            return None
        cut = int(np.searchsorted(self.rows.arrival_s, before_s))
        taken, rest = self.rows.rows(slice(cut)), self.rows.rows(slice(cut, None))
        self.rows = rest if rest.requests else None
        return taken if taken.requests else None


def in_order(streams: Sequence[Iterator[Chunk]]) -> Iterator[Chunk]:
    """Chunks of several streams as those of one; at one instant in the order of the streams."""
    held = [_Held(chunks) for chunks in streams]
    while any(one.rows is not None for one in held):
        horizon_s = min(one.end_s for one in held)
        taken = [one.take(horizon_s) for one in held]
        parts = [part for part in taken if part is not None]
        if parts:
            whole = joined(parts)
            yield whole.rows(np.argsort(whole.arrival_s, kind="stable"))
        for one in held:
            if not one.is_over and one.end_s == horizon_s:
                one.more()


def extent(stream: TraceStream) -> tuple[int, float]:
    """Requests, and seconds from 0 to the last; reads the stream once."""
    requests, span_s = 0, 0.0
    for chunk in stream.chunks():
        requests, span_s = requests + chunk.requests, float(chunk.arrival_s[-1])
    return requests, span_s


def check_models(stream: TraceStream, names: Iterable[str]) -> None:
    for name in names:
        if name not in stream.models:
            choices = nearest(name, stream.models)
            raise TraceError(f"trace {stream.name}: no model {name!r}; {choices}")


def _made(
    stream: TraceStream,
    start: Callable[[], Iterator[Chunk]],
    step: str,
    kind: TraceKind = TraceKind.LOG,
) -> TraceStream:
    """The stream with other rows; `kind` is the best it can be after the step."""
    lineage = (*stream.lineage, step)
    return replace(stream, start=start, lineage=lineage, kind=lower(stream.kind, kind))


def _mapped(
    stream: TraceStream, change: Callable[[Chunk], Chunk], step: str, kind: TraceKind
) -> TraceStream:
    def start() -> Iterator[Chunk]:
        yield from map(change, stream.chunks())

    return _made(stream, start, step, kind)


def _selected(stream: TraceStream, names: Sequence[str], is_kept: bool, step: str) -> TraceStream:
    check_models(stream, names)
    wanted = np.array([(name in set(names)) == is_kept for name in stream.models])
    left = tuple(name for name, is_in in zip(stream.models, wanted, strict=True) if is_in)
    if not left:
        raise TraceError(f"trace {stream.name}: no model is left after: {step}")
    number = (np.cumsum(wanted) - 1).astype(np.int32)

    def start() -> Iterator[Chunk]:
        for chunk in stream.chunks():
            rows = chunk.rows(wanted[chunk.model])
            yield rows._replace(model=number[rows.model])

    return replace(_made(stream, start, step), models=left)


def _renamed(stream: TraceStream, names: Mapping[str, str], step: str) -> TraceStream:
    new = tuple(dict.fromkeys(names[old] for old in stream.models))
    codes = np.array([new.index(names[old]) for old in stream.models], np.int32)

    def change(chunk: Chunk) -> Chunk:
        return chunk._replace(model=codes[chunk.model])

    return replace(_mapped(stream, change, step, TraceKind.LOG), models=new)
