"""`write`: a trace to Parquet, CSV or JSONL, written aside and then renamed."""

import json
import os
from pathlib import Path

import pyarrow as pa
import pyarrow.csv as arrow_csv
import pyarrow.parquet as pq

from traces.errors import TraceError, nearest
from traces.prefix import PrefixBlocks
from traces.schema import OPTIONAL
from traces.trace import Trace


def to_table(trace: Trace) -> pa.Table:
    """The Arrow table of a trace, metadata included."""
    columns = {
        "arrival_s": pa.array(trace.arrival_s),
        "model": pa.DictionaryArray.from_arrays(trace.model, pa.array(trace.models, pa.string())),
        "prompt_tokens": pa.array(trace.prompt_tokens, pa.int32()),
        "output_tokens": pa.array(trace.output_tokens, pa.int32()),
    }
    for field in OPTIONAL:
        values = getattr(trace, field.name)
        if values is not None:
            is_list = isinstance(values, PrefixBlocks)
            columns[field.name] = values.to_arrow() if is_list else pa.array(values, field.type)
    metadata = {
        "name": trace.name,
        "kind": str(trace.kind),
        "licence": trace.licence,
        "lineage": json.dumps(trace.lineage),
    }
    if trace.prefix_blocks is not None and trace.prefix_blocks.block_tokens is not None:
        metadata["prefix_block_tokens"] = str(trace.prefix_blocks.block_tokens)
    return pa.table(columns).replace_schema_metadata(metadata)


def write(trace: Trace, path: str | Path) -> None:
    """Only Parquet keeps the metadata. Raises TraceError for an unknown ending or a folder that
    cannot be written; the file appears whole or not at all."""
    path = Path(path)
    writer = WRITERS.get(path.suffix.lower())
    if writer is None:
        choices = nearest(path.suffix, WRITERS)
        raise TraceError(f"{path}: cannot write {path.suffix!r}; {choices}")
    aside = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        writer(to_table(trace), aside)
        aside.replace(path)
    except OSError as error:
        reason = error.strerror or str(error)
        raise TraceError(f"{path}: cannot be written: {reason}") from None
    finally:
        aside.unlink(missing_ok=True)


def _write_parquet(table: pa.Table, path: Path) -> None:
    pq.write_table(table, path, compression="zstd")


def _write_csv(table: pa.Table, path: Path) -> None:
    arrow_csv.write_csv(_with_plain_lists(_with_plain_models(table)), path)


def _write_jsonl(table: pa.Table, path: Path) -> None:
    with path.open("w", encoding="utf-8") as file:
        for row in _with_plain_models(table).to_pylist():
            file.write(json.dumps(row, ensure_ascii=False) + "\n")


def _with_plain_models(table: pa.Table) -> pa.Table:
    return table.set_column(1, "model", table["model"].cast(pa.string()))


def _with_plain_lists(table: pa.Table) -> pa.Table:
    """Block ids as one text of numbers between spaces: CSV has no lists."""
    if "prefix_blocks" not in table.column_names:
        return table
    texts = [" ".join(map(str, ids.as_py())) for ids in table["prefix_blocks"]]
    place = table.column_names.index("prefix_blocks")
    return table.set_column(place, "prefix_blocks", pa.array(texts, pa.string()))


WRITERS = {".parquet": _write_parquet, ".csv": _write_csv, ".jsonl": _write_jsonl}
