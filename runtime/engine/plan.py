"""What the engine is told and tells: requests, a turn's plan, events with measured times."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable
from dataclasses import dataclass, field
from enum import StrEnum
from typing import NamedTuple

from runtime.core import EventKind
from runtime.engine.sampling import Logprobs, Sampling
from runtime.errors import UserError

RequestId = Hashable


class Ending(StrEnum):
    """Why a request ended."""

    STOP = "stop"  # end of sequence, a stop token or a stop string
    LENGTH = "length"  # max_tokens, or the context is full
    CANCELLED = "cancelled"


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What a client asked for. `output`: tokens that it has already, when it goes on here."""

    id: RequestId
    model: str
    prompt: tuple[int, ...]
    max_tokens: int
    sampling: Sampling = field(default_factory=Sampling)
    stop_tokens: frozenset[int] = frozenset()  # beside the model's own
    stop_strings: tuple[str, ...] = ()
    ignore_eos: bool = False
    output: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if not isinstance(self.max_tokens, int):
            raise UserError(
                f"request {self.id}: max_tokens={self.max_tokens!r:.60}: expected a whole number"
            )
        if isinstance(self.stop_strings, str) or not all(self.stop_strings):
            raise UserError(
                f"request {self.id}: stop_strings={self.stop_strings!r:.60}: expected a list of "
                "texts that are not empty"
            )
        if not self.prompt:
            raise UserError(f"request {self.id}: its prompt is empty: expected 1 token at least")
        if self.max_tokens <= len(self.output):
            raise UserError(
                f"request {self.id}: max_tokens={self.max_tokens}: expected more than the "
                f"{len(self.output)} tokens it has"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """One turn of one model: requests by id, each known to the engine by `submit`.

    KV comes in and prompts are prefilled first, then the batch and what joined it decode until
    `quota_s` seconds of decoding have passed. Never less than one step, if anything may decode.
    Which list names a request is a wish: KV that is in host memory is moved in, tokens that have
    no KV (a prefill that was stopped, KV given up for room) are prefilled.
    """

    model: str
    quota_s: float = float("inf")
    incoming: tuple[RequestId, ...] = ()  # their KV is in host memory
    prefill: tuple[RequestId, ...] = ()
    batch: tuple[RequestId, ...] = ()  # their KV is on the device
    prefill_budget_tokens: int = 0  # of one prefill call; 0: one whole prompt a call
    prefill_chunk_tokens: int = 0  # of one prompt in a call, a decode step between; 0: whole
    decodes: bool = True  # False: what is prefilled leaves with its first token
    moves_out: bool = False  # at the end the KV of all its requests goes to host memory

    def __post_init__(self) -> None:
        for name in ("quota_s", "prefill_budget_tokens", "prefill_chunk_tokens"):
            value = getattr(self, name)
            if not value >= 0:
                raise UserError(f"plan.{name}={value}: expected 0 or more")
        named = [*self.incoming, *self.prefill, *self.batch]
        for request, times in Counter(named).items():
            if times > 1:
                raise UserError(f"plan: request {request!r} is named {times} times: expected once")


class TurnEvent(NamedTuple):
    """A boundary of a turn. `time_s` is on the clock of time.perf_counter."""

    kind: EventKind
    time_s: float
    seconds: float = 0.0  # what ended here took
    requests: tuple[RequestId, ...] = ()
    tokens: tuple[int, ...] = ()  # one for each request: PREFILLED (its n first), STEPS
    logprobs: tuple[Logprobs | None, ...] = ()  # as `tokens`; empty when nobody asks
    ending: Ending | None = None  # FINISHED
