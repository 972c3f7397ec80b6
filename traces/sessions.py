"""Conversations: sessions of several turns, each prompt holding all that was said before."""

from typing import Any, NamedTuple

import numpy as np

from traces.arrivals import Arrivals
from traces.lengths import Lengths, Tokens
from traces.warp import TICK_HZ, Ticks

MOST_TURNS = 64
READING_S = 0.05  # per output token: a reply is streamed and read before the next turn


class Requests(NamedTuple):
    """One model's requests [R] in order of arrival; `session` numbers its conversations."""

    time: Ticks
    prompt: Tokens
    output: Tokens
    session: Ticks | None = None


class Single:
    """Every request on its own."""

    def __init__(self, arrivals: Arrivals, lengths: Lengths) -> None:
        self.arrivals, self.lengths = arrivals, lengths

    def until(self, stop: int) -> Requests:
        """The requests before `stop` that were not given yet."""
        times = self.arrivals.until(stop)
        return Requests(times, *self.lengths.draw(len(times)))


class Conversations:
    """Sessions arrive; each has a geometric number of turns (of mean `turns`, at most 64), the next
    one `think_s` on average (exponential) after the reply was read. A turn's prompt is its own
    words after all earlier prompts and replies; one beyond `context_tokens` ends the session."""

    def __init__(
        self,
        arrivals: Arrivals,
        lengths: Lengths,
        turns: float,
        think_s: float,
        context_tokens: int,
        turns_rng: np.random.Generator,
        think_rng: np.random.Generator,
    ) -> None:
        self.arrivals, self.lengths = arrivals, lengths
        self.turns, self.think_s, self.context_tokens = turns, think_s, context_tokens
        self.turns_rng, self.think_rng = turns_rng, think_rng
        self.sessions = 0
        none = np.zeros(0, np.int64)
        self.pending = Requests(none, none.astype(np.int32), none.astype(np.int32), none)

    def until(self, stop: int) -> Requests:
        """The requests from 0 to before `stop` that were not given yet."""
        whole = ordered(self.pending, self._talked(self.arrivals.until(stop)))
        born, given = np.searchsorted(whole.time, [0, stop])
        self.pending = cut(whole, slice(int(given), None))
        return cut(whole, slice(int(born), int(given)))

    def _talked(self, starts: Ticks) -> Requests:
        """All the turns of the sessions that start at `starts`, session by session."""
        counts = np.minimum(self.turns_rng.geometric(1 / self.turns, len(starts)), MOST_TURNS)
        total, first = int(counts.sum()), np.cumsum(counts) - counts
        of = np.repeat(np.arange(len(starts)), counts)
        words, output = self.lengths.draw(total)
        think = self.think_rng.standard_exponential(total) * (self.think_s * TICK_HZ)
        pause = np.rint(think).astype(np.int64) + output * round(READING_S * TICK_HZ)
        said = words.astype(np.int64) + output
        prompt = since(said, first, of) + words
        whole = Requests(
            starts[of] + since(pause, first, of),
            prompt.astype(np.int32),
            output,
            self.sessions + of,
        )
        self.sessions += len(starts)
        return cut(whole, prompt <= self.context_tokens)


def since(values: Ticks, first: Ticks, of: Ticks) -> Ticks:
    """Sum of the values before each row within its own session."""
    before = np.cumsum(values) - values
    return before - before[first[of]]


def ordered(*parts: Requests) -> Requests:
    """By time; at one instant by session."""
    columns: list[Any] = list(zip(*parts, strict=True))
    whole = Requests(*(np.concatenate(column) for column in columns))
    assert whole.session is not None
    return cut(whole, np.lexsort((whole.prompt, whole.session, whole.time)))


def cut(requests: Requests, index: Any) -> Requests:
    columns: list[Any] = [None if column is None else column[index] for column in requests]
    return Requests(*columns)
