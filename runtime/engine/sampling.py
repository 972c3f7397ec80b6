"""From logits to the next token, on the device, each request by its own rules and seed.

A request's random numbers come from a generator of its own, one row of the vocabulary a token, so
they depend neither on the batch nor on the instance; on CPU they are those of transformers'
`generate` under `torch.manual_seed(seed)`. Letters: B requests, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from runtime.errors import UserError

LEAST_TEMPERATURE = 1e-5


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How one request's tokens are chosen; the filters apply in transformers' order:
    repetition penalty, temperature, top-k, top-p, min-p."""

    temperature: float = 0.0  # 0: greedy
    top_k: int = 0  # 0: all
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    seed: int = 0
    logprobs: int | None = None  # of the chosen token and this many of the likeliest

    def __post_init__(self) -> None:
        bounds = {
            "temperature": (0, 100),
            "top_k": (0, 1 << 31),
            "top_p": (0, 1),
            "min_p": (0, 1),
            "repetition_penalty": (0.01, 100),
            "seed": (0, (1 << 63) - 1),
            "logprobs": (0, 20),
        }
        for name, (low, high) in bounds.items():
            value = getattr(self, name)
            if name == "logprobs" and value is None:
                continue
            kinds = (int,) if name in ("top_k", "seed", "logprobs") else (int, float)
            is_one = isinstance(value, kinds) and not isinstance(value, bool)
            if not is_one or not low <= value <= high:
                kind = "a whole number from " if len(kinds) == 1 else ""
                raise UserError(f"sampling.{name}={value!r:.60}: expected {kind}{low} to {high}")
        if self.top_p == 0:
            raise UserError("sampling.top_p=0: expected more than 0")
        if 0 < self.temperature < LEAST_TEMPERATURE:
            raise UserError(
                f"sampling.temperature={self.temperature}: expected 0 (greedy), or "
                f"{LEAST_TEMPERATURE} or more: smaller ones overflow"
            )


class Chance:
    """A request's live state of sampling: its generator and the tokens it has seen."""

    __slots__ = ("generator", "seen", "spec")

    def __init__(
        self,
        spec: Sampling,
        vocab: int,
        device: torch.device,
        *,
        tokens: Sequence[int] = (),
        drawn: int = 0,
    ) -> None:
        """`tokens` are those so far, prompt included; `drawn` of them were sampled: as many rows
        of random numbers are skipped, so that a request goes on anywhere as if undisturbed."""
        self.spec = spec
        self.generator: torch.Generator | None = None
        self.seen: Tensor | None = None
        if spec.temperature > 0:
            self.generator = torch.Generator(device).manual_seed(spec.seed)
            row = torch.empty(vocab, device=device)
            for _ in range(drawn):
                row.exponential_(generator=self.generator)
        if spec.repetition_penalty != 1:
            self.seen = torch.zeros(vocab, dtype=torch.bool, device=device)
            self.seen[torch.tensor(tokens, dtype=torch.int64, device=device)] = True

    @property
    def is_plain(self) -> bool:
        """Greedy and nothing else."""
        return self.generator is None and self.seen is None and self.spec.logprobs is None


class Logprobs(NamedTuple):
    """Log probabilities of one token under the model, before any filter."""

    chosen: float
    top_tokens: tuple[int, ...]
    top: tuple[float, ...]


class Sampled(NamedTuple):
    tokens: Tensor  # int64 [B], on the device
    logprobs: tuple[Logprobs | None, ...]  # [B]; empty when no request asks


def sample(logits: Tensor, chances: Sequence[Chance]) -> Sampled:
    """The next token of each request; logits [B, V]. Advances the requests' generators."""
    if all(chance.is_plain for chance in chances):
        return Sampled(logits.argmax(-1), ())
    raw = logits.float()
    scores = penalise(raw, chances)
    tokens = scores.argmax(-1)
    random = [i for i, chance in enumerate(chances) if chance.generator is not None]
    if random:
        kept = scores if len(random) == len(chances) else scores[random]
        drawn = draw(kept, [chances[i] for i in random])
        tokens[random] = drawn
    for i, chance in enumerate(chances):
        if chance.seen is not None:
            chance.seen[tokens[i]] = True
    if all(chance.spec.logprobs is None for chance in chances):
        return Sampled(tokens, ())
    return Sampled(tokens, logprobs(raw, tokens, [chance.spec.logprobs for chance in chances]))


def penalise(scores: Tensor, chances: Sequence[Chance]) -> Tensor:
    """Scores of tokens seen before, divided (or multiplied, below 0) by the penalty."""
    rows = [i for i, chance in enumerate(chances) if chance.seen is not None]
    if not rows:
        return scores
    scores = scores.clone()
    for i in rows:
        penalty, row = chances[i].spec.repetition_penalty, scores[i]
        lower = torch.where(row < 0, row * penalty, row / penalty)
        scores[i] = torch.where(chances[i].seen, lower, row)  # type: ignore[arg-type]
    return scores


def draw(scores: Tensor, chances: Sequence[Chance]) -> Tensor:
    """One token a row from the filtered distribution: argmax of p / exponential noise."""
    specs = [chance.spec for chance in chances]
    scores = scores / column([spec.temperature for spec in specs], scores)
    probabilities = filtered(scores, specs).softmax(-1)
    noise = torch.empty_like(probabilities)
    for row, chance in zip(noise, chances, strict=True):
        row.exponential_(generator=chance.generator)
    return (probabilities / noise).argmax(-1)


def filtered(scores: Tensor, specs: Sequence[Sampling]) -> Tensor:
    """Scores with what top-k, top-p and min-p exclude at minus infinity."""
    vocab = scores.shape[-1]
    top_k = [min(spec.top_k or vocab, vocab) for spec in specs]
    if min(top_k) < vocab:
        best = scores.topk(max(top_k)).values
        last = best.gather(1, torch.tensor(top_k, device=scores.device)[:, None] - 1)
        scores = scores.masked_fill(scores < last, -math.inf)
    if min(spec.top_p for spec in specs) < 1:
        scores = nucleus(scores, column([spec.top_p for spec in specs], scores))
    if max(spec.min_p for spec in specs) > 0:
        probabilities = scores.softmax(-1)
        least = probabilities.amax(-1, keepdim=True) * column([s.min_p for s in specs], scores)
        scores = scores.masked_fill(probabilities < least, -math.inf)
    return scores


def nucleus(scores: Tensor, top_p: Tensor) -> Tensor:
    """The fewest likeliest tokens whose probabilities reach top_p, at least one; rows of 1: all."""
    ascending, order = scores.sort(dim=-1)
    below = ascending.softmax(-1).cumsum(-1) <= 1 - top_p
    below[:, -1] = False
    below &= top_p < 1
    return scores.masked_fill(below.scatter(1, order, below), -math.inf)


def column(values: Sequence[float], like: Tensor) -> Tensor:
    return torch.tensor(values, dtype=like.dtype, device=like.device)[:, None]


def logprobs(
    logits: Tensor, tokens: Tensor, wanted: Sequence[int | None]
) -> tuple[Logprobs | None, ...]:
    """Of each row that wants them, the chosen token's and the likeliest ones'."""
    scores = logits.log_softmax(-1)
    chosen = scores.gather(1, tokens[:, None])[:, 0].tolist()
    top = scores.topk(min(scores.shape[-1], max(1, *(count or 0 for count in wanted))))
    values, places = top.values.tolist(), top.indices.tolist()
    return tuple(
        None
        if count is None
        else Logprobs(chosen[i], tuple(places[i][:count]), tuple(values[i][:count]))
        for i, count in enumerate(wanted)
    )
