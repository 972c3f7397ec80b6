"""Parquet files as Arrow tables."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from traces.errors import TraceError


def read_parquet(path: Path) -> pa.Table:
    """Raises TraceError when the file is truncated or not Parquet."""
    try:
        return pq.read_table(path)
    except (pa.ArrowException, OSError) as error:
        reason = str(error).splitlines()[0]
        raise TraceError(f"{path}: not a readable Parquet file: {reason}") from None
