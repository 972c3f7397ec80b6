"""`write`: a trace to Parquet or CSV, written aside and then renamed."""

import json
import os
from pathlib import Path

import pyarrow as pa
import pyarrow.csv as arrow_csv
import pyarrow.parquet as pq

from traces.errors import TraceError, nearest
from traces.trace import Trace


def to_table(trace: Trace) -> pa.Table:
    """The Arrow table of a trace, metadata included."""
    columns = {
        "arrival_s": pa.array(trace.arrival_s),
        "model": pa.DictionaryArray.from_arrays(trace.model, list(trace.models)),
        "prompt_tokens": pa.array(trace.prompt_tokens),
        "output_tokens": pa.array(trace.output_tokens),
    }
    for name in ("session", "client", "priority"):
        if getattr(trace, name) is not None:
            columns[name] = pa.array(getattr(trace, name))
    metadata = {
        "name": trace.name,
        "kind": str(trace.kind),
        "licence": trace.licence,
        "lineage": json.dumps(trace.lineage),
    }
    return pa.table(columns).replace_schema_metadata(metadata)


def write(trace: Trace, path: str | Path) -> None:
    """Raises TraceError for an unknown ending; the file appears whole or not at all."""
    path = Path(path)
    if path.suffix not in (".parquet", ".csv"):
        choices = nearest(path.suffix, [".parquet", ".csv"])
        raise TraceError(f"{path}: cannot write {path.suffix!r}; {choices}")
    aside = path.with_name(f".{path.name}.{os.getpid()}.part")
    table = to_table(trace)
    try:
        if path.suffix == ".parquet":
            pq.write_table(table, aside, compression="zstd")
        else:
            plain = table["model"].cast(pa.string())
            arrow_csv.write_csv(table.set_column(1, "model", plain), aside)
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)
