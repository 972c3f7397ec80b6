"""What every reader of a file gives: its columns' names, and then its rows in chunks."""

import gzip
from collections.abc import Iterator
from enum import Enum, auto
from pathlib import Path
from typing import IO, NamedTuple, Protocol, cast

import pyarrow as pa

CHUNK_ROWS = 1 << 17


class Role(Enum):
    """What a column's values have to be, for files whose values have no type of their own."""

    NUMBER = auto()
    NAME = auto()
    LABEL = auto()  # a text, or a number as a text
    TIME = auto()
    BLOCKS = auto()
    ANY = auto()  # compared as a text


class Rows(NamedTuple):
    """Rows of a file, none of them empty."""

    table: pa.Table
    first: int  # the number (0-based) of the first row in the file


class TableFile(Protocol):
    """An open file. Its names are in order, with a dot where one goes into an object."""

    names: list[str]
    metadata: dict[str, str]
    is_text: bool  # all values are texts

    def chunks(self, roles: dict[str, Role]) -> Iterator[Rows]:
        """The rows, with these columns only. Raises TraceError naming the row that is wrong."""
        ...


def open_text(path: Path) -> IO[bytes]:
    """The bytes of a text file, also of one that ends in .gz."""
    if path.suffix.lower() == ".gz":
        return cast("IO[bytes]", gzip.open(path, "rb"))
    return path.open("rb")


def uncompressed(path: Path) -> Path:
    """Its name without .gz."""
    return path.with_suffix("") if path.suffix.lower() == ".gz" else path
