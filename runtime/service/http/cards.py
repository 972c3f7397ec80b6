"""What the HTTP side knows of a model: its name, its tokenizer, how long its context is."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from runtime.engine.text import Tokenizer
from runtime.errors import nearest
from runtime.service.http.errors import ApiError, printable
from runtime.service.tokenizers import open_tokenizer


class ChatTokenizer(Protocol):
    """What is used of a transformers tokenizer."""

    @property
    def chat_template(self) -> Any: ...

    def encode(self, text: str) -> list[int]: ...

    def decode(self, token_ids: list[int], *, skip_special_tokens: bool = False) -> str: ...

    def apply_chat_template(
        self, conversation: Any, *, add_generation_prompt: bool, return_dict: bool
    ) -> Any: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Offer:
    """What the controller tells of a model. `path`: as in `ModelSource`, of its tokenizer here."""

    path: str
    context_tokens: int
    vocab: int

    def card(self, name: str) -> Card:
        """Raises UserError where there is no tokenizer."""
        return Card(
            name=name,
            tokenizer=open_tokenizer(self.path),
            context_tokens=self.context_tokens,
            vocab=self.vocab,
            created=int(time.time()),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Card:
    """A model that may be asked. `vocab`: token ids are below it."""

    name: str
    tokenizer: ChatTokenizer
    context_tokens: int
    vocab: int
    created: int = 0  # seconds since 1970

    @property
    def decoder(self) -> Tokenizer:
        """What turns tokens to text: a fast tokenizer's backend where its frontend adds nothing,
        a tenth of the time."""
        backend = getattr(self.tokenizer, "backend_tokenizer", None)
        is_plain = not getattr(self.tokenizer, "clean_up_tokenization_spaces", True)
        decoder: Tokenizer = backend if backend is not None and is_plain else self.tokenizer
        return decoder

    def check_prompt(self, prompt: Sequence[int], most: int) -> None:
        """Raises ApiError where a prompt leaves no room for one token or is no text of ours."""
        if not prompt:
            raise ApiError(400, "prompt: is empty: expected 1 token at least", param="prompt")
        limit = min(most, self.context_tokens - 1)
        if len(prompt) > limit:
            raise self._too_long(f"the prompt has {len(prompt)} tokens: expected {limit} at most")
        if not 0 <= min(prompt) <= max(prompt) < self.vocab:
            wrong = next(token for token in prompt if not 0 <= token < self.vocab)
            reason = f"prompt: token {wrong}: {self.name} has 0 to {self.vocab - 1}"
            raise ApiError(400, reason, param="prompt")

    def output_limit(self, prompt_tokens: int, asked: int | None) -> int:
        """How many tokens may come: all that fit where nothing was asked."""
        room = self.context_tokens - prompt_tokens
        if asked is None:
            return room
        if asked > room:
            raise self._too_long(
                f"{prompt_tokens} tokens of prompt and max_tokens={asked} are beyond the "
                f"{self.context_tokens} of this model"
            )
        return asked

    def _too_long(self, reason: str) -> ApiError:
        return ApiError(400, reason, param="prompt", code="context_length_exceeded")


def card_of(cards: Mapping[str, Card], name: str) -> Card:
    """The card of a model. Raises ApiError (404) with the nearest name."""
    card = cards.get(name)
    if card is None:
        reason = f"model {printable(name)[:80]!r} does not exist: {nearest(name[:80], cards)}"
        raise ApiError(404, reason, param="model", code="model_not_found")
    return card
