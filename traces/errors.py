"""The user's mistakes: one line that names what, where, what was expected, the nearest choice."""

import difflib
from collections.abc import Iterable

LISTED = 12  # names a message lists before it only counts


class UserError(ValueError):
    """A mistake in a file, a key or a value; the command line prints it and exits with 2."""


class TraceError(UserError):
    """A trace file or a request for one that is not valid: names file, row, column and value."""


def nearest(name: str, choices: Iterable[str]) -> str:
    """'did you mean X? known: ...' for an unknown `name`."""
    known = sorted(choices)
    close = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean {close[0]!r}? " if close else ""
    listed = ", ".join(known[:LISTED])
    more = f" and {len(known) - LISTED} more" if len(known) > LISTED else ""
    return f"{hint}known: {listed}{more}"
