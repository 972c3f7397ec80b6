"""`index`: a linear score over row features; the free instance runs the best row.

Most heuristics are weight vectors of it: FCFS scores the oldest request, least slack the nearest
deadline, collate the most requests. Prefetch is decided by a second vector over the same rows.
"""

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from runtime.compiled import inner, kernel
from runtime.core import NONE, DecisionKind, Dispatch, EventKind, PoolSpec, PrefetchMode
from runtime.emulator.loop import Signal, advance, answer
from runtime.emulator.tables import Sim
from runtime.pool.candidates import ROWS, fill_rows
from runtime.pool.costs import step_s
from runtime.pool.features import RATE, ROW_FEATURES, F, Vector, rate_feature, work_features
from runtime.pool.open_work import open_count
from runtime.pool.state import Record, State
from runtime.tables import Field, Tables

NAMES = tuple(feature.name for feature in ROW_FEATURES)
SWITCH, LOADED = NAMES.index("switch_left"), NAMES.index("is_loaded")
GAINS = {"slack_min": -1.0, "slack_mean": -1.0, "oldest_wait": 1.0, "unserved": 1.0}  # per TTFT


class IndexMemory(Tables):
    """Weights [2, F] (turn, prefetch); quota_s [4]: the shortest and the longest turn, and what a
    score gains while its model waits for one TTFT and loses while it is that much further ahead;
    scratch rows [K] and features [F]."""

    layout: ClassVar = {
        "weights": Field(np.float64, 2),
        "quota_s": Field(np.float64),
        "rows": Field(np.int64),
        "features": Field(np.float32),
    }
    weights: npt.NDArray[np.float64]
    quota_s: npt.NDArray[np.float64]
    rows: npt.NDArray[np.int64]
    features: npt.NDArray[np.float32]


@inner
def score_of(state: State, g: int, m: int, weights: npt.NDArray[np.float64], out: Vector) -> float:
    """The score of model m on g; its features are left in `out`."""
    work_features(state, g, m, out)
    if weights[RATE] != 0.0:
        out[RATE] = rate_feature(state, m)
    even, odd = 0.0, 0.0  # two sums: an addition waits for the last one
    for f in range(0, F, 2):
        even += weights[f] * out[f]
        odd += weights[f + 1] * out[f + 1]
    return even + odd


@inner
def best_row(state: State, kind: int, g: int, memory: IndexMemory) -> tuple[int, float, float]:
    """The model with the highest score, or NONE (ties go to the first row); its score once its
    weights are in place; the highest score of the others."""
    count, _ = fill_rows(state, kind, g, memory.rows)
    if count <= 1:
        return memory.rows[0] if count == 1 else NONE, 0.0, -np.inf
    weights = memory.weights[1 if kind == DecisionKind.PREFETCH else 0]
    best, best_score, in_place, second = NONE, -np.inf, 0.0, -np.inf
    for i in range(count):
        score = score_of(state, g, memory.rows[i], weights, memory.features)
        if score > best_score:
            best, best_score, second = memory.rows[i], score, best_score
            in_place = score - weights[SWITCH] * memory.features[SWITCH]
            in_place += weights[LOADED] * (1.0 - memory.features[LOADED])
        else:
            second = max(second, score)
    return best, in_place, second


@inner
def quota_ns(state: State, g: int, m: int, lead: float, memory: IndexMemory) -> int:
    """Until the runner-up would overtake m: while m decodes, the others lose slack at one second
    a second and m's requests gain it, a TBT with every step."""
    shortest, longest = memory.quota_s[0], memory.quota_s[1]
    gain, drop = memory.quota_s[2], memory.quota_s[3]
    model, cost = state.models[m], state.costs[state.instances[g].gpu_type, m]
    ahead = model.tbt_ns * 1e-9 / step_s(cost, 0.0, float(max(1, open_count(state, m)))) - 1.0
    rate = (gain + drop * max(0.0, ahead)) / (model.ttft_ns * 1e-9)
    seconds = lead / rate if rate > 0.0 else longest
    return int(min(max(seconds, shortest), longest) * 1e9)


@kernel
def decide(state: State, kind: int, index: int, event: Record, memory: IndexMemory) -> None:
    if kind == DecisionKind.ROUTE or kind == DecisionKind.INTERRUPT:
        return
    m, score, second = best_row(state, kind, index, memory)
    if m == NONE:
        return
    event.model = m
    if kind == DecisionKind.TURN:
        event.kind = EventKind.TURN
        event.quota_ns = quota_ns(state, index, m, score - second, memory)


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
    longest_s: float = 0.0

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
        gain = sum(sign * self.turn.get(name, 0.0) for name, sign in GAINS.items())
        drop = -self.turn.get("slack_min", 0.0) - self.turn.get("slack_mean", 0.0)
        quota_s = np.array([self.quota_s, max(self.quota_s, self.longest_s), gain, drop])
        return IndexMemory(
            weights=self.weights(),
            quota_s=quota_s,
            rows=np.zeros(ROWS, np.int64),
            features=np.zeros(F, np.float32),
        )

    def decide(self, state: State, kind: int, index: int, event: Record, memory: Any) -> None:
        decide(state, kind, index, event, memory)

    def drive(self, sim: Any, memory: Any) -> int:
        return int(drive(sim, memory))
