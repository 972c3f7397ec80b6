"""Parquet files as Arrow tables."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from traces.errors import TraceError


def read_parquet(path: Path) -> pa.Table:
    """Raises TraceError when the file is truncated, corrupt or not Parquet."""
    column = ""
    try:
        with path.open("rb") as file:  # not by name: a folder named a=b would add a column
            table = pq.ParquetFile(file).read()
        for name, values in zip(table.column_names, table.columns, strict=True):
            column = f"column {name}: "
            values.validate(full=True)  # text is UTF-8
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise TraceError(f"{path}: not a readable Parquet file: {column}{reason}") from None
    return table
