"""The two doors: `Policy` (what to run next) and `Engine` (run it).

A policy reaches the runtime as an argument of this type, never by import. Its decisions are
answers to questions the core poses (`runtime.pool.candidates.pose`), written into an EVENT record.
"""

from collections.abc import Iterable
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from runtime.core import PoolSpec
from runtime.pool.state import Record, State, Table


class Policy(Protocol):
    """A scheduler. Stateless itself: what it remembers of one pool lives in `memory` tables."""

    @property
    def name(self) -> str: ...

    def configure(self, pool: PoolSpec) -> PoolSpec:
        """The pool as this policy runs it: its roles, dispatch, slots, limits; hardware stays."""

    def memory(self, state: State) -> Any:
        """Fresh tables for one pool, or any placeholder when it remembers nothing."""

    def decide(self, state: State, kind: int, index: int, event: Record, memory: Any) -> None:
        """Answer one decision: overwrite `event`, an EVENT record that `pose` prepared.

        `kind` is a DecisionKind; `index` is the instance, or the request slot of a ROUTE. A
        policy must not read anything that a live pool would not know (output lengths). One that
        does not know a kind leaves `event` as it is: an INTERRUPT then keeps the turn.
        """

    def drive(self, sim: Any, memory: Any) -> int:
        """Advance an emulated pool, answering every decision, until another Signal comes."""


class Workload(NamedTuple):
    """What is known of the load in advance, per model [M]: mean rate and mean lengths."""

    rates_rps: npt.NDArray[np.float64]
    prompt_tokens: npt.NDArray[np.float64]
    output_tokens: npt.NDArray[np.float64]


@runtime_checkable
class Places(Protocol):
    """A policy that also says which models are resident where before the first request comes."""

    def placement(self, state: State, workload: Workload) -> tuple[tuple[int, int], ...]:
        """(instance, model) pairs, at most as many per instance as it has weight slots.

        `state` is the pool at time 0, still empty. The driver loads these weights before it
        starts (runtime.pool.placement.preload); the first of an instance is its present model.
        """


@runtime_checkable
class Oracle(Protocol):
    """A policy that knows what no live pool can: how long each answer will be.

    It is a bound, not a scheduler: shown with the label "(oracle)", refused by a live pool.
    """

    def foresee(self, memory: Any, output_tokens: npt.NDArray[np.int32]) -> None:
        """Take the trace's output lengths, by request id [R], into `memory` (nothing else may).

        The emulator calls it once, before the first event.
        """


class Turn(NamedTuple):
    """What the core ordered: request slots by stage, in order. Times are ns."""

    instance: int
    model: int
    quota_ns: int
    phases: int
    incoming: tuple[int, ...]
    prefill: tuple[int, ...]
    batch: tuple[int, ...]


class Engine(Protocol):
    """Executes turns on one instance and reports every boundary as an EVENT record.

    The core fixes a turn's contents and counts memory; the engine owns block ids and time. What
    runs the turns, ours or another behind an adapter, is a `runtime.engine.door.TurnEngine`.
    """

    def start(self, turn: Turn) -> None:
        """Begin a turn; weights may still be loading."""

    def join(self, requests: tuple[int, ...]) -> None:
        """Requests joined the turn: return to the scheduler at the next token boundary."""

    def load(self, model: int) -> None:
        """Load weights into the slot the core chose; a load under way is dropped."""

    def move_out(self, requests: tuple[int, ...]) -> None:
        """Copy the KV of these requests to host memory, in order."""

    def share(self, *, is_in: bool) -> None:
        """More or fewer transfers share its root port; nothing to do where time is measured."""

    def poll(self) -> Iterable[Table]:
        """Events since the last call, in order of time."""
