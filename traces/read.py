"""`read`: a trace from a Parquet, CSV or JSONL file, validated as a whole."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from traces import columns
from traces.csv_table import read_csv
from traces.errors import Origin, TraceError, nearest, shown
from traces.jsonl_table import read_jsonl
from traces.parquet_table import read_parquet
from traces.schema import OPTIONAL, REQUIRED
from traces.trace import Trace, TraceKind

READERS: dict[str, Callable[[Path], pa.Table]] = {
    ".parquet": read_parquet,
    ".csv": read_csv,
    ".jsonl": read_jsonl,
}


def read(path: str | Path, where: str | None = None) -> Trace:
    """The trace in `path`; `where="column=value"` keeps the rows with that value.

    Raises TraceError: one line that names the file, the row (1-based), the column and the value.
    """
    path = Path(path)
    if not path.is_file():
        what = "a folder: expected a file" if path.is_dir() else "no such file"
        raise TraceError(f"{path}: {what}")
    reader = READERS.get(path.suffix.lower())
    if reader is None:
        raise TraceError(f"{path}: unknown format {path.suffix!r}; {nearest(path.suffix, READERS)}")
    try:
        table = reader(path)
    except OSError as error:
        raise TraceError(f"{path}: cannot be read: {error.strerror}") from None
    _require_columns(table, path)
    origin = Origin(str(path))
    if table.num_rows == 0:
        raise origin.empty()
    if where:
        table, origin = _filtered(table, where, path)
    return _to_trace(table, origin, path, where)


def _require_columns(table: pa.Table, path: Path) -> None:
    names = table.column_names
    for column in REQUIRED.names:
        if column not in names:
            raise TraceError(f"{path}: column {column!r} is missing; {nearest(column, names)}")
    for column in (*REQUIRED.names, *OPTIONAL.names):
        if names.count(column) > 1:
            raise TraceError(f"{path}: column {column!r} is there {names.count(column)} times")


def _filtered(table: pa.Table, where: str, path: Path) -> tuple[pa.Table, Origin]:
    """The rows that `where` keeps, and which rows of the file they are."""
    column, equals, value = where.partition("=")
    if not equals:
        raise TraceError(f"trace.where={where!r}: expected column=value")
    if table.column_names.count(column) != 1:
        choices = nearest(column, table.column_names)
        raise TraceError(f"{path}: trace.where={where!r}: no one column {column!r}; {choices}")
    try:
        values = pc.cast(table[column], pa.string())
    except pa.ArrowException:
        kind = table[column].type
        raise TraceError(f"{path}: trace.where={where!r}: column {column} is {kind}") from None
    kept = pc.fill_null(pc.equal(values, value), False)
    if not pc.any(kept).as_py():
        choices = nearest(value, [v for v in pc.unique(values).to_pylist() if v is not None])
        raise TraceError(f"{path}: no row has {where}; {choices}")
    return table.filter(kept), Origin(str(path), np.flatnonzero(kept.to_numpy()).tolist())


def _to_trace(table: pa.Table, origin: Origin, path: Path, where: str | None) -> Trace:
    metadata = table.schema.metadata or {}
    stated = {k.decode(errors="replace"): v.decode(errors="replace") for k, v in metadata.items()}
    name = stated.get("name", path.stem)
    arrival_s = columns.arrivals(table, origin)
    model, models = columns.models(table, origin)
    return Trace(
        name=f"{name}[{where}]" if where else name,
        kind=_kind(stated, path),
        models=models,
        model=model,
        arrival_s=arrival_s,
        prompt_tokens=columns.tokens(table, "prompt_tokens", origin),
        output_tokens=columns.tokens(table, "output_tokens", origin),
        session=columns.labels(table, "session", origin),
        client=columns.labels(table, "client", origin),
        priority=columns.priorities(table, origin),
        lineage=_lineage(stated.get("lineage", "[]"), path.name, where),
        licence=stated.get("licence", stated.get("license", "not stated")),
    )


def _kind(stated: dict[str, str], path: Path) -> TraceKind:
    """As the metadata say, in `kind` or as the first word of `note`; else a user's own log."""
    if "kind" not in stated:
        first = stated.get("note", "").partition(":")[0]
        return TraceKind(first) if first in list(TraceKind) else TraceKind.LOG
    try:
        return TraceKind(stated["kind"])
    except ValueError:
        choices = nearest(stated["kind"], [kind.value for kind in TraceKind])
        raise TraceError(f"{path}: metadata kind is {shown(stated['kind'])}; {choices}") from None


def _lineage(stated: str, file: str, where: str | None) -> tuple[str, ...]:
    try:
        steps = json.loads(stated)
    except (ValueError, RecursionError):
        steps = [stated]
    steps = steps if isinstance(steps, list) else [stated]
    step = f"read {file}" + (f" where {where}" if where else "")
    return (*map(str, steps), step)
