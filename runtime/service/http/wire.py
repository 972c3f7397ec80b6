"""What an answer is made of, apart from which route gives it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from runtime.service.http.generation import Piece, Usage


class Wire(Protocol):
    """One response in the shape of its route: as server-sent events, or whole."""

    def opening(self, choice: int) -> bytes:
        """An event before the first piece of a choice; may be nothing."""
        ...

    def event(self, piece: Piece) -> bytes: ...

    def usage_event(self, usage: Usage) -> bytes: ...

    def whole(self, choices: Sequence[Sequence[Piece]], usage: Usage) -> bytes: ...
