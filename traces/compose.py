"""`compose`: a trace from steps written as lines of text, in order.

    read gateway.parquet           or `market NAME`, or `servegen RATES LENGTHS` of client tables
    keep llama-70b qwen-7b         see STEPS for all, and the functions in `traces.steps`
    thin 0.5 seed=1
    merge other.parquet prefix=b-
    retime 6.4

A line is a step's name, its values in order, and key=value for the others.
"""

import inspect
import shlex
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args, get_type_hints

from traces import steps
from traces.bundled import RECIPES, stream_bundled
from traces.client_market import ClientMarket, client_stream
from traces.errors import TraceError, UserError, nearest
from traces.market import market_stream
from traces.parquet_stream import is_ours, stream_parquet
from traces.reading import read
from traces.splits import Part, load_split
from traces.stream import TraceStream, of_trace

Step = Callable[..., TraceStream]


def read_step(path: str, where: str | None = None) -> TraceStream:
    """A file: one of ours chunk by chunk, others in memory."""
    file = Path(path)
    return stream_parquet(file, where) if is_ours(file) else of_trace(read(file, where))


def market_step(
    name: str,
    seed: int | None = None,
    duration_s: float | None = None,
    rate_rps: float | None = None,
) -> TraceStream:
    """A named market, with another seed, length or rate if given."""
    if name not in RECIPES:
        raise TraceError(f"name={name}: no such market; {nearest(name, RECIPES)}")
    changes = {"seed": seed, "duration_s": duration_s, "rate_rps": rate_rps}
    given: dict[str, Any] = {key: value for key, value in changes.items() if value is not None}
    return market_stream(replace(RECIPES[name], **given)) if given else stream_bundled(name)


def servegen_step(
    rates: str,
    lengths: str,
    first_day: int = 0,
    days: int = 1,
    pools: str = "",
    models: str = "",
    correlation: float = 0.0,
    seed: int = 0,
) -> TraceStream:
    """A market from ServeGen's client tables; pools and models as a,b."""
    return client_stream(
        ClientMarket(
            rates=rates,
            lengths=lengths,
            first_day=first_day,
            days=days,
            pools=tuple(filter(None, pools.split(","))),
            models=tuple(filter(None, models.split(","))),
            correlation=correlation,
            seed=seed,
        )
    )


def merge_step(stream: TraceStream, path: str, prefix: str = "") -> TraceStream:
    return steps.merge(stream, read_step(path), prefix)


def split_step(stream: TraceStream, name: str, part: str, file: str = "") -> TraceStream:
    """The part of a known split; `file` is the stream's name unless given."""
    if part not in list(Part):
        raise TraceError(f"part={part}: {nearest(part, [one.value for one in Part])}")
    found = load_split(name).select(stream, Part(part), file or stream.name)
    if len(found) != 1:
        raise TraceError(f"{len(found)} runs of days: expected one; see conf/splits/{name}.yaml")
    return found[0]


SOURCES: dict[str, Step] = {"read": read_step, "market": market_step, "servegen": servegen_step}
STEPS: dict[str, Step] = {
    "window": steps.window,
    "days": steps.days,
    "part": steps.part,
    "keep": steps.keep,
    "drop": steps.drop,
    "thin": steps.thin,
    "scale": steps.scale,
    "retime": steps.retime,
    "rename": steps.rename,
    "clients": steps.clients,
    "checkpoints": steps.checkpoints,
    "merge": merge_step,
    "split": split_step,
}


def compose(lines: Sequence[str], given: TraceStream | None = None) -> TraceStream:
    """The trace that the steps make, from `given` where the first step is no source. All lines are
    checked before a file is read. Raises UserError naming the step that cannot be."""
    calls = [_parsed(number, line) for number, line in enumerate(lines, 1)]
    stream = given
    for number, (line, (step, values, options)) in enumerate(zip(lines, calls, strict=True), 1):
        is_source = step in SOURCES.values()
        if is_source and number > 1:
            raise _error(number, line, "expected as the first step; merge adds a file to others")
        if not is_source and stream is None:
            raise _error(number, line, f"expected a source before it: {', '.join(SOURCES)}")
        before = () if is_source else (stream,)
        try:
            stream = step(*before, *values, **options)
        except UserError as error:
            raise _error(number, line, str(error)) from None
    if stream is None:
        raise UserError("steps=[]: expected at least one, as 'read log.parquet'")
    return stream


def _parsed(number: int, line: str) -> tuple[Step, list[Any], dict[str, Any]]:
    try:
        words = shlex.split(line)
    except ValueError as error:
        raise _error(number, line, str(error)) from None
    known = SOURCES | STEPS
    if not words or words[0] not in known:
        raise _error(number, line, f"no such step; {nearest(words[0] if words else '', known)}")
    try:
        return (known[words[0]], *_arguments(known[words[0]], words[0], words[1:]))
    except UserError as error:
        raise _error(number, line, str(error)) from None


def _arguments(step: Step, name: str, words: list[str]) -> tuple[list[Any], dict[str, Any]]:
    """The words as the step's parameters want them. Raises UserError."""
    kinds = get_type_hints(step)
    parameters = [p for p in inspect.signature(step).parameters.values() if p.name != "stream"]
    plain = [p for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD]
    rest = next((p for p in parameters if p.kind is p.VAR_POSITIONAL), None)
    free = next((p for p in parameters if p.kind is p.VAR_KEYWORD), None)
    values: list[Any] = []
    options: dict[str, Any] = {}
    for word in words:
        key, equals, value = word.partition("=")
        if equals and (free is not None or key in {p.name for p in plain}):
            options[key] = _value(kinds[free.name if free else key], key, value)
        elif equals and rest is None:
            raise UserError(f"{key}: unknown key; {nearest(key, [p.name for p in plain])}")
        elif len(values) < len(plain):
            at = plain[len(values)]
            values.append(_value(kinds[at.name], at.name, word))
        elif rest is not None:
            values.append(word)
        else:
            raise UserError(f"{word}: one value too many; expected {usage(name, step)}")
    given = {p.name for p in plain[: len(values)]} | set(options)
    if any(p.default is p.empty and p.name not in given for p in plain):
        raise UserError(f"expected {usage(name, step)}")
    if (rest is not None and not values) or (free is not None and not options):
        raise UserError(f"expected {usage(name, step)}")
    if twice := sorted({p.name for p in plain[: len(values)]} & set(options)):
        raise UserError(f"{twice[0]}: given twice")
    return values, options


def usage(name: str, step: Step) -> str:
    """How a step is written: 'thin SHARE [seed=0]'."""
    words = [name]
    for p in inspect.signature(step).parameters.values():
        if p.name == "stream":
            continue
        if p.kind is p.VAR_POSITIONAL:
            words.append(f"{p.name.rstrip('s').upper()}...")
        elif p.kind is p.VAR_KEYWORD:
            words.append(f"NAME={p.name.rstrip('s').upper()}...")
        elif p.default is p.empty:
            words.append(p.name.upper())
        else:
            words.append(f"[{p.name}={'' if p.default is None else p.default}]")
    return " ".join(words)


def _value(kind: Any, key: str, text: str) -> Any:
    """`text` as the parameter's type."""
    kind = next((k for k in get_args(kind) if k is not type(None)), kind)
    if kind is str:
        return text
    try:
        return kind(text)
    except ValueError:
        what = "a whole number" if kind is int else "a number"
        raise UserError(f"{key}={text}: expected {what}") from None


def _error(number: int, line: str, reason: str) -> UserError:
    return UserError(f"step {number} {line!r}: {reason}")
