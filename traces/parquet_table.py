"""Parquet files as Arrow tables."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from traces.errors import Origin, TraceError


def read_parquet(path: Path) -> pa.Table:
    """Raises TraceError when the file is truncated, corrupt, not Parquet, or its text not UTF-8."""
    try:
        with path.open("rb") as file:  # not by name: a folder named a=b would add a column
            table = pq.ParquetFile(file).read()
        names = table.column_names
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise _unreadable(path, error) from None
    for name, values in zip(names, table.columns, strict=True):
        try:
            values.validate(full=True)
        except pa.ArrowException as error:
            _check_utf8(values, name, path)
            raise _unreadable(path, error) from None
    return table


def _unreadable(path: Path, error: Exception) -> TraceError:
    reason = (str(error).splitlines() or [type(error).__name__])[0]
    return TraceError(f"{path}: not a readable Parquet file: {reason}")


def _check_utf8(values: pa.ChunkedArray, column: str, path: Path) -> None:
    if not pa.types.is_string(values.type):
        return
    for row, value in enumerate(values.cast(pa.binary()).to_pylist()):
        try:
            (value or b"").decode()
        except UnicodeDecodeError:
            raise Origin(str(path)).error(row, column, value, "UTF-8 text") from None
