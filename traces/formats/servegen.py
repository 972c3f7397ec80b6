"""ServeGen's client tables: what each client did. In one Parquet file each, or ServeGen's folder.

They are no traces: arrivals and lengths are drawn from them. A row of `rates` is a client and
10 minutes with at least one request; a row of `lengths` a client and 6 hours. C rows each.
"""

import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from traces.errors import Origin, TraceError, nearest, shown
from traces.formats.servegen_chunks import LEVELS, length_table, rate_table
from traces.parquet_table import ParquetTable
from traces.rows import numbers, present, texts, wrong_type
from traces.table import Role

Numbers = npt.NDArray[np.float64]
Labels = npt.NDArray[np.object_]
DISTRIBUTIONS = ("Gamma", "Weibull")
RATES = ("pool", "client", "t0_s", "n_requests", "iat_cv", "dist", "shape", "scale")
LENGTHS = ("pool", "client", "t0_s", "q_prompt_tokens", "q_output_tokens")


class ClientRates(NamedTuple):
    """Gaps of a window follow `dist` with `shape` and `scale` (seconds)."""

    pool: Labels
    client: npt.NDArray[np.int64]
    t0_s: Numbers
    requests: npt.NDArray[np.int64]
    cv: Numbers  # coefficient of variation of the gaps
    dist: Labels
    shape: Numbers
    scale: Numbers
    window_s: float
    licence: str


class ClientLengths(NamedTuple):
    """Quantiles [C, Q] of prompt and output tokens at `levels` [Q]."""

    pool: Labels
    client: npt.NDArray[np.int64]
    t0_s: Numbers
    prompt: Numbers
    output: Numbers
    levels: Numbers


def read_client_rates(path: str | Path) -> ClientRates:
    """Raises TraceError naming the row and column of the first value that is not valid."""
    columns = _Columns(Path(path), RATES)
    return ClientRates(
        pool=columns.labels("pool"),
        client=columns.numbers("client").astype(np.int64),
        t0_s=columns.numbers("t0_s"),
        requests=columns.numbers("n_requests", least=1).astype(np.int64),
        cv=columns.numbers("iat_cv"),
        dist=columns.labels("dist", DISTRIBUTIONS),
        shape=columns.numbers("shape", least=1e-9),
        scale=columns.numbers("scale", least=1e-12),
        window_s=_window_s(columns, path),
        licence=columns.metadata.get("license", "not stated"),
    )


def _window_s(columns: "_Columns", path: str | Path) -> float:
    window_s = columns.stated("window_s", 600)
    if window_s.ndim != 0 or not 0 < window_s < np.inf:
        raise TraceError(f"{path}: metadata window_s: expected a number of seconds")
    return float(window_s)


def read_client_lengths(path: str | Path) -> ClientLengths:
    """Raises TraceError naming the row and column of the first value that is not valid."""
    columns = _Columns(Path(path), LENGTHS)
    levels = columns.stated("quantile_levels", [])
    if (
        levels.ndim != 1
        or len(levels) < 2
        or not np.all(np.diff(levels) > 0)
        or levels[0] < 0
        or levels[-1] > 1
    ):
        raise TraceError(f"{path}: metadata quantile_levels: expected rising numbers from 0 to 1")
    return ClientLengths(
        pool=columns.labels("pool"),
        client=columns.numbers("client").astype(np.int64),
        t0_s=columns.numbers("t0_s"),
        prompt=columns.quantiles("q_prompt_tokens", len(levels)),
        output=columns.quantiles("q_output_tokens", len(levels)),
        levels=levels,
    )


def refuse_client_tables(names: list[str], path: str) -> None:
    """Raises TraceError for a table that is no trace, saying what it is."""
    if set(RATES) <= set(names) or set(LENGTHS) <= set(names):
        raise TraceError(
            f"{path}: a ServeGen client table, not a trace: expected rows of requests;"
            " requests are drawn from it by trace action=compose"
        )


class _Columns:
    """A whole table: it is small."""

    def __init__(self, path: Path, names: tuple[str, ...]) -> None:
        self.origin = Origin(str(path))
        if path.is_dir():
            self.metadata = {"license": "Apache-2.0", "quantile_levels": json.dumps(LEVELS)}
            self.table = (rate_table if names == RATES else length_table)(path, names)
        else:
            self._open(path, names)

    def _open(self, path: Path, names: tuple[str, ...]) -> None:
        file = ParquetTable(path)
        missing = [name for name in names if name not in file.names]
        if missing:
            raise TraceError(f"{path}: no column {missing[0]!r}; {nearest(missing[0], file.names)}")
        self.metadata = file.metadata
        parts = [chunk.table for chunk in file.chunks(dict.fromkeys(names, Role.ANY))]
        if not parts:
            raise self.origin.empty()
        self.table = pa.concat_tables(parts).unify_dictionaries()

    def stated(self, key: str, default: Any) -> Numbers:
        """A number of the metadata, or a list of them."""
        text = self.metadata.get(key, json.dumps(default))
        try:
            return np.array(json.loads(text), np.float64)
        except (ValueError, TypeError, RecursionError):
            raise TraceError(
                f"{self.origin.name}: metadata {key} is {shown(text)}: expected numbers"
            ) from None

    def numbers(self, name: str, least: float = 0.0) -> Numbers:
        read = numbers(present(self.table[name], name, self.origin), name, self.origin)
        for row in np.flatnonzero(~((read >= least) & np.isfinite(read)))[:1]:
            expected = f"a number of {least:g} or more"
            raise self.origin.error(int(row), name, float(read[row]), expected)
        return read

    def labels(self, name: str, choices: tuple[str, ...] = ()) -> Labels:
        values = texts(present(self.table[name], name, self.origin), name, self.origin)
        read = np.array(values.to_pylist(), object)
        for row in np.flatnonzero(~np.isin(read, choices))[:1] if choices else ():
            raise self.origin.error(int(row), name, read[row], " or ".join(choices))
        return read

    def quantiles(self, name: str, count: int) -> Numbers:
        values = present(self.table[name], name, self.origin)
        kinds = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)
        if not any(kind(values.type) for kind in kinds):
            raise wrong_type(values, name, self.origin, f"a list of {count} numbers")
        wrong = np.flatnonzero(np.asarray(pc.list_value_length(values)) != count)
        flat = pc.list_flatten(values)
        is_number = pa.types.is_integer(flat.type) or pa.types.is_floating(flat.type)
        if not is_number or flat.null_count or len(wrong):
            row = int(wrong[0]) if len(wrong) else 0
            raise self.origin.error(row, name, values[row].as_py(), f"a list of {count} numbers")
        read = np.asarray(flat.cast(pa.float64())).reshape(-1, count)
        for row in np.flatnonzero(np.any(np.diff(read) < 0, axis=1) | (read[:, 0] < 0))[:1]:
            expected = "rising numbers of tokens"
            raise self.origin.error(int(row), name, read[row].tolist(), expected)
        return read
