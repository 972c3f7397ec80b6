"""`Trace`: a workload as struct-of-arrays. N requests, M models."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any

import numpy as np
import numpy.typing as npt

from traces.digest import Digest
from traces.errors import Origin, TraceError, nearest, shown
from traces.prefix import PrefixBlocks

LATEST_S = 4e9  # the pool's clock is int64 nanoseconds; seconds since 1970 still fit
LARGEST_FACTOR = 1e9  # of a change of speed: times keep their order
MOST_TOKENS = 2**31 - 1
COLUMNS = (
    "model",
    "arrival_s",
    "prompt_tokens",
    "output_tokens",
    "session",
    "client",
    "priority",
    "prefix_blocks",
)


class TraceKind(StrEnum):
    """How far from production it is; a derived trace never ranks above its source."""

    LOG = "log"
    SEMI_SYNTHETIC = "semi-synthetic"
    SYNTHETIC = "synthetic"


def lower(*kinds: TraceKind) -> TraceKind:
    """The kind furthest from production."""
    return max(kinds, key=list(TraceKind).index)


def check_factor(key: str, factor: float) -> None:
    """Raises TraceError for what no trace can be sped up by."""
    if not (np.isfinite(factor) and factor > 0):
        raise TraceError(f"{key}={factor}: expected a positive number")
    if factor > LARGEST_FACTOR:
        raise TraceError(f"{key}={factor}: expected at most {LARGEST_FACTOR:g}")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Trace:
    """N requests in order of arrival. `model` [N] indexes `models`, which are in order of first
    appearance. Token counts are at least 1. Optional columns are None when the source has none."""

    name: str
    kind: TraceKind
    models: tuple[str, ...]
    model: npt.NDArray[np.int32]
    arrival_s: npt.NDArray[np.float64]
    prompt_tokens: npt.NDArray[np.int32]
    output_tokens: npt.NDArray[np.int32]
    session: npt.NDArray[np.object_] | None = None
    client: npt.NDArray[np.object_] | None = None
    priority: npt.NDArray[np.int8] | None = None
    prefix_blocks: PrefixBlocks | None = None
    lineage: tuple[str, ...] = ()
    licence: str = "not stated"

    def __post_init__(self) -> None:
        validate(self)

    @property
    def requests(self) -> int:
        return len(self.arrival_s)

    @property
    def span_s(self) -> float:
        """Seconds from 0 to the last arrival."""
        return float(self.arrival_s[-1]) if self.requests else 0.0

    @property
    def rate_rps(self) -> float:
        return self.requests / self.span_s if self.span_s > 0 else 0.0

    @property
    def sha256(self) -> str:
        """Hash of the required columns: the same on every machine and in every file format."""
        digest = Digest(self.models)
        digest.add(self.arrival_s, self.model, self.prompt_tokens, self.output_tokens)
        return digest.hex

    def rows(self, index: npt.NDArray[np.intp] | slice, *, keep_models: bool = False) -> "Trace":
        """The requests at `index`; models are numbered again unless `keep_models`."""
        columns = self._columns(index)
        if not keep_models:
            columns["model"], columns["models"] = renumbered(columns["model"], self.models)
        return replace(self, **columns)

    def _columns(self, index: npt.NDArray[np.intp] | slice) -> dict[str, Any]:
        """Every column that the trace has, at `index`."""
        whole = {name: getattr(self, name) for name in COLUMNS}
        return {name: column[index] for name, column in whole.items() if column is not None}

    def window(
        self, start_s: float, duration_s: float | None, *, keep_models: bool = False
    ) -> "Trace":
        """Requests with start_s <= arrival < start_s + duration_s, re-based to start at 0."""
        if not 0 <= start_s < np.inf:
            raise TraceError(f"trace.start_s={start_s}: expected a number of seconds, 0 or more")
        if duration_s is not None and not duration_s > 0:
            raise TraceError(f"trace.duration_s={duration_s}: expected more than 0 seconds")
        stop_s = np.inf if duration_s is None else start_s + duration_s
        low, high = np.searchsorted(self.arrival_s, [start_s, stop_s])
        cut = self.rows(slice(int(low), int(high)), keep_models=keep_models)
        step = f"window start_s={start_s:g} duration_s={stop_s - start_s:g}"
        return replace(cut, arrival_s=cut.arrival_s - start_s, lineage=(*self.lineage, step))

    def scale_rate(self, factor: float) -> "Trace":
        """The same requests `factor` times as fast: compressed time, bursts keep their shape, and a
        log is one no more."""
        check_factor("trace.rate_scale", factor)
        if factor == 1:
            return self
        return replace(
            self,
            arrival_s=self.arrival_s / factor,
            kind=lower(self.kind, TraceKind.SEMI_SYNTHETIC),
            lineage=(*self.lineage, f"rate_scale {factor:g}"),
        )

    def head(self, n: int) -> "Trace":
        return replace(self.rows(slice(n)), lineage=(*self.lineage, f"head {n}"))

    def select_models(self, names: Sequence[str]) -> "Trace":
        """Only the requests of these models."""
        for name in names:
            if name not in self.models:
                raise TraceError(
                    f"trace {self.name}: no model {name!r}; {nearest(name, self.models)}"
                )
        wanted = np.array([name in set(names) for name in self.models])
        kept = self.rows(np.flatnonzero(wanted[self.model]))
        return replace(kept, lineage=(*self.lineage, f"models {', '.join(names)}"))

    def repeat(self, times: int, period_s: float | None = None) -> "Trace":
        """The trace played `times` times in a row, each `period_s` after the last (its span)."""
        period = self.span_s if period_s is None else period_s
        if times < 1:
            raise TraceError(f"trace.repeat={times}: expected 1 or more")
        if not self.span_s - (self.arrival_s[0] if self.requests else 0.0) <= period < np.inf:
            raise TraceError(
                f"trace.period_s={period}: expected the span of {self.span_s:g} s or more"
            )
        columns = self._columns(np.tile(np.arange(self.requests), times))
        shift = np.repeat(np.arange(times) * period, self.requests)
        step = f"repeat {times} every {period:g} s"
        columns["arrival_s"] = columns["arrival_s"] + shift
        return replace(self, **columns, lineage=(*self.lineage, step))


def renumbered(
    model: npt.NDArray[np.int32], models: tuple[str, ...]
) -> tuple[npt.NDArray[np.int32], tuple[str, ...]]:
    """Model indices and names in order of first appearance, without the absent ones."""
    present, first = np.unique(model, return_index=True)
    order = present[np.argsort(first)]
    number = np.full(len(models), -1, np.int32)
    number[order] = np.arange(len(order), dtype=np.int32)
    return number[model], tuple(models[i] for i in order)


def validate(trace: Trace) -> None:
    """Raises TraceError at the first row that is not valid."""
    origin = Origin(f"trace {trace.name}")
    for column, dtype in (("arrival_s", "f8"), ("model", "i4")):
        if getattr(trace, column).dtype != np.dtype(dtype):
            raise TraceError(f"{origin.name}: {column} is {getattr(trace, column).dtype}")
    for column in COLUMNS:
        values = getattr(trace, column)
        if values is not None and len(values) != trace.requests:
            raise TraceError(
                f"{origin.name}: {column} has {len(values)} rows, not {trace.requests}"
            )
    for row in np.flatnonzero((trace.model < 0) | (trace.model >= len(trace.models)))[:1]:
        expected = f"an index below {len(trace.models)}"
        raise origin.error(int(row), "model", int(trace.model[row]), expected)
    check_arrivals(trace.arrival_s, origin)
    check_tokens(trace.prompt_tokens, origin, "prompt_tokens")
    check_tokens(trace.output_tokens, origin, "output_tokens")


def check_arrivals(arrival_s: npt.NDArray[np.float64], origin: Origin) -> None:
    fine = (arrival_s >= 0) & (arrival_s <= LATEST_S)
    for row in np.flatnonzero(~fine)[:1]:
        expected = f"a number of seconds from 0 to {LATEST_S:.0f}"
        raise origin.error(int(row), "arrival_s", float(arrival_s[row]), expected)
    for row in np.flatnonzero(np.diff(arrival_s) < 0)[:1]:
        before = shown(float(arrival_s[row]))
        expected = f"{before} or more, as in the row before; sort the file by arrival_s"
        raise origin.error(int(row) + 1, "arrival_s", float(arrival_s[row + 1]), expected)


def check_tokens(
    tokens: npt.NDArray[np.int32] | npt.NDArray[np.float64], origin: Origin, column: str
) -> None:
    fine = (tokens >= 1) & (tokens <= MOST_TOKENS) & (tokens == np.floor(tokens))
    for row in np.flatnonzero(~fine)[:1]:
        expected = f"a whole number of tokens, from 1 to {MOST_TOKENS}"
        raise origin.error(int(row), column, tokens[row].item(), expected)
