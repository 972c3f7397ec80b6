"""`write`: a trace or a stream to Parquet, CSV or JSONL, chunk by chunk, aside and then renamed."""

import json
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pyarrow as pa
import pyarrow.csv as arrow_csv
import pyarrow.parquet as pq

from traces.errors import TraceError, nearest
from traces.prefix import PrefixBlocks
from traces.schema import OPTIONAL
from traces.stream import Chunk, TraceStream, of_trace
from traces.trace import Trace

Sink = Callable[[pa.RecordBatch], None]


def schema_of(stream: TraceStream) -> pa.Schema:
    """The Arrow schema of its file, metadata included."""
    fields = [
        pa.field("arrival_s", pa.float64()),
        pa.field("model", pa.dictionary(pa.int32(), pa.string())),
        pa.field("prompt_tokens", pa.int32()),
        pa.field("output_tokens", pa.int32()),
        *(field for field in OPTIONAL if field.name in stream.optional),
    ]
    metadata = {
        "name": stream.name,
        "kind": str(stream.kind),
        "licence": stream.licence,
        "lineage": json.dumps(stream.lineage),
    }
    if stream.block_tokens is not None:
        metadata["prefix_block_tokens"] = str(stream.block_tokens)
    return pa.schema(fields, metadata)


def to_batch(chunk: Chunk, names: pa.Array, schema: pa.Schema) -> pa.RecordBatch:
    """A chunk's rows; `names` are the stream's models."""
    columns = []
    for field in schema:
        values = getattr(chunk, field.name)
        if field.name == "model":
            columns.append(pa.DictionaryArray.from_arrays(values, names))
        elif values is None:
            columns.append(pa.nulls(chunk.requests, field.type))
        elif isinstance(values, PrefixBlocks):
            columns.append(values.to_arrow())
        else:
            columns.append(pa.array(values, field.type))
    return pa.record_batch(columns, schema)


def write(
    trace: Trace | TraceStream, path: str | Path, watch: Callable[[Chunk], None] | None = None
) -> None:
    """Only Parquet keeps the metadata. `watch` sees every chunk as it is written. Raises TraceError
    for an unknown ending, a folder that cannot be written or a stream without a request; the file
    appears whole or not at all."""
    path = Path(path)
    opened = WRITERS.get(path.suffix.lower())
    if opened is None:
        choices = nearest(path.suffix, WRITERS)
        raise TraceError(f"{path}: cannot write {path.suffix!r}; {choices}")
    stream = of_trace(trace) if isinstance(trace, Trace) else trace
    aside = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        _write(stream, aside, opened, watch)
        aside.replace(path)
    except OSError as error:
        reason = error.strerror or str(error)
        raise TraceError(f"{path}: cannot be written: {reason}") from None
    finally:
        aside.unlink(missing_ok=True)


def _write(
    stream: TraceStream,
    path: Path,
    opened: Callable[[Path, pa.Schema], AbstractContextManager[Sink]],
    watch: Callable[[Chunk], None] | None,
) -> None:
    schema, names = schema_of(stream), pa.array(stream.models, pa.string())
    with opened(path, schema) as put:
        for chunk in stream.chunks():
            put(to_batch(chunk, names, schema))
            if watch is not None:
                watch(chunk)


@contextmanager
def _parquet(path: Path, schema: pa.Schema) -> Iterator[Sink]:
    with pq.ParquetWriter(
        path,
        schema,
        compression="zstd",
        use_dictionary=[name for name in schema.names if name != "arrival_s"],
        column_encoding={"arrival_s": "BYTE_STREAM_SPLIT"},
    ) as writer:
        yield writer.write_batch


@contextmanager
def _csv(path: Path, schema: pa.Schema) -> Iterator[Sink]:
    plain = pa.schema([pa.field(f.name, _plain(f.type)) for f in schema])
    with arrow_csv.CSVWriter(path, plain) as writer:
        yield lambda batch: writer.write_batch(_with_plain_columns(batch, plain))


def _plain(kind: pa.DataType) -> pa.DataType:
    is_plain = not (pa.types.is_dictionary(kind) or pa.types.is_large_list(kind))
    return kind if is_plain else pa.string()


def _with_plain_columns(batch: pa.RecordBatch, schema: pa.Schema) -> pa.RecordBatch:
    """Block ids as one text of numbers between spaces: CSV has no lists."""
    columns = []
    for values, field in zip(batch.columns, schema, strict=True):
        if pa.types.is_large_list(values.type):
            texts = [" ".join(map(str, ids.as_py() or ())) for ids in values]
            columns.append(pa.array(texts, pa.string()))
        else:
            columns.append(values.cast(field.type))
    return pa.record_batch(columns, schema)


@contextmanager
def _jsonl(path: Path, schema: pa.Schema) -> Iterator[Sink]:
    with path.open("w", encoding="utf-8") as file:
        yield lambda batch: file.writelines(
            json.dumps(row, ensure_ascii=False) + "\n" for row in batch.to_pylist()
        )


WRITERS = {".parquet": _parquet, ".csv": _csv, ".jsonl": _jsonl}
