"""JSON Lines files, one object a line, in chunks.

By the standard library: Arrow's reader crashes on a line `null` and guesses dates from names.
"""

import json
from collections.abc import Iterator
from itertools import chain, islice
from pathlib import Path
from typing import Any

import pyarrow as pa

from traces.errors import Origin, TraceError, shown
from traces.table import Role, Rows, open_text

BOM = b"\xef\xbb\xbf"
ROWS = 1 << 14
DECODE = json.JSONDecoder().decode
Row = dict[str, Any]
EXPECTED = {Role.NAME: "text", Role.LABEL: "text", Role.NUMBER: "a number"}


class JsonlTable:
    """A key that a row lacks is a missing value; memory holds a chunk of the file."""

    is_text = False

    def __init__(self, path: Path) -> None:
        """Names are those of the first chunk. Raises TraceError when the first row is no object."""
        self.path, self.origin = path, Origin(str(path))
        self.metadata: dict[str, str] = {}
        self.rows = self._rows()
        self.head = list(islice(self.rows, ROWS))
        if not self.head:
            raise self.origin.empty()
        self.names = list(dict.fromkeys(chain.from_iterable(map(_names, self.head))))

    def chunks(self, roles: dict[str, Role]) -> Iterator[Rows]:
        """Once: the file is not read again."""
        part, first = self.head, 0
        while part:
            columns = {
                name: _column(_values(part, name), name, role, first, self.origin)
                for name, role in roles.items()
            }
            yield Rows(pa.table(columns), first)
            first += len(part)
            part = list(islice(self.rows, ROWS))

    def _rows(self) -> Iterator[Row]:
        with open_text(self.path) as file:
            number = 0
            for i, line in enumerate(file):
                text = line.removeprefix(BOM) if i == 0 else line
                if text.strip():
                    yield _row(text.rstrip(b"\n"), number, self.origin)
                    number += 1


def _row(line: bytes, i: int, origin: Origin) -> Row:
    text = line.decode(errors="surrogateescape")
    try:
        row = DECODE(text)
    except (ValueError, RecursionError) as error:
        raise TraceError(f"{origin.name}: row {i + 1} is {shown(text)}: {error}") from None
    if not isinstance(row, dict):
        raise TraceError(f"{origin.name}: row {i + 1} is {shown(text)}: expected a JSON object")
    if not line.isascii() or b"\\u" in line:
        for name, value in row.items():
            if not _is_unicode(name + json.dumps(value, ensure_ascii=False)):
                raise origin.error(i, name, value, "UTF-8 text")
    return row


def _is_unicode(text: str) -> bool:
    """False for a lone surrogate: a byte that is not UTF-8, or one spelled in JSON."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _names(row: Row, prefix: str = "", depth: int = 4) -> Iterator[str]:
    """The keys of a row, with those of the objects in it."""
    for key, value in row.items():
        yield prefix + key
        if isinstance(value, dict) and depth:
            yield from _names(value, f"{prefix}{key}.", depth - 1)


def _values(rows: list[Row], name: str) -> list[Any]:
    """The values at a name with dots; a key that has the dots itself comes first."""
    key, dot, rest = name.partition(".")
    if not dot or any(name in row for row in rows):
        return [row.get(name) for row in rows]
    inner = [row.get(key) for row in rows]
    return _values([value if isinstance(value, dict) else {} for value in inner], rest)


def _column(values: list[Any], name: str, role: Role, first: int, origin: Origin) -> pa.Array:
    if role is Role.TIME:
        role = Role.NAME if _first(values, str) else Role.NUMBER
    if role is Role.BLOCKS:
        return _blocks(values, name, first, origin)
    try:
        made = pa.array(values)
    except (pa.ArrowException, OverflowError):
        made = pa.nulls(0)
    if pa.types.is_string(made.type) and role is not Role.NUMBER:
        return made
    if made.type in (pa.float64(), pa.int64()) and role is Role.NUMBER:
        return made.cast(pa.float64(), safe=False)
    return _converted(values, name, role, first, origin)  # not all are plain: one by one


def _converted(values: list[Any], name: str, role: Role, first: int, origin: Origin) -> pa.Array:
    kind = pa.float64() if role is Role.NUMBER else pa.string()
    convert = {Role.NUMBER: _number, Role.NAME: _text, Role.LABEL: _label, Role.ANY: _any}[role]
    try:
        return pa.array(map(convert, values), kind, size=len(values))
    except TypeError:
        row = next(i for i, value in enumerate(values) if not _is_fine(convert, value))
        raise origin.error(first + row, name, values[row], EXPECTED[role]) from None


def _first(values: list[Any], kind: type) -> bool:
    return isinstance(next((v for v in values if v is not None), None), kind)


def _is_fine(convert: Any, value: Any) -> bool:
    try:
        convert(value)
    except TypeError:
        return False
    return True


def _number(value: Any) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError
    try:
        return float(value)
    except OverflowError:
        return float("inf")


def _text(value: Any) -> str | None:
    if value is None or isinstance(value, str):
        return value
    raise TypeError


def _label(value: Any) -> str | None:
    """Sessions and clients may be numbers."""
    is_number = isinstance(value, int) and not isinstance(value, bool)
    return str(value) if is_number else _text(value)


def _any(value: Any) -> str | None:
    """A column of the user's own, as `where` compares it."""
    return value if value is None or isinstance(value, str) else json.dumps(value)


def _blocks(values: list[Any], name: str, first: int, origin: Origin) -> pa.Array:
    for i, value in enumerate(values):
        if value is not None and not (
            isinstance(value, list) and all(type(v) is int and -(2**63) <= v < 2**63 for v in value)
        ):
            raise origin.error(first + i, name, value, "a list of whole numbers")
    return pa.array(values, pa.large_list(pa.int64()))
