"""JSON Lines files, one object a line, as Arrow tables.

By the standard library: Arrow's reader crashes on a line `null` and guesses dates from names.
"""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa

from traces.errors import Origin, TraceError, shown
from traces.schema import NUMBERS, TEXTS

BOM = b"\xef\xbb\xbf"


def read_jsonl(path: Path) -> pa.Table:
    """A key that a row lacks is a missing value. Raises TraceError naming the row."""
    origin = Origin(str(path))
    lines = path.read_bytes().removeprefix(BOM).split(b"\n")
    rows = [_row(line, i, origin) for i, line in enumerate(filter(bytes.strip, lines))]
    if not rows:
        raise origin.empty()
    names = dict.fromkeys(name for row in rows for name in row)
    columns = {name: _column([row.get(name) for row in rows], name, origin) for name in names}
    return pa.table(columns)


def _row(line: bytes, i: int, origin: Origin) -> dict[str, Any]:
    text = line.decode(errors="surrogateescape")
    try:
        row = json.loads(text)
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


def _column(values: list[Any], name: str, origin: Origin) -> pa.Array:
    if name in NUMBERS:
        return pa.array([_number(v, i, name, origin) for i, v in enumerate(values)], pa.float64())
    if name in TEXTS:
        return pa.array([_text(v, i, name, origin) for i, v in enumerate(values)], pa.string())
    return pa.array([_any(v) for v in values], pa.string())


def _number(value: Any, row: int, column: str, origin: Origin) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise origin.error(row, column, value, "a number")
    try:
        return float(value)
    except OverflowError:
        return float("inf")


def _text(value: Any, row: int, column: str, origin: Origin) -> str | None:
    if value is None or isinstance(value, str):
        return value
    if column == "model" or isinstance(value, bool) or not isinstance(value, int):
        raise origin.error(row, column, value, "text")
    return str(value)  # numbered sessions and clients


def _any(value: Any) -> str | None:
    """A column of the user's own, as `where` compares it."""
    return value if value is None or isinstance(value, str) else json.dumps(value)
