"""Trace files of ours as streams: Parquet in order of arrival, read by batches. Flat memory."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from traces.clock import Clock
from traces.errors import TraceError
from traces.formats.own import OWN_FORMAT
from traces.gather import Gathered
from traces.mapping import NOTHING
from traces.parquet_table import ParquetTable
from traces.plan import Plan, planned
from traces.reading import block_tokens, stated
from traces.schema import OPTIONAL, REQUIRED
from traces.stream import Chunk, TraceStream


def is_ours(path: Path) -> bool:
    """Whether `write` made the file: Parquet whose metadata tell a lineage."""
    if path.suffix.lower() != ".parquet" or not path.is_file():
        return False
    file = ParquetTable(path)
    return "lineage" in file.metadata and {*REQUIRED.names} <= {*file.names}


def stream_parquet(path: Path, where: str | None = None) -> TraceStream:
    """A file that is ours as a stream; one pass over its models finds their names. Raises
    TraceError as `read` does, for values when their chunk is read."""
    file = ParquetTable(path)
    plan = planned(file, path, OWN_FORMAT, NOTHING, where)
    models = _names(path)
    return TraceStream(
        **stated(file, plan, path),
        models=models,
        start=lambda: _chunks(path, where, {name: i for i, name in enumerate(models)}),
        optional=tuple(name for name in OPTIONAL.names if name in file.names),
        block_tokens=block_tokens(file.metadata, OWN_FORMAT),
    )


def _names(path: Path) -> tuple[str, ...]:
    """The names in the column of models, in order of appearance."""
    found: dict[str, None] = {}
    try:
        with path.open("rb") as file:
            for batch in pq.ParquetFile(file).iter_batches(1 << 20, columns=["model"]):
                texts = batch.column(0).unique()
                found.update(dict.fromkeys(map(str, texts.to_pylist())))
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise TraceError(f"{path}: not a readable Parquet file: {error}") from None
    return tuple(found)


def _chunks(path: Path, where: str | None, number: dict[str, int]) -> Iterator[Chunk]:
    file = ParquetTable(path)
    plan = planned(file, path, OWN_FORMAT, NOTHING, where)
    clock = Clock(plan.names.unit, plan.names.timezone, plan.zero)
    size, is_empty = block_tokens(file.metadata, OWN_FORMAT), True
    for table, origin in plan.rows(file):
        gathered = Gathered(plan.names, clock, is_text_file=False)
        gathered.add(table, origin)
        is_empty = False
        yield _chunk(gathered.columns(""), number, size, plan)
    if is_empty:
        raise plan.nothing()


def _chunk(made: dict[str, Any], number: dict[str, int], size: int | None, plan: Plan) -> Chunk:
    arrival_s: npt.NDArray[np.float64] = made["arrival_s"]
    if np.any(np.diff(arrival_s) < 0):
        raise TraceError(f"{plan.path}: not in order of arrival: `trace action=import` sorts it")
    codes = np.array([number[name] for name in made["models"]], np.int32)
    blocks = made.get("prefix_blocks")
    return Chunk(
        arrival_s,
        codes[made["model"]],
        made["prompt_tokens"],
        made["output_tokens"],
        made.get("priority", np.zeros(len(arrival_s), np.int8)),
        made.get("session"),
        made.get("client"),
        None if blocks is None else replace(blocks, block_tokens=size),
    )
