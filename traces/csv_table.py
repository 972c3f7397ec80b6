"""CSV files with a header row, in chunks of texts. An empty cell is a missing value."""

import codecs
import csv
import io
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import pyarrow as pa
import pyarrow.csv as arrow_csv

from traces.errors import Origin, TraceError, shown
from traces.table import Role, Rows, open_text

BLOCK_BYTES = 1 << 24  # a row may not be longer


class CsvTable:
    """Rows as they come; memory holds a block of the file."""

    is_text = True

    def __init__(self, path: Path) -> None:
        """Raises TraceError when there is no header row."""
        self.path = path
        self.metadata: dict[str, str] = {}
        self.names = _header(path)

    def chunks(self, roles: dict[str, Role]) -> Iterator[Rows]:
        refused: list[arrow_csv.InvalidRow] = []

        def refuse(row: arrow_csv.InvalidRow) -> str:
            refused.append(row)
            return "error"

        parse = arrow_csv.ParseOptions(newlines_in_values=True, invalid_row_handler=refuse)
        first = 0
        try:
            with open_text(self.path) as file:
                for batch in arrow_csv.open_csv(
                    pa.PythonFile(_CheckedText(self.path, file), mode="r"),
                    # one thread: an invalid row has a number then
                    read_options=arrow_csv.ReadOptions(use_threads=False, block_size=BLOCK_BYTES),
                    parse_options=parse,
                    convert_options=arrow_csv.ConvertOptions(
                        include_columns=list(roles),
                        column_types=dict.fromkeys(self.names, pa.string()),
                        null_values=[""],
                        strings_can_be_null=True,
                    ),
                ):
                    if batch.num_rows:
                        yield Rows(pa.Table.from_batches([batch]), first)
                        first += batch.num_rows
        except pa.ArrowException as error:
            reason = _reason(error, refused)
            raise TraceError(f"{self.path}: not a readable CSV file: {reason}") from None


def _header(path: Path) -> list[str]:
    try:
        with io.TextIOWrapper(open_text(path), "utf-8-sig", newline="") as file:
            rows = (row for row in csv.reader(file) if row)
            names = next(rows, None)
    except (csv.Error, UnicodeDecodeError) as error:
        _check_utf8(path)
        raise TraceError(f"{path}: not a readable CSV file: {error}") from None
    if names is None:
        raise Origin(str(path)).empty()
    return names


class _CheckedText(io.RawIOBase):
    """A file's bytes, all UTF-8, and a newline: without it Arrow drops a row that is cut short."""

    def __init__(self, path: Path, file: IO[bytes]) -> None:
        self.path, self.file, self.is_done = path, file, False
        self.decoder = codecs.getincrementaldecoder("utf-8")()

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        data = self.file.read(size)
        if not self.is_done and not 0 <= size <= len(data):
            self.is_done = True
            data += b"\n"
        try:
            self.decoder.decode(data, final=self.is_done)
        except UnicodeDecodeError:
            _check_utf8(self.path)
        return data


def _reason(error: pa.ArrowException, refused: list[arrow_csv.InvalidRow]) -> str:
    if not refused:
        return (str(error).splitlines() or [type(error).__name__])[0]
    row = refused[0]
    return (
        f"row {row.number - 1} has {row.actual_columns} values: {shown(row.text)}:"
        f" expected {row.expected_columns}, one per column"
    )


def _check_utf8(path: Path) -> None:
    """Raises TraceError naming row and column of the first byte that is not UTF-8."""
    names: list[str] = []
    row = -1
    with open_text(path) as file:
        for line in file:
            try:
                text = line.decode("utf-8-sig" if row < 0 else "utf-8").strip()
            except UnicodeDecodeError as error:
                value = line[error.start : error.start + 1]
                if row < 0:
                    raise TraceError(
                        f"{path}: the header has {value!r}: expected UTF-8 text"
                    ) from None
                before = line[: error.start].split(b'"')[::2]  # outside quotes
                column = sum(part.count(b",") for part in before)
                name = names[column] if column < len(names) else str(column + 1)
                raise Origin(str(path)).error(row, name, value, "UTF-8 text") from None
            if text:
                names = text.split(",") if row < 0 else names
                row += 1
