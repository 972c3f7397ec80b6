"""The columns of a file's table as NumPy arrays, every value checked. N rows."""

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from traces.errors import Origin
from traces.trace import check_arrivals, check_tokens

INT8 = np.iinfo(np.int8)


def arrivals(table: pa.Table, origin: Origin) -> npt.NDArray[np.float64]:
    """Seconds [N]. Each of these raises TraceError at the first value that is not valid."""
    arrival_s = _numbers(_present(table, "arrival_s", origin), "arrival_s", origin)
    check_arrivals(arrival_s, origin)
    return arrival_s


def tokens(table: pa.Table, column: str, origin: Origin) -> npt.NDArray[np.int32]:
    numbers = _numbers(_present(table, column, origin), column, origin)
    check_tokens(numbers, origin, column)
    return numbers.astype(np.int32)


def models(table: pa.Table, origin: Origin) -> tuple[npt.NDArray[np.int32], tuple[str, ...]]:
    """The index of each row's model [N] into the names, which are in order of appearance."""
    texts = _texts(_present(table, "model", origin), "model", origin)
    encoded = texts.combine_chunks().dictionary_encode()
    index, names = encoded.indices.to_numpy().astype(np.int32), encoded.dictionary.to_pylist()
    if "" in names:
        row = int(np.flatnonzero(index == names.index(""))[0])
        raise origin.error(row, "model", "", "a name")
    return index, tuple(names)


def labels(table: pa.Table, column: str, origin: Origin) -> npt.NDArray[np.object_] | None:
    """Session or client [N], None where a row has none; None without the column."""
    if column not in table.column_names:
        return None
    values = table[column]
    if pa.types.is_integer(values.type) or pa.types.is_null(values.type):
        values = values.cast(pa.string())
    return np.array(_texts(values, column, origin).to_pylist(), dtype=object)


def priorities(table: pa.Table, origin: Origin) -> npt.NDArray[np.int8] | None:
    """Priority [N], 0 where a row has none; None without the column."""
    if "priority" not in table.column_names:
        return None
    values = table["priority"]
    if pa.types.is_null(values.type):
        return np.zeros(len(values), np.int8)
    numbers = _numbers(values, "priority", origin, missing=0.0)
    whole = (numbers == np.floor(numbers)) & (numbers >= INT8.min) & (numbers <= INT8.max)
    for row in np.flatnonzero(~whole)[:1]:
        expected = f"a whole number from {INT8.min} to {INT8.max}"
        raise origin.error(int(row), "priority", float(numbers[row]), expected)
    return numbers.astype(np.int8)


def _present(table: pa.Table, column: str, origin: Origin) -> pa.ChunkedArray:
    """The column, which may not have missing values."""
    values = _plain(table[column])
    if values.null_count:
        row = int(np.flatnonzero(values.is_null().to_numpy())[0])
        raise origin.error(row, column, None, "a value in every row")
    return values


def _plain(values: pa.ChunkedArray) -> pa.ChunkedArray:
    is_encoded = pa.types.is_dictionary(values.type)
    return values.cast(values.type.value_type) if is_encoded else values


def _numbers(
    values: pa.ChunkedArray, column: str, origin: Origin, missing: float = np.nan
) -> npt.NDArray[np.float64]:
    if not (pa.types.is_floating(values.type) or pa.types.is_integer(values.type)):
        raise _wrong_type(values, column, origin, "a number")
    return np.ascontiguousarray(values.cast(pa.float64(), safe=False).fill_null(missing))


def _texts(values: pa.ChunkedArray, column: str, origin: Origin) -> pa.ChunkedArray:
    values = _plain(values)
    kinds = (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view)
    if not any(kind(values.type) for kind in kinds):
        raise _wrong_type(values, column, origin, "text")
    return values


def _wrong_type(values: pa.ChunkedArray, column: str, origin: Origin, expected: str) -> Exception:
    """Names the first value that is there: the whole column has its type."""
    row = int(np.flatnonzero(values.is_valid().to_numpy())[0])
    return origin.error(row, column, values[row].as_py(), f"{expected}, not {values.type}")
