"""What the events of one stream say: when tokens came, how many, why it ended."""

from array import array
from time import perf_counter

import msgspec
import numpy as np
import numpy.typing as npt
from msgspec import Struct


class Delta(Struct):
    content: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None


class Choice(Struct):
    text: str | None = None
    delta: Delta | None = None
    finish_reason: str | None = None


class Usage(Struct):
    prompt_tokens: int | None = None
    completion_tokens: int | None = None


class Fault(Struct):
    message: str = ""


class Chunk(Struct):
    choices: list[Choice] = []
    usage: Usage | None = None
    error: Fault | str | None = None


DECODE = msgspec.json.Decoder(Chunk).decode


def error_text(body: bytes) -> str:
    """The message of an error in OpenAI's shape, else the start of the body, in one line."""
    try:
        error = DECODE(body).error
        text = error.message if isinstance(error, Fault) else error or ""
    except msgspec.DecodeError:
        text = ""
    return " ".join((text or body[:200].decode("utf-8", "replace")).split())


def has_text(choice: Choice) -> bool:
    delta = choice.delta
    if delta is None:
        return bool(choice.text)
    return bool(delta.content or delta.reasoning_content or delta.reasoning)


class Answer:
    """Fed event by event; times are seconds of `perf_counter`."""

    __slots__ = ("at_s", "counted", "end_s", "error", "finish", "is_done", "usage")

    def __init__(self) -> None:
        self.at_s = array("d")  # of each event that brought text
        self.counted = array("q")  # tokens so far where the event says, else -1
        self.end_s: float | None = None  # of an end without text: it may have had a token
        self.usage = Usage()
        self.finish: str | None = None
        self.error: str | None = None
        self.is_done = False

    def feed(self, payload: bytes) -> None:
        if payload == b"[DONE]":
            self.is_done = True
            return
        try:
            chunk = DECODE(payload)
        except msgspec.DecodeError as error:
            self.error = self.error or f"no chunk of a stream: {error}"
            return
        if chunk.error is not None:
            self.error = error_text(payload)
        if chunk.usage is not None:
            self.usage = chunk.usage
        for choice in chunk.choices:
            self._feed(choice, chunk.usage)

    def _feed(self, choice: Choice, usage: Usage | None) -> None:
        if choice.finish_reason is not None:
            self.finish = choice.finish_reason
            self.end_s = None if has_text(choice) else perf_counter()
        is_empty = choice.delta is None and choice.text == "" and choice.finish_reason is None
        if has_text(choice) or is_empty:  # a token may have no text yet
            self.at_s.append(perf_counter())
            tokens = usage.completion_tokens if usage is not None else None
            self.counted.append(-1 if tokens is None else tokens)

    @property
    def tokens(self) -> int:
        """As the endpoint counts them in a whole answer, else the events with text."""
        stated = self.usage.completion_tokens
        is_whole = self.at_s and self.finish is not None and self.error is None
        return stated if is_whole and stated is not None else len(self.at_s)

    @property
    def is_exact(self) -> bool:
        """Is it known when each token came?"""
        missing = self.tokens - len(self.at_s)
        return missing == (self.end_s is not None) or missing == 0 or self.counted[0] > 0

    def token_s(self) -> npt.NDArray[np.float64]:
        """When each token came. Where events bring more than one and do not say how many, tokens
        are spread evenly over events; each counts as come when its event came."""
        at_s, n = np.frombuffer(self.at_s, np.float64), self.tokens
        if len(at_s) == n - 1 and self.end_s is not None:
            return np.append(at_s, self.end_s)
        if len(at_s) == n or not len(at_s):
            return at_s.copy()
        counted = np.frombuffer(self.counted, np.int64)
        if counted[0] > 0 and counted[-1] == n and (np.diff(counted) >= 0).all():
            return at_s[np.searchsorted(counted, np.arange(1, n + 1))]
        return at_s[-(-np.arange(1, n + 1) * len(at_s) // n) - 1]
