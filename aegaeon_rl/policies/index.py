"""`index`: a linear score over row features; the free instance runs the best row.

Most heuristics are weight vectors of it: FCFS scores the oldest request, least slack the nearest
deadline, collate the most requests. Prefetch is decided by a second vector over the same rows.
"""

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from runtime.compiled import inner, kernel
from runtime.core import DecisionKind, Dispatch, EventKind, PoolSpec, PrefetchMode
from runtime.emulator.loop import Signal, advance, answer
from runtime.emulator.tables import Sim
from runtime.pool.candidates import ROWS, fill_rows
from runtime.pool.features import ROW_FEATURES, F, row_features
from runtime.pool.state import Record, State
from runtime.tables import Field, Tables

NAMES = tuple(feature.name for feature in ROW_FEATURES)


class IndexMemory(Tables):
    """Weights [2, F] (turn, prefetch), quota_ns [1], scratch rows [K] and features [F]."""

    layout: ClassVar = {
        "weights": Field(np.float64, 2),
        "quota_ns": Field(np.int64),
        "rows": Field(np.int64),
        "features": Field(np.float32),
    }
    weights: npt.NDArray[np.float64]
    quota_ns: npt.NDArray[np.int64]
    rows: npt.NDArray[np.int64]
    features: npt.NDArray[np.float32]


@inner
def best_row(state: State, kind: int, g: int, memory: IndexMemory) -> int:
    """The model with the highest score, or NONE; ties go to the first row."""
    count, _ = fill_rows(state, kind, g, memory.rows)
    weights = memory.weights[1 if kind == DecisionKind.PREFETCH else 0]
    best, best_score = -1, -np.inf
    for i in range(count):
        row_features(state, g, memory.rows[i], memory.features)
        score = 0.0
        for f in range(weights.shape[0]):
            score += weights[f] * memory.features[f]
        if score > best_score:
            best, best_score = memory.rows[i], score
    return best


@kernel
def decide(state: State, kind: int, index: int, event: Record, memory: IndexMemory) -> None:
    if kind == DecisionKind.ROUTE:
        return
    m = best_row(state, kind, index, memory)
    if m < 0:
        return
    event.model = m
    if kind == DecisionKind.TURN:
        event.kind = EventKind.TURN
        event.quota_ns = memory.quota_ns[0]


@kernel
def drive(sim: Sim, memory: IndexMemory) -> int:
    while True:
        signal = advance(sim)
        if signal != Signal.DECISION:
            return signal
        control = sim.control[0]
        decide(sim.state, control.decision_kind, control.decision_index, sim.event[0], memory)
        answer(sim)


@dataclass(frozen=True, slots=True, kw_only=True)
class Index:
    """`turn` and `prefetch` map feature names to weights; what is not named weighs 0."""

    name: str
    turn: dict[str, float]
    prefetch: dict[str, float]
    quota_s: float = 0.1

    def __post_init__(self) -> None:
        for key in (*self.turn, *self.prefetch):
            if key not in NAMES:
                raise ValueError(f"index {self.name}: no feature {key!r}; known: {NAMES}")

    def configure(self, pool: PoolSpec) -> PoolSpec:
        slots = pool.weight_slots if pool.prefetch is not PrefetchMode.NONE else 1
        mode = PrefetchMode.CAUSAL if slots > 1 else PrefetchMode.NONE
        return replace(pool, roles=(), dispatch=Dispatch.PULL, prefetch=mode)

    def weights(self) -> npt.NDArray[np.float64]:
        """Weights [2, F]: turn, prefetch."""
        return np.array([[w.get(name, 0.0) for name in NAMES] for w in (self.turn, self.prefetch)])

    def memory(self, state: State) -> IndexMemory:
        quota = np.array([round(self.quota_s * 1e9)], np.int64)
        return IndexMemory(
            weights=self.weights(),
            quota_ns=quota,
            rows=np.zeros(ROWS, np.int64),
            features=np.zeros(F, np.float32),
        )

    def decide(self, state: State, kind: int, index: int, event: Record, memory: Any) -> None:
        decide(state, kind, index, event, memory)

    def drive(self, sim: Any, memory: Any) -> int:
        return int(drive(sim, memory))
