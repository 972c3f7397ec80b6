"""Parquet files, in chunks."""

from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from traces.errors import Origin, TraceError
from traces.table import CHUNK_ROWS, Role, Rows


class ParquetTable:
    """Memory holds a row group's columns at most."""

    is_text = False

    def __init__(self, path: Path) -> None:
        """Raises TraceError when the file is truncated, corrupt or not Parquet."""
        self.path = path
        try:
            with path.open("rb") as file:  # not by name: a folder named a=b would add a column
                schema = pq.ParquetFile(file).schema_arrow
            stated = schema.metadata or {}
            self.names = list(_leaves(schema))
        except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
            raise _unreadable(path, error) from None
        self.metadata = {
            k.decode(errors="replace"): v.decode(errors="replace") for k, v in stated.items()
        }

    def chunks(self, roles: dict[str, Role]) -> Iterator[Rows]:
        """Raises TraceError also for text that is not UTF-8."""
        first = 0
        try:
            with self.path.open("rb") as file:
                parquet = pq.ParquetFile(file, pre_buffer=False)
                for batch in parquet.iter_batches(CHUNK_ROWS, columns=list(roles)):
                    table = _flat(pa.Table.from_batches([batch]))
                    self._validate(table, first)
                    if len(table):
                        yield Rows(table.select(list(roles)), first)
                    first += len(table)
        except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
            raise _unreadable(self.path, error) from None

    def _validate(self, table: pa.Table, first: int) -> None:
        for name, values in zip(table.column_names, table.columns, strict=True):
            try:
                values.validate(full=True)
            except pa.ArrowException as error:
                _check_utf8(values, name, first, self.path)
                raise _unreadable(self.path, error) from None


def _leaves(fields: pa.Schema | pa.StructType, prefix: str = "") -> Iterator[str]:
    for field in fields:
        if pa.types.is_struct(field.type):
            yield from _leaves(field.type, f"{prefix}{field.name}.")
        else:
            yield prefix + field.name


def _flat(table: pa.Table) -> pa.Table:
    """Objects become columns named with dots."""
    while any(pa.types.is_struct(kind) for kind in table.schema.types):
        table = table.flatten()
    return table


def _unreadable(path: Path, error: Exception) -> TraceError:
    reason = (str(error).splitlines() or [type(error).__name__])[0]
    return TraceError(f"{path}: not a readable Parquet file: {reason}")


def _check_utf8(values: pa.ChunkedArray, column: str, first: int, path: Path) -> None:
    if not pa.types.is_string(values.type):
        return
    for row, value in enumerate(values.cast(pa.binary()).to_pylist(), first):
        try:
            (value or b"").decode()
        except UnicodeDecodeError:
            raise Origin(str(path)).error(row, column, value, "UTF-8 text") from None
