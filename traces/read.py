"""`read`: a trace from a Parquet, CSV or JSONL file, validated as a whole."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from traces.csv_table import read_csv
from traces.errors import TraceError, nearest
from traces.jsonl_table import read_jsonl
from traces.parquet_table import read_parquet
from traces.schema import OPTIONAL, REQUIRED
from traces.trace import Trace, TraceKind, check_arrivals, check_tokens

READERS: dict[str, Callable[[Path], pa.Table]] = {
    ".parquet": read_parquet,
    ".csv": read_csv,
    ".jsonl": read_jsonl,
}
INT32_MAX = 2**31 - 1


def read(path: str | Path, where: str | None = None) -> Trace:
    """The trace in `path`; `where="column=value"` keeps the rows with that value.

    Raises TraceError: one line that names the file, the row (1-based), the column and the value.
    """
    path = Path(path)
    if not path.is_file():
        raise TraceError(f"{path}: no such file")
    reader = READERS.get(path.suffix.lower())
    if reader is None:
        raise TraceError(f"{path}: unknown format {path.suffix!r}; {nearest(path.suffix, READERS)}")
    table = reader(path)
    _require_columns(table, path)
    if where:
        table = _filtered(table, where, path)
    if table.num_rows == 0:
        raise TraceError(f"{path}: no requests: expected at least one row")
    return _to_trace(table, path, where)


def _require_columns(table: pa.Table, path: Path) -> None:
    for column in REQUIRED.names:
        if column not in table.column_names:
            raise TraceError(
                f"{path}: column {column!r} is missing; {nearest(column, table.column_names)}"
            )


def _filtered(table: pa.Table, where: str, path: Path) -> pa.Table:
    column, equals, value = where.partition("=")
    if not equals:
        raise TraceError(f"trace.where={where!r}: expected column=value")
    if column not in table.column_names:
        raise TraceError(f"{path}: no column {column!r}; {nearest(column, table.column_names)}")
    values = pc.cast(table[column], pa.string())
    kept = table.filter(pc.equal(values, value))
    if kept.num_rows == 0:
        choices = [v for v in pc.unique(values).to_pylist() if v is not None]
        raise TraceError(f"{path}: no row has {column}={value}; {nearest(value, choices)}")
    return kept


def _to_trace(table: pa.Table, path: Path, where: str | None) -> Trace:
    arrival_s = _floats(table, "arrival_s", path)
    prompt = _tokens(table, "prompt_tokens", path)
    output = _tokens(table, "output_tokens", path)
    check_arrivals(arrival_s, str(path))
    model, models = _models(table, path)
    metadata = table.schema.metadata or {}
    stated = {k.decode(): v.decode(errors="replace") for k, v in metadata.items()}
    name = stated.get("name", path.stem)
    return Trace(
        name=f"{name}[{where}]" if where else name,
        kind=_kind(stated, path),
        models=models,
        model=model,
        arrival_s=arrival_s,
        prompt_tokens=prompt,
        output_tokens=output,
        session=_optional(table, "session"),
        client=_optional(table, "client"),
        priority=_priority(table),
        lineage=_lineage(stated.get("lineage", "[]"), path.name, where),
        licence=stated.get("licence", stated.get("license", "not stated")),
    )


def _column(table: pa.Table, column: str, path: Path) -> pa.ChunkedArray:
    values = table[column]
    if values.null_count:
        row = int(np.flatnonzero(values.is_null().to_numpy())[0])
        raise TraceError(f"{path}: row {row + 1}, column {column} is empty")
    return values


def _floats(table: pa.Table, column: str, path: Path) -> npt.NDArray[np.float64]:
    values = _column(table, column, path)
    if not (pa.types.is_floating(values.type) or pa.types.is_integer(values.type)):
        raise TraceError(_not_numbers(values, column, path))
    return np.ascontiguousarray(values.to_numpy(), np.float64)


def _tokens(table: pa.Table, column: str, path: Path) -> npt.NDArray[np.int32]:
    numbers = _floats(table, column, path)
    bad = np.flatnonzero((numbers != np.floor(numbers)) | (np.abs(numbers) > INT32_MAX))
    if len(bad):
        row = int(bad[0])
        raise TraceError(
            f"{path}: row {row + 1}, column {column} is {numbers[row]}: expected a whole number"
        )
    tokens = numbers.astype(np.int32)
    check_tokens(tokens, str(path), column)
    return tokens


def _not_numbers(values: pa.ChunkedArray, column: str, path: Path) -> str:
    for row, value in enumerate(values.to_pylist()):
        try:
            float(value)
        except (TypeError, ValueError):
            return f"{path}: row {row + 1}, column {column} is {value!r}: expected a number"
    return f"{path}: column {column} is {values.type}: expected numbers"


def _models(table: pa.Table, path: Path) -> tuple[npt.NDArray[np.int32], tuple[str, ...]]:
    values = _column(table, "model", path)
    if pa.types.is_dictionary(values.type):
        values = values.cast(values.type.value_type)
    if not (pa.types.is_string(values.type) or pa.types.is_large_string(values.type)):
        raise TraceError(f"{path}: column model is {values.type}: expected strings")
    encoded = values.combine_chunks().dictionary_encode()  # codes in order of first appearance
    return encoded.indices.to_numpy().astype(np.int32), tuple(encoded.dictionary.to_pylist())


def _optional(table: pa.Table, column: str) -> npt.NDArray[np.object_] | None:
    if column not in table.column_names:
        return None
    return np.array(table[column].cast(OPTIONAL.field(column).type).to_pylist(), dtype=object)


def _priority(table: pa.Table) -> npt.NDArray[np.int8] | None:
    if "priority" not in table.column_names:
        return None
    return np.ascontiguousarray(table["priority"].to_numpy(), np.int8)


def _kind(stated: dict[str, str], path: Path) -> TraceKind:
    """As the metadata say, in `kind` or as the first word of `note`; else a user's own log."""
    if "kind" not in stated:
        first = stated.get("note", "").partition(":")[0]
        return TraceKind(first) if first in list(TraceKind) else TraceKind.LOG
    try:
        return TraceKind(stated["kind"])
    except ValueError:
        choices = nearest(stated["kind"], list(TraceKind))
        raise TraceError(f"{path}: metadata kind is {stated['kind']!r}; {choices}") from None


def _lineage(stated: str, file: str, where: str | None) -> tuple[str, ...]:
    try:
        steps = json.loads(stated)
    except json.JSONDecodeError:
        steps = [stated]
    steps = steps if isinstance(steps, list) else [stated]
    step = f"read {file}" + (f" where {where}" if where else "")
    return (*map(str, steps), step)
