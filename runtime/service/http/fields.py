"""The fields that completions and chats share, and those that no route supports."""

from __future__ import annotations

import secrets
from typing import Annotated, Any

from msgspec import Meta, Struct

from runtime.service.http.errors import ApiError
from runtime.service.messages import Sampled

LEAST_TEMPERATURE = 1e-5  # smaller ones overflow: `runtime.engine.sampling`
SEEDS = 1 << 62

Seed = Annotated[int, Meta(ge=0, lt=SEEDS)]
TokenId = Annotated[int, Meta(ge=0, lt=1 << 31)]
Count = Annotated[int, Meta(ge=1, le=1 << 40)]
Stop = Annotated[str, Meta(min_length=1, max_length=256)]
TopCount = Annotated[int, Meta(ge=0, le=20)]


class StreamOptions(Struct, forbid_unknown_fields=True):
    include_usage: bool | None = None
    include_obfuscation: bool | None = None  # none is added
    continuous_usage_stats: bool | None = None  # beside include_usage: with every event


class Common(Struct, kw_only=True, forbid_unknown_fields=True):
    """`priority`: requests of a higher one come first. `session`: requests that belong together,
    for the log."""

    model: Annotated[str, Meta(min_length=1, max_length=256)]
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: Annotated[int, Meta(ge=1, le=1024)] | None = None
    stop: Stop | Annotated[list[Stop], Meta(max_length=16)] | None = None
    stop_token_ids: Annotated[list[TokenId], Meta(max_length=64)] | None = None
    max_tokens: Count | None = None
    seed: Seed | None = None
    temperature: Annotated[float, Meta(ge=0, le=2)] | None = None
    top_p: Annotated[float, Meta(gt=0, le=1)] | None = None
    top_k: Annotated[int, Meta(ge=-1, lt=1 << 31)] | None = None
    min_p: Annotated[float, Meta(ge=0, le=1)] | None = None
    repetition_penalty: Annotated[float, Meta(ge=0.01, le=100)] | None = None
    ignore_eos: bool | None = None
    priority: Annotated[int, Meta(ge=-128, le=127)] | None = None
    session: Annotated[str, Meta(max_length=256)] | None = None
    user: Annotated[str, Meta(max_length=1024)] | None = None

    @property
    def stops(self) -> tuple[str, ...]:
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())

    @property
    def choices(self) -> int:
        return self.n or 1

    @property
    def has_usage(self) -> bool:
        """Whether a stream ends with what was used."""
        return self.stream_options is not None and bool(self.stream_options.include_usage)

    @property
    def counts_each(self) -> bool:
        """Whether each event of a stream says what was used so far."""
        return self.has_usage and bool(self.stream_options.continuous_usage_stats)  # type: ignore[union-attr]

    def check(self) -> None:
        """What concerns several fields at once. Raises ApiError."""
        if self.stream_options is not None and not self.stream:
            reason = "stream_options: only where stream is true"
            raise ApiError(400, reason, param="stream_options", code="invalid_value")
        if self.temperature and self.temperature < LEAST_TEMPERATURE:
            reason = f"temperature: expected 0, or {LEAST_TEMPERATURE} or more"
            raise ApiError(400, reason, param="temperature", code="invalid_value")

    def samplings(self, count: int, logprobs: int | None) -> list[Sampled]:
        """How each of `count` choices is drawn: one seed after another from the one asked for,
        or any."""
        seed = secrets.randbelow(SEEDS) if self.seed is None else self.seed
        return [
            Sampled(
                temperature=1.0 if self.temperature is None else self.temperature,
                top_k=max(0, self.top_k or 0),
                top_p=1.0 if self.top_p is None else self.top_p,
                min_p=self.min_p or 0.0,
                repetition_penalty=self.repetition_penalty or 1.0,
                seed=(seed + i) % SEEDS,
                logprobs=logprobs,
            )
            for i in range(count)
        ]


NEUTRAL: dict[str, tuple[Any, ...]] = {
    "frequency_penalty": (0,),
    "presence_penalty": (0,),
    "logit_bias": ({},),
    "response_format": ({"type": "text"},),
    "min_tokens": (0,),
    "length_penalty": (1,),
    "use_beam_search": (False,),
    "skip_special_tokens": (True,),
    "prompt_logprobs": (),
    "metadata": ({},),
    "service_tier": ("auto", "default"),
    "guided_json": (),
    "guided_regex": (),
    "guided_choice": (),
    "guided_grammar": (),
    "structured_outputs": (),
}
