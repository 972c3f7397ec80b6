"""Log probabilities as JSON has them: finite, with the text of their tokens."""

from __future__ import annotations

from runtime.service.http.cards import ChatTokenizer
from runtime.service.messages import Logprob

LEAST = -9999.0  # JSON has no minus infinity; OpenAI's number for it


def finite(value: float) -> float:
    return max(LEAST, value)


def token_text(tokenizer: ChatTokenizer, token: int) -> str:
    return tokenizer.decode([token])


def tops(entry: Logprob) -> list[tuple[int, float]]:
    return [(token, finite(value)) for token, value in entry.top]
