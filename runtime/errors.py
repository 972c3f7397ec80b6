"""The user's mistakes: one line that names what, where, what was expected, the nearest choice."""

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """A mistake in a file, a key or a value; the command line prints it and exits with 2."""


def nearest(name: str, choices: Iterable[str]) -> str:
    """'did you mean X? known: ...' for an unknown `name`."""
    known = sorted(choices)
    close = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean {close[0]!r}? " if close else ""
    return f"{hint}known: {', '.join(known)}"
