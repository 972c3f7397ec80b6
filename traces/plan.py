"""`Plan`: which columns of a file are read as what, and which of its rows are requests."""

import difflib
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from traces.errors import LISTED, Origin, TraceError, nearest
from traces.formats.format import Derive, Format
from traces.formats.own import OWN_FORMAT
from traces.mapping import ColumnMap, TimeUnit
from traces.rows import plain
from traces.schema import COLUMNS, REQUIRED
from traces.table import Role, TableFile

ROLES = {
    "arrival_s": Role.TIME,
    "model": Role.NAME,
    "prompt_tokens": Role.NUMBER,
    "output_tokens": Role.NUMBER,
    "session": Role.LABEL,
    "client": Role.LABEL,
    "priority": Role.NUMBER,
    "prefix_blocks": Role.BLOCKS,
}
HINTS = {  # parts of names that other files use
    "arrival_s": ("arriv", "timestamp", "start", "created", "time", "date", "ts"),
    "model": ("model", "deployment", "engine", "service"),
    "prompt_tokens": ("prompt", "input", "context", "request_tok", "in_tok"),
    "output_tokens": ("completion", "output", "generated", "response_tok", "out_tok"),
}
REMEMBERED = 1000  # values of the column of `where`, for the message that lists them


@dataclass(slots=True)
class Plan:
    """`rows` gives the requests' rows; then `left_out` tells how many it did not give."""

    path: Path
    form: Format
    names: ColumnMap
    where: str | None = None
    keeps_zero: bool = False  # arrivals count from the trace's start
    failed: int = 0
    empty: int = 0
    seen: int = 0
    values: set[str] = field(default_factory=set)

    @property
    def zero(self) -> float | None:
        """Where the clock starts; None: at the first request."""
        return 0.0 if self.keeps_zero else None

    @property
    def roles(self) -> dict[str, Role]:
        """The columns to read from the file, each once."""
        found: dict[str, Role] = {}
        for name, column in self.names.named.items():
            for part in self.form.derived.get(column, (column,)):
                found[part] = ROLES[name]
        for column in (*self.form.failed, *([self._where[0]] if self.where else [])):
            found.setdefault(column, Role.ANY)
        return found

    @property
    def _where(self) -> tuple[str, str]:
        column, _, value = (self.where or "").partition("=")
        return column, value

    def rows(self, file: TableFile) -> Iterator[tuple[pa.Table, Origin]]:
        """Chunks of at least one row, each with the numbers of its rows in the file."""
        derive = self.form.derive() if self.form.derive and self.form.derived else None
        for table, first in file.chunks(self.roles):
            self.seen += len(table)
            if derive is not None:
                table = self._derived(derive, table)
            kept = self._kept(table)
            if kept is None:
                yield table, Origin(str(self.path), range(first, first + len(table)))
            elif len(kept):
                yield table.take(kept), Origin(str(self.path), (kept + first).tolist())

    def _kept(self, table: pa.Table) -> npt.NDArray[np.intp] | None:
        """The rows that are requests; None: all."""
        fine = np.ones(len(table), bool)
        if self.where:
            fine &= self._matching(table)
        for column, values in self.form.failed.items():
            texts = self._texts(table, column)
            served = ~np.asarray(pc.is_in(texts, pa.array(sorted(values))))
            self.failed += int((fine & ~served).sum())
            fine &= served
        if self.names.drop_empty:
            full = ~self._empty(table)
            self.empty += int((fine & ~full).sum())
            fine &= full
        return None if fine.all() else np.flatnonzero(fine)

    def _matching(self, table: pa.Table) -> npt.NDArray[np.bool_]:
        column, value = self._where
        texts = self._texts(table, column)
        if len(self.values) < REMEMBERED:
            self.values.update(v for v in pc.unique(texts).to_pylist() if v is not None)
        return np.asarray(pc.fill_null(pc.equal(texts, value), False))

    def _texts(self, table: pa.Table, column: str) -> pa.ChunkedArray:
        try:
            return pc.cast(table[column], pa.string())
        except pa.ArrowException:
            kind = table[column].type
            raise TraceError(
                f"{self.path}: column {column} is {kind}: expected text or numbers"
            ) from None

    def _derived(self, derive: Derive, table: pa.Table) -> pa.Table:
        """The table with the columns that the format makes, of texts only."""
        for column in {part for parts in self.form.derived.values() for part in parts}:
            place = table.column_names.index(column)
            table = table.set_column(place, column, self._texts(table, column))
        return derive(table)

    def _empty(self, table: pa.Table) -> npt.NDArray[np.bool_]:
        """Rows without prompt or output tokens: failed calls, embeddings."""
        names = self.names.named
        parts = [_is_zero(table[names[c]]) for c in ("prompt_tokens", "output_tokens")]
        return parts[0] | parts[1]

    @property
    def step(self) -> str:
        """The reading as a step of the lineage."""
        known = "" if self.form.name == OWN_FORMAT.name else f" as {self.form.name}"
        return f"read {self.path.name}{known}" + (f" where {self.where}" if self.where else "")

    def left_out(self) -> list[str]:
        """The rows that are no requests, as steps of the lineage."""
        counts = ((self.failed, "that failed"), (self.empty, "without tokens"))
        return [f"left out {n} rows {what}" for n, what in counts if n]

    def nothing(self) -> TraceError:
        """Why there is no request."""
        if self.where and not self.failed and not self.empty and self.seen:
            return TraceError(f"{self.path}: no row has {self.where}; {self._nearest_value()}")
        if self.seen:
            return TraceError(
                f"{self.path}: no requests among {self.seen} rows: {self.failed} failed,"
                f" {self.empty} without tokens"
            )
        return Origin(str(self.path)).empty()

    def _nearest_value(self) -> str:
        return nearest(self._where[1], self.values)


def planned(
    file: TableFile, path: Path, form: Format | None, user: ColumnMap, where: str | None
) -> Plan:
    """Raises TraceError for columns that are not there, or are there twice."""
    _check_user(file.names, user, path)
    form = form or _unknown(file.names)
    names = user.over(form.columns)
    if user.arrival_s is not None:
        names = replace(names, unit=user.unit)
    there = {*file.names, *(c for c, parts in form.derived.items() if {*parts} <= {*file.names})}
    absent = [c for c, column in names.named.items() if column not in there]
    missing = [c for c in REQUIRED.names if c in absent or getattr(names, c) is None]
    if names.model_name is not None or (form.columns.model is None and user.model is None):
        missing = [c for c in missing if c != "model"]
    if missing:
        raise TraceError(f"{path}: {_unmapped(missing, file.names)}")
    nothing: dict[str, Any] = dict.fromkeys(absent)
    names = replace(names, **nothing)
    failed = {c: values for c, values in form.failed.items() if c in file.names}
    derived = {c: parts for c, parts in form.derived.items() if c in names.named.values()}
    keeps_zero = form.keeps_zero and user.arrival_s is None and user.unit is TimeUnit.AUTO
    plan = Plan(path, replace(form, failed=failed, derived=derived), names, where, keeps_zero)
    _check_once(file.names, plan, path)
    return plan


def _unknown(names: list[str]) -> Format:
    """A format for what only the user's map knows: the trace's own names where they are there."""
    own = {c: c for c in COLUMNS if c in names or c in REQUIRED.names}
    return Format(name="mapped", columns=ColumnMap(**own))


def _check_user(names: list[str], user: ColumnMap, path: Path) -> None:
    for name, column in user.named.items():
        if column not in names:
            raise TraceError(
                f"{path}: trace.map.{name}={column}: no such column; {nearest(column, names)}"
            )


def _check_once(names: list[str], plan: Plan, path: Path) -> None:
    if plan.where:
        column = plan.where.partition("=")[0]
        if "=" not in plan.where:
            raise TraceError(f"trace.where={plan.where!r}: expected column=value")
        if names.count(column) != 1:
            raise TraceError(
                f"{path}: trace.where={plan.where!r}: no one column {column!r};"
                f" {nearest(column, names)}"
            )
    for column in plan.roles:
        if names.count(column) > 1:
            raise TraceError(f"{path}: column {column!r} is there {names.count(column)} times")


def _unmapped(missing: list[str], names: list[str]) -> str:
    """The columns found, and how to say which is which."""
    listed = ", ".join(names[:LISTED]) + (", ..." if len(names) > LISTED else "")
    maps = " ".join(f"trace.map.{c}={_guess(c, names) or 'COLUMN'}" for c in missing)
    return f"no column for {', '.join(missing)}; found: {listed}; name them, as {maps}"


def _guess(column: str, names: list[str]) -> str | None:
    """A column that may be meant."""
    close = difflib.get_close_matches(column, names, n=1)
    hinted = [name for hint in HINTS[column] for name in names if hint in name.lower()]
    return next(iter([*close, *hinted]), None)


def _is_zero(values: pa.ChunkedArray) -> npt.NDArray[np.bool_]:
    """Rows whose number is 0, or that have none."""
    values = plain(values)
    zero = np.asarray(pc.is_null(values, nan_is_null=True))
    if pa.types.is_string(values.type):
        zero |= np.asarray(pc.is_in(pc.utf8_trim_whitespace(values), pa.array(["0", "0.0", ""])))
    elif pa.types.is_integer(values.type) or pa.types.is_floating(values.type):
        zero |= np.asarray(pc.fill_null(pc.equal(values, 0), True))
    return zero
