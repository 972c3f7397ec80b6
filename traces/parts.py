"""The parts of a trace: train is learned from, validation chooses, test judges.

They never mix. The parts of a known file are those of its split (conf/splits): days, clients and
families. Any other trace is cut by time. Where a trace comes from is read off its lineage, so a
file composed from a known one is held to that one's split.
"""

import re
from dataclasses import replace
from math import inf
from pathlib import Path
from typing import NamedTuple

from traces import steps
from traces.errors import UserError
from traces.source import TraceSource, open_stream, open_trace
from traces.splits import Part, Split, load_split, runs, split_names, split_of
from traces.stream import TraceStream, collect
from traces.trace import Trace, lower
from traces.warp import DAY_S

SHARES = (0.6, 0.2)  # of a trace's span for train and validation; the rest is for test
MARK = re.compile(r"split (\S+) (train|validation|test) days")


class Parts(NamedTuple):
    """No request is in two. `rule` says how they were told apart."""

    train: Trace
    validation: Trace
    test: Trace
    rule: str

    def of(self, part: Part) -> Trace:
        found: Trace = getattr(self, part.value)
        return found


def open_parts(source: TraceSource, shares: tuple[float, float] = SHARES) -> Parts:
    """All three. Raises UserError for a trace that has no train part, or lacks another."""
    split = split_of(_file(source))
    if split is None:
        return cut_parts(open_trace(source), shares)
    rule = "" if split.days is None else f", days {_listed(split.days[Part.TRAIN])} for train"
    train, validation, test = (_of_split(source, split, part) for part in Part)
    return Parts(train, validation, test, f"split {split.name}: by client and day{rule}")


def open_part(
    source: TraceSource, part: Part = Part.TRAIN, shares: tuple[float, float] = SHARES
) -> Trace:
    """Raises UserError for a trace that has none of it."""
    split = split_of(_file(source))
    if split is not None:
        return _of_split(source, split, part)
    trace = open_trace(source)
    if held(trace) - {Part.TRAIN} == {part}:
        return trace  # a composed file of that part alone
    return cut_parts(trace, shares).of(part)


def cut_parts(trace: Trace, shares: tuple[float, float] = SHARES) -> Parts:
    """Three consecutive parts; models keep their numbers. Raises UserError for a trace made from
    what is not for training, and when a part is empty."""
    check_part(trace, Part.TRAIN)
    first, second = shares
    if not 0 < first < 1 or not 0 < second < 1 - first:
        raise UserError(f"shares={list(shares)}: expected positive ones that leave time for test")
    marks, span_s = (0.0, first, first + second, 1.0), trace.span_s + 1e-6
    found = []
    for part, begin, end in zip(Part, marks[:-1], marks[1:], strict=True):
        piece = trace.window(begin * span_s, (end - begin) * span_s, keep_models=True)
        if piece.requests == 0:
            raise UserError(f"trace {trace.name}: no request in the {part} part: expected a longer")
        found.append(piece)
    rule = f"by time: the first {first:.0%} for train, the next {second:.0%} for validation"
    train, validation, test = found
    return Parts(train, validation, test, rule)


def check_part(trace: Trace, part: Part) -> None:
    """Raises UserError for a trace that holds requests which a split keeps for another part."""
    for split, file in _mentioned(trace):
        others = sorted(_parts_of(trace, split) - {part})
        if others:
            step = f"; compose it with the step 'split {split.name} {part} {file}'"
            raise UserError(
                f"trace {trace.name} holds {' and '.join(others)} of {file}:"
                f" {_allowance(split, file, part)}{'' if split.only else step}"
            )


def held(trace: Trace) -> set[Part]:
    """The parts of known files that a trace has requests of; empty for a user's own."""
    found: set[Part] = set()
    for split, _ in _mentioned(trace):
        found |= _parts_of(trace, split)
    return found


def _mentioned(trace: Trace) -> list[tuple[Split, str]]:
    """Known files that the trace's name or lineage names."""
    text = " ".join((trace.name, *trace.lineage))
    return [
        (split, file)
        for split in map(load_split, split_names())
        for file in split.files
        if re.search(rf"(?<![\w-]){re.escape(file)}(?![\w-])", text)
    ]


def _parts_of(trace: Trace, split: Split) -> set[Part]:
    if split.only is not None:
        return {split.only}
    marks = MARK.findall(" ".join(trace.lineage))
    return {Part(part) for name, part in marks if name == split.name} or set(Part)


def _file(source: TraceSource) -> str:
    return source.name if source.path is None else Path(source.path).stem


def _of_split(source: TraceSource, split: Split, part: Part) -> Trace:
    """The part's longest run of days within the source's window."""
    file = _file(source)
    where = f"trace.name={file}" if source.path is None else f"trace.path={source.path}"
    if split.only is not None:
        if split.only is not part:
            raise UserError(f"{where}: {_allowance(split, file, part)}")
        return open_trace(source)
    whole = open_stream(replace(source, start_s=0.0, duration_s=None, rate_scale=1.0))
    found = _within(source, split, split.select(whole, part, file), file)
    if found is None:
        raise UserError(f"{where}{_window(source)}: {_allowance(split, file, part)}")
    trace = collect(found)
    return replace(trace, kind=lower(trace.kind, source.kind)).scale_rate(source.rate_scale)


def _within(
    source: TraceSource, split: Split, cuts: list[TraceStream], file: str
) -> TraceStream | None:
    stop_s = inf if source.duration_s is None else source.start_s + source.duration_s
    best, longest_s = None, 0.0
    for cut in cuts:
        low, high = map(int, cut.lineage[-1].split()[-2:])
        origin_s = (low - split.first_day(file)) * DAY_S
        begin_s = max(0.0, source.start_s - origin_s)
        end_s = min((high - low + 1) * DAY_S, stop_s - origin_s)
        if end_s - begin_s > longest_s:
            best, longest_s = steps.window(cut, begin_s, end_s - begin_s), end_s - begin_s
    return best


def _allowance(split: Split, file: str, part: Part) -> str:
    """What a split allows for a part: the tail of a message."""
    if split.only is not None:
        return f"split {split.name} allows {file} for {split.only} only: expected no use for {part}"
    days = {p: _listed(numbers) for p, numbers in (split.days or {}).items()}
    allowed = ", ".join(f"{days[p]} for {p}" for p in days)
    return (
        f"split {split.name} allows days {allowed} ({file} starts at day {split.first_day(file)}):"
        f" expected days and clients for {part}"
    )


def _listed(days: object) -> str:
    pairs = runs(list(days))  # type: ignore[call-overload]
    return " and ".join(f"{low}-{high}" if low < high else f"{low}" for low, high in pairs)


def _window(source: TraceSource) -> str:
    length = "" if source.duration_s is None else f" trace.duration_s={source.duration_s:g}"
    return f" trace.start_s={source.start_s:g}{length}" if source.start_s or length else ""
