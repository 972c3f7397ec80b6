"""What the runtime may ask of whatever runs turns: this engine, or another behind an adapter."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple, Protocol

from runtime.engine.plan import Plan, Request, RequestId, TurnEvent


class Traits(NamedTuple):
    """What an engine can do; a pool over it is configured by the keys of the same name."""

    token_preempt: bool  # False: a turn ends only when its batch is empty
    kv_survives_switch: bool  # False: another model's turn loses KV: requests are prefilled anew


class TurnEngine(Protocol):
    """Turns of one instance. `run_turn` yields SWITCHED, then boundaries, then TURN_ENDED, whose
    requests are those that may go on; every token comes once, in order."""

    @property
    def traits(self) -> Traits: ...

    def submit(self, request: Request) -> None:
        """Make a request known; a turn's plan or a join names it."""

    def run_turn(self, plan: Plan) -> Iterator[TurnEvent]: ...

    def join(self, *, prefill: Sequence[RequestId] = ()) -> None:
        """Requests of the turn's model join it at the next token boundary."""

    def stop(self) -> None:
        """End the turn at the next token boundary, if the engine can preempt."""

    def cancel(self, request: RequestId) -> None:
        """End a request at the next token boundary."""

    def prefetch(self, model: str) -> None:
        """A hint: this model is likely next."""
