"""Tokens to text as they come: no half characters, nothing of a stop string.

A token's text may depend on the ones before it (spaces, characters over several tokens), so a
short tail is decoded twice, with and without what is new, and the difference is emitted.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

HALF = "\ufffd"  # what decoders show for bytes that are no whole character yet
TAIL = 6  # tokens of context that a decoder's choices can depend on


class Tokenizer(Protocol):
    """What is used of a transformers tokenizer."""

    def decode(self, token_ids: list[int], *, skip_special_tokens: bool = False) -> str: ...


class TextStream:
    """The text of one request, piece by piece."""

    def __init__(self, tokenizer: Tokenizer, stop: Sequence[str] = ()) -> None:
        self.stopped: str | None = None  # the stop string that was met
        self._tokenizer = tokenizer
        self._stop = tuple(text for text in stop if text)
        self._tokens: list[int] = []
        self._shown = 0  # tokens whose text is out or held
        self._held = ""  # text that may be the start of a stop string

    def push(self, *tokens: int) -> str:
        """The text that these tokens let out; after a stop string nothing more."""
        if self.stopped is not None:
            return ""
        self._tokens += tokens
        return self._emit(self._fresh(at_end=False))

    def finish(self) -> str:
        """What was held back, half characters included: no more tokens will come."""
        if self.stopped is not None:
            return ""
        text = self._emit(self._fresh(at_end=True))
        held, self._held = self._held, ""
        return text + held if self.stopped is None else text

    def _fresh(self, *, at_end: bool) -> str:
        """Text of the tokens not shown yet, or nothing while it ends in half a character."""
        start = max(0, self._shown - TAIL)
        whole = self._decode(self._tokens[start:])
        if whole.endswith(HALF) and not at_end:
            return ""
        before = self._decode(self._tokens[start : self._shown])
        self._shown = len(self._tokens)
        self._tokens, self._shown = self._tokens[-TAIL:], min(self._shown, TAIL)
        return whole[len(before) :]

    def _decode(self, tokens: list[int]) -> str:
        return self._tokenizer.decode(tokens, skip_special_tokens=True) if tokens else ""

    def _emit(self, text: str) -> str:
        """Pass text through the stop strings: the earliest match ends it."""
        text = self._held + text
        found = [(at, stop) for stop in self._stop if (at := text.find(stop)) >= 0]
        if found:
            at, self.stopped = min(found, key=lambda match: (match[0], -len(match[1])))
            self._held = ""
            return text[:at]
        keep = max((overlap(text, stop) for stop in self._stop), default=0)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]


def overlap(text: str, stop: str) -> int:
    """How many characters at the end of `text` could be the start of `stop`."""
    longest = min(len(text), len(stop) - 1)
    return next((n for n in range(longest, 0, -1) if text.endswith(stop[:n])), 0)
