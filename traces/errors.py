"""The user's mistakes: one line that names what, where, what was expected, the nearest choice."""

import difflib
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

LISTED = 12  # names a message lists before it only counts
SHOWN = 60  # characters of a value that a message shows


class UserError(ValueError):
    """A mistake in a file, a key or a value; the command line prints it and exits with 2."""

    def __init__(self, message: str) -> None:
        super().__init__("".join(c if c.isprintable() else _escaped(c) for c in message))


def _escaped(letter: str) -> str:
    return letter.encode("unicode_escape").decode()


class TraceError(UserError):
    """A trace file or a request for one that is not valid: names file, row, column and value."""


class Origin(NamedTuple):
    """What a message calls a trace, and the number (0-based) of each of its rows in the file."""

    name: str
    rows: Sequence[int] | None = None  # None: all of them

    def error(self, row: int, column: str, value: Any, expected: str) -> TraceError:
        """The mistake in one value; rows are named from 1, without a header or blank lines."""
        number = 1 + int(row if self.rows is None else self.rows[row])
        stated = "is empty" if value is None or value == "" else f"is {shown(value)}"
        return TraceError(
            f"{self.name}: row {number}, column {column} {stated}: expected {expected}"
        )

    def empty(self) -> TraceError:
        return TraceError(f"{self.name}: no requests: expected at least one row")


def shown(value: Any) -> str:
    """A value as a message shows it: whole floats without a fraction, long texts cut."""
    text = repr(value).removesuffix(".0")
    return text if len(text) <= SHOWN else text[:SHOWN] + "..."


def nearest(name: str, choices: Iterable[str]) -> str:
    """'did you mean X? known: ...' for an unknown `name`."""
    known = sorted(choices)
    close = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean {close[0]!r}? " if close else ""
    listed = ", ".join(known[:LISTED])
    more = f" and {len(known) - LISTED} more" if len(known) > LISTED else ""
    return f"{hint}known: {listed}{more}"
