"""A request under way: its tokens, how many of them have KV, and when it ends."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from runtime.engine.attention import AttentionBatch, placed
from runtime.engine.plan import Ending, Request
from runtime.engine.sampling import Chance
from runtime.engine.text import TextStream, Tokenizer


class Live:
    """Grows token by token; `cached` of its tokens have KV."""

    __slots__ = (
        "_limit",
        "_stop",
        "cached",
        "chance",
        "ending",
        "has_kv",
        "request",
        "text",
        "tokens",
    )

    def __init__(
        self,
        request: Request,
        *,
        vocab: int,
        device: torch.device,
        stop_tokens: frozenset[int],
        context: int,
        tokenizer: Tokenizer | None,
    ) -> None:
        self.request = request
        self.tokens = [*request.prompt, *request.output]
        self.cached = 0
        self.has_kv = False  # the arena knows it
        self.ending: Ending | None = None  # its last token is there
        self._limit = min(len(request.prompt) + request.max_tokens, context)
        own = frozenset() if request.ignore_eos else stop_tokens
        self._stop = own | request.stop_tokens
        self.chance = Chance(
            request.sampling,
            vocab,
            device,
            tokens=self.tokens,
            drawn=len(request.output),
        )
        self.text: TextStream | None = None
        if request.stop_strings and tokenizer is not None:
            self.text = TextStream(tokenizer, request.stop_strings)
            self.text.push(*request.output)

    @property
    def missing(self) -> int:
        """Tokens without KV; 1 when it decodes."""
        return len(self.tokens) - self.cached

    def resumed(self) -> Request:
        """The request with what it has so far, to go on elsewhere."""
        return replace(self.request, output=tuple(self.tokens[len(self.request.prompt) :]))

    def append(self, token: int) -> Ending | None:
        """Its next token; whether and why that was its last."""
        self.tokens.append(token)
        self.ending = self._ended(token)
        return self.ending

    def _ended(self, token: int) -> Ending | None:
        if token in self._stop:
            return Ending.STOP
        if self.text is not None:
            self.text.push(token)
            if self.text.stopped is not None:
                return Ending.STOP
        return Ending.LENGTH if len(self.tokens) >= self._limit else None


class Inputs:
    """Tensors of one model call for `counts` next tokens of each request."""

    __slots__ = ("batch", "positions", "rows", "tokens")

    def __init__(
        self,
        lives: Sequence[Live],
        counts: Sequence[int],
        tables: Sequence[Sequence[int]],
        block: int,
        device: torch.device,
        last: AttentionBatch | None = None,
    ) -> None:
        ends = [live.cached + count for live, count in zip(lives, counts, strict=True)]
        spans = [(live.cached, end) for live, end in zip(lives, ends, strict=True)]
        tokens = [t for live, (a, b) in zip(lives, spans, strict=True) for t in live.tokens[a:b]]
        self.tokens = placed(tokens, np.int64, device)
        positions = [p for a, b in spans for p in range(a, b)]
        self.positions = placed(positions, np.int64, device)
        self.batch = AttentionBatch.of(tables, counts, ends, block=block, device=device, last=last)
        self.rows: Tensor | None = None  # the last new token of each request
        if len(tokens) > len(lives):
            rows, at = [], -1
            for count in counts:
                at += count
                rows.append(at)
            self.rows = placed(rows, np.int64, device)
