"""How an endpoint wants to be asked: found by asking, the most exact way first."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import msgspec
import numpy as np

from aegaeon_rl.replay.spec import Api, Prompts, ReplaySpec

ENCODE = msgspec.json.Encoder().encode
FIRST_ID, LAST_ID = 16, 255  # in every vocabulary, and no special token in any we know
TEXT = """
time year people way day man thing woman life child world school state family student group country
problem hand part place case week company system program question work number night point home water
room mother area money story fact month lot right study book eye job word business issue side kind
head house service friend father power hour game line end member law car city name team minute idea
body back parent face level office door health person art war history party result change morning
"""
WORDS = TEXT.split()


class Dialect(NamedTuple):
    is_chat: bool
    by_ids: bool  # the prompt is token ids
    ignores_end: bool  # output lengths are exact
    has_usage: bool  # the last event counts tokens
    limit: str = "max_tokens"
    counts_each: bool = False  # every event says how many tokens there are so far

    @property
    def path(self) -> str:
        return "/v1/chat/completions" if self.is_chat else "/v1/completions"

    def __str__(self) -> str:
        prompt = "token ids" if self.by_ids else "words"
        length = "ignore_eos" if self.ignores_end else "end at EOS"
        return f"{self.path}, prompts of {prompt}, outputs {length}"

    def body(self, model: str, prompt: str | list[int], tokens: int, priority: int = 0) -> bytes:
        content: dict[str, Any] = {"model": model, self.limit: tokens, "stream": True}
        content["temperature"] = 0.0
        if self.is_chat:
            content["messages"] = [{"role": "user", "content": prompt}]
        else:
            content["prompt"] = prompt
        if self.ignores_end:
            content["ignore_eos"] = True
        if self.has_usage:
            content["stream_options"] = {"include_usage": True}
        if self.counts_each:
            content["stream_options"]["continuous_usage_stats"] = True
        if priority:
            content["priority"] = priority
        return ENCODE(content)


DIALECTS = (
    Dialect(False, True, True, True, counts_each=True),
    Dialect(False, False, True, True, counts_each=True),
    Dialect(False, True, True, True),
    Dialect(False, False, True, True),
    Dialect(True, False, True, True),
    Dialect(False, True, False, True),
    Dialect(False, False, False, True),
    Dialect(True, False, False, True),
    Dialect(True, False, False, True, "max_completion_tokens"),
    Dialect(False, False, False, False),
    Dialect(True, False, False, False),
)


def candidates(spec: ReplaySpec) -> list[Dialect]:
    """Those that the configuration allows, in order."""
    return [
        d
        for d in DIALECTS
        if (spec.api is Api.AUTO or d.is_chat == (spec.api is Api.CHAT))
        and (spec.prompts is Prompts.AUTO or d.by_ids == (spec.prompts is Prompts.TOKENS))
    ]


class WordCount(NamedTuple):
    """Prompt tokens of a model are about `fixed` + `per_word` * words."""

    fixed: float = 0.0
    per_word: float = 1.0

    def words(self, tokens: int) -> int:
        return max(1, round((tokens - self.fixed) / self.per_word))


def fitted(words: Sequence[int], tokens: Sequence[int]) -> WordCount:
    """Through two probes."""
    slope = (tokens[1] - tokens[0]) / (words[1] - words[0])
    return WordCount(tokens[0] - slope * words[0], slope) if slope > 0 else WordCount()


def made_prompt(
    dialect: Dialect, tokens: int, count: WordCount, rng: np.random.Generator
) -> str | list[int]:
    """Random, so that no cache of prefixes helps."""
    if dialect.by_ids:
        return rng.integers(FIRST_ID, LAST_ID + 1, tokens).tolist()
    return " ".join(WORDS[i] for i in rng.integers(0, len(WORDS), count.words(tokens)).tolist())
