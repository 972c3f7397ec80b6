"""The columns of a chunk of rows as NumPy arrays, every value checked. N rows."""

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from traces.errors import Origin
from traces.prefix import PrefixBlocks
from traces.rows import numbers, plain, present, texts, wrong_type
from traces.trace import check_tokens

INT8 = np.iinfo(np.int8)
Codes = npt.NDArray[np.int32]


def tokens(
    values: pa.ChunkedArray, column: str, origin: Origin, *, is_text_file: bool
) -> npt.NDArray[np.int32]:
    """Token counts [N]. Each of these raises TraceError at the first value that is not valid."""
    values = present(values, column, origin)
    counts = numbers(values, column, origin, is_text_file=is_text_file)
    check_tokens(counts, origin, column)
    return counts.astype(np.int32)


def models(values: pa.ChunkedArray, column: str, origin: Origin) -> tuple[Codes, list[str]]:
    """The index of each row's model [N] into the names, which are in order of appearance."""
    codes, names = _encoded(texts(present(values, column, origin), column, origin))
    if "" in names:
        row = int(np.flatnonzero(codes == names.index(""))[0])
        raise origin.error(row, column, "", "a name")
    return codes, names


def labels(values: pa.ChunkedArray, column: str, origin: Origin) -> tuple[Codes, list[str]]:
    """Sessions or clients: index [N] into the names, -1 where a row has none."""
    values = plain(values)
    if pa.types.is_integer(values.type) or pa.types.is_null(values.type):
        values = values.cast(pa.string())
    return _encoded(texts(values, column, origin))


def _encoded(values: pa.ChunkedArray) -> tuple[Codes, list[str]]:
    encoded = values.combine_chunks().dictionary_encode()
    index = encoded.indices.fill_null(-1)
    return index.to_numpy(zero_copy_only=False).astype(np.int32), encoded.dictionary.to_pylist()


def priorities(
    values: pa.ChunkedArray, column: str, origin: Origin, *, is_text_file: bool
) -> npt.NDArray[np.int8]:
    """Priority [N], 0 where a row has none."""
    read = numbers(values, column, origin, is_text_file=is_text_file, missing=0.0)
    whole = (read == np.floor(read)) & (read >= INT8.min) & (read <= INT8.max)
    for row in np.flatnonzero(~whole)[:1]:
        expected = f"a whole number from {INT8.min} to {INT8.max}"
        raise origin.error(int(row), column, float(read[row]), expected)
    return read.astype(np.int8)


def blocks(
    values: pa.ChunkedArray, column: str, origin: Origin, *, is_text_file: bool
) -> PrefixBlocks:
    """Lists of block ids, none where a row has none; in a text file numbers between spaces."""
    lists = _split(values, column, origin) if is_text_file else values.combine_chunks()
    kinds = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)
    if pa.types.is_null(lists.type):
        return PrefixBlocks(ids=np.zeros(0, np.int64), start=np.zeros(len(lists) + 1, np.int64))
    if not any(kind(lists.type) for kind in kinds):
        raise wrong_type(values, column, origin, "a list of numbers")
    counts = np.ascontiguousarray(pc.list_value_length(lists).fill_null(0)).astype(np.int64)
    start = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    return PrefixBlocks(ids=_ids(pc.list_flatten(lists), start, column, origin), start=start)


def _split(values: pa.ChunkedArray, column: str, origin: Origin) -> pa.Array:
    trimmed = pc.utf8_trim_whitespace(texts(values, column, origin)).combine_chunks()
    filled = pc.if_else(pc.equal(trimmed, ""), pa.scalar(None, trimmed.type), trimmed)
    return pc.split_pattern(filled, " ")


def _ids(
    flat: pa.Array, start: npt.NDArray[np.int64], column: str, origin: Origin
) -> npt.NDArray[np.int64]:
    """The numbers in all lists; the error names the row whose list has a wrong one."""
    is_number = pa.types.is_integer(flat.type) or pa.types.is_string(flat.type)
    bad = 0 if not is_number or flat.null_count else None
    if flat.null_count:
        bad = int(np.flatnonzero(flat.is_null())[0])
    if bad is None:
        try:
            return np.ascontiguousarray(pc.cast(flat, pa.int64()))
        except pa.ArrowInvalid:
            bad = next(i for i in range(len(flat)) if not _is_int64(flat[i]))
    if len(flat) == 0:
        return np.zeros(0, np.int64)
    row = int(np.searchsorted(start, bad, side="right")) - 1
    raise origin.error(row, column, flat[bad].as_py(), "a list of whole numbers")


def _is_int64(value: pa.Scalar) -> bool:
    try:
        pc.cast(value, pa.int64())
    except pa.ArrowInvalid:
        return False
    return True
