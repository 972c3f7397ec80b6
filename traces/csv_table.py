"""CSV files with a header row as Arrow tables."""

from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as arrow_csv

from traces.errors import Origin, TraceError, shown
from traces.schema import NUMBERS, TEXTS

BLOCK_BYTES = 1 << 24  # a row may not be longer


def read_csv(path: Path) -> pa.Table:
    """An empty cell is a missing value. Raises TraceError naming the row that does not parse."""
    data = path.read_bytes()
    if not data.strip():
        raise Origin(str(path)).empty()
    _check_utf8(data, path)
    refused: list[arrow_csv.InvalidRow] = []

    def refuse(row: arrow_csv.InvalidRow) -> str:
        refused.append(row)
        return "error"

    try:
        table = arrow_csv.read_csv(
            pa.BufferReader(data if data.endswith(b"\n") else data + b"\n"),
            # one thread: an invalid row has a number then
            read_options=arrow_csv.ReadOptions(use_threads=False, block_size=BLOCK_BYTES),
            parse_options=arrow_csv.ParseOptions(
                newlines_in_values=True, invalid_row_handler=refuse
            ),
            convert_options=arrow_csv.ConvertOptions(
                column_types=dict.fromkeys((*NUMBERS, *TEXTS), pa.string()),
                null_values=[""],
                strings_can_be_null=True,
            ),
        )
    except pa.ArrowException as error:
        raise TraceError(f"{path}: not a readable CSV file: {_reason(error, refused)}") from None
    for name in NUMBERS:
        if table.column_names.count(name) == 1:
            at = table.column_names.index(name)
            table = table.set_column(at, name, _numbers(table[name], name, path))
    return table


def _reason(error: pa.ArrowException, refused: list[arrow_csv.InvalidRow]) -> str:
    if not refused:
        return str(error).splitlines()[0]
    row = refused[0]
    return (
        f"row {row.number - 1} has {row.actual_columns} values: {shown(row.text)}:"
        f" expected {row.expected_columns}, one per column"
    )


def _check_utf8(data: bytes, path: Path) -> None:
    try:
        data.decode()
    except UnicodeDecodeError as error:
        value = data[error.start : error.start + 1]
        *before, line = (data[: error.start] + b"x").splitlines()
        above = [text for text in before if text]
        if not above:
            raise TraceError(f"{path}: the header has {value!r}: expected UTF-8 text") from None
        names = above[0].decode("utf-8-sig").split(",")
        column = sum(part.count(b",") for part in line.split(b'"')[::2])  # outside quotes
        name = names[column] if column < len(names) else str(column + 1)
        raise Origin(str(path)).error(len(above) - 1, name, value, "UTF-8 text") from None


def _numbers(texts: pa.ChunkedArray, column: str, path: Path) -> pa.ChunkedArray:
    """As float64. Raises TraceError naming the first text that is not a number."""
    trimmed = pc.utf8_trim_whitespace(texts)
    try:
        return pc.cast(trimmed, pa.float64())
    except pa.ArrowInvalid:
        row = _first_text(trimmed)
        raise Origin(str(path)).error(row, column, texts[row].as_py(), "a number") from None


def _first_text(texts: pa.ChunkedArray) -> int:
    """The row of the first text that is not a number, by bisection."""
    low, high = 0, len(texts)
    while high - low > 1:
        middle = (low + high) // 2
        try:
            pc.cast(texts[low:middle], pa.float64())
        except pa.ArrowInvalid:
            high = middle
        else:
            low = middle
    return low
