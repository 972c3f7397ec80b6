"""`read`: a trace from a file of its own columns, of a known format, or with a map of columns."""

import json
import re
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from traces.clock import Clock
from traces.csv_table import CsvTable
from traces.errors import TraceError, nearest, shown
from traces.formats.format import Format
from traces.formats.registry import detected
from traces.formats.vllm import VllmLog
from traces.gather import Gathered
from traces.jsonl_table import JsonlTable
from traces.mapping import NOTHING, ColumnMap
from traces.parquet_table import ParquetTable
from traces.plan import Plan, planned
from traces.table import TableFile, uncompressed
from traces.trace import Trace, TraceKind, renumbered

READERS: dict[str, Callable[[Path], TableFile]] = {
    ".parquet": ParquetTable,
    ".csv": CsvTable,
    ".jsonl": JsonlTable,
    ".log": VllmLog,
}


def read(
    path: str | Path,
    where: str | None = None,
    *,
    columns: ColumnMap = NOTHING,
    form: str | None = None,
) -> Trace:
    """The trace in `path`; `where="column=value"` keeps the rows with that value.

    The format goes by the columns, or by its name `form`; `columns` says what it does not. Requests
    are sorted by arrival. Times since 1970, and those of formats other than the trace's own, count
    from the first request. Raises TraceError: one line that names the file, the row (1-based), the
    column and the value.
    """
    path = Path(path)
    try:
        file = opened(path)
        plan = planned(file, path, detected(file.names, str(path), form), columns, where)
        return _trace(file, plan, path)
    except OSError as error:
        raise TraceError(f"{path}: cannot be read: {error.strerror or error}") from None
    except (EOFError, zlib.error) as error:  # of a file that ends in .gz
        raise TraceError(f"{path}: cannot be read: {error}") from None


def opened(path: Path) -> TableFile:
    """Raises TraceError for what is no file, or has an unknown ending."""
    if not path.is_file():
        what = "a folder: expected a file" if path.is_dir() else "no such file"
        raise TraceError(f"{path}: {what}")
    reader = READERS.get(uncompressed(path).suffix.lower())
    if reader is None:
        raise TraceError(f"{path}: unknown format {path.suffix!r}; {nearest(path.suffix, READERS)}")
    return reader(path)


def _trace(file: TableFile, plan: Plan, path: Path) -> Trace:
    clock = Clock(plan.names.unit, plan.names.timezone, plan.zero)
    gathered = Gathered(plan.names, clock, is_text_file=file.is_text)
    for table, origin in plan.rows(file):
        gathered.add(table, origin)
    if gathered.requests == 0:
        raise plan.nothing()
    name = file.metadata.get("name", uncompressed(path).stem)
    made = gathered.columns(plan.names.model_name or name)
    if "prefix_blocks" in made:
        size = block_tokens(file.metadata, plan.form)
        made["prefix_blocks"] = replace(made["prefix_blocks"], block_tokens=size)
    facts = stated(file, plan, path)
    steps = [*facts.pop("lineage"), *plan.left_out(), *_in_order(made, clock)]
    return Trace(**made, **facts, lineage=tuple(steps))


def stated(file: TableFile, plan: Plan, path: Path) -> dict[str, Any]:
    """Name, kind, licence and lineage as the metadata tell, this reading included."""
    name = file.metadata.get("name", uncompressed(path).stem)
    return {
        "name": f"{name}[{plan.where}]" if plan.where else name,
        "kind": _kind(file.metadata, plan.form, path),
        "lineage": (*_lineage(file.metadata.get("lineage", "[]")), plan.step),
        "licence": file.metadata.get("licence", file.metadata.get("license", "not stated")),
    }


def _in_order(made: dict[str, Any], clock: Clock) -> list[str]:
    """Sort the columns by arrival and count from the first, where need be; the steps taken."""
    arrival_s, steps = made["arrival_s"], []
    late = int((np.diff(arrival_s) < 0).sum())
    if late:
        order = np.argsort(arrival_s, kind="stable")
        for name in set(made) - {"models"}:
            made[name] = made[name][order]
        made["model"], made["models"] = renumbered(made["model"], made["models"])
        steps.append(f"sorted by arrival ({late} requests came before the one above)")
    if clock.is_since_first:
        first = float(made["arrival_s"][0])
        made["arrival_s"] = made["arrival_s"] - first
        start = clock.date(first)
        steps += [f"starts at {start}"] if start else []
    return steps


def block_tokens(stated: dict[str, str], form: Format) -> int | None:
    value = stated.get("prefix_block_tokens", "")
    return int(value) if re.fullmatch("[0-9]{1,9}", value) else form.block_tokens


def _kind(stated: dict[str, str], form: Format, path: Path) -> TraceKind:
    """As the metadata say, in `kind` or as the first word of `note`; else as the format is."""
    if "kind" not in stated:
        first = stated.get("note", "").partition(":")[0]
        return TraceKind(first) if first in list(TraceKind) else form.kind
    try:
        return TraceKind(stated["kind"])
    except ValueError:
        choices = nearest(stated["kind"], [kind.value for kind in TraceKind])
        raise TraceError(f"{path}: metadata kind is {shown(stated['kind'])}; {choices}") from None


def _lineage(stated: str) -> list[str]:
    try:
        steps = json.loads(stated)
    except (ValueError, RecursionError):
        steps = [stated]
    return list(map(str, steps)) if isinstance(steps, list) else [stated]
