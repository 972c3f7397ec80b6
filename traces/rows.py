"""The values of one column of a chunk, checked; the first that is not valid is named."""

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from traces.errors import Origin


def present(values: pa.ChunkedArray, column: str, origin: Origin) -> pa.ChunkedArray:
    """The column, which may not have missing values."""
    values = plain(values)
    if values.null_count:
        row = int(np.flatnonzero(values.is_null())[0])
        raise origin.error(row, column, None, "a value in every row")
    return values


def plain(values: pa.ChunkedArray) -> pa.ChunkedArray:
    """Without dictionary encoding."""
    is_encoded = pa.types.is_dictionary(values.type)
    return values.cast(values.type.value_type) if is_encoded else values


def numbers(
    values: pa.ChunkedArray,
    column: str,
    origin: Origin,
    *,
    is_text_file: bool = False,
    missing: float = np.nan,
) -> npt.NDArray[np.float64]:
    """As float64 [N]; texts are numbers only in a text file."""
    if is_text_file:
        values = _parsed(texts(values, column, origin), column, origin)
    elif pa.types.is_null(values.type):
        values = values.cast(pa.float64())
    elif not (pa.types.is_floating(values.type) or pa.types.is_integer(values.type)):
        raise wrong_type(values, column, origin, "a number")
    return np.ascontiguousarray(values.cast(pa.float64(), safe=False).fill_null(missing))


def texts(values: pa.ChunkedArray, column: str, origin: Origin) -> pa.ChunkedArray:
    values = plain(values)
    kinds = (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view)
    if not any(kind(values.type) for kind in kinds):
        raise wrong_type(values, column, origin, "text")
    return values


def wrong_type(values: pa.ChunkedArray, column: str, origin: Origin, expected: str) -> Exception:
    """Names the first value that is there: the whole column has its type."""
    row = int(np.flatnonzero(values.is_valid())[0]) if values.null_count < len(values) else 0
    return origin.error(row, column, values[row].as_py(), f"{expected}, not {values.type}")


def _parsed(values: pa.ChunkedArray, column: str, origin: Origin) -> pa.ChunkedArray:
    trimmed = pc.utf8_trim_whitespace(values)
    try:
        return pc.cast(trimmed, pa.float64())
    except pa.ArrowInvalid:
        row = first_invalid(trimmed, pa.float64())
        raise origin.error(row, column, values[row].as_py(), "a number") from None


def first_invalid(values: pa.ChunkedArray, kind: pa.DataType) -> int:
    """The row of the first value that cannot be cast, by bisection."""
    low, high = 0, len(values)
    while high - low > 1:
        middle = (low + high) // 2
        try:
            pc.cast(values[low:middle], kind)
        except pa.ArrowInvalid:
            high = middle
        else:
            low = middle
    return low
