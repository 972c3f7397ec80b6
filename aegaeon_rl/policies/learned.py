"""`learned`: a small network over candidate rows, added to an index; evaluated in compiled code.

Letters: K rows, F row features, I instance features, C pool features, H hidden units, Q quotas.
The network scores each row by itself from (row, instance, pool) features, so the number of rows
and the size of the pool are free. Its last layer starts at zero: before training it is the index.
Greedy: the best (row, quota level), or idle. No torch here: `aegaeon_rl.training` makes weights.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, NamedTuple
from zipfile import BadZipFile, ZipFile

import numpy as np
import numpy.typing as npt

from aegaeon_rl.policies.index import NAMES, Index
from runtime.compiled import inner, kernel
from runtime.core import NONE, DecisionKind, EventKind, PoolSpec
from runtime.emulator.loop import Signal, advance, answer
from runtime.emulator.tables import Sim
from runtime.errors import UserError
from runtime.pool.candidates import ROWS, can_idle, fill_rows
from runtime.pool.features import (
    SPEC_HASH,
    SPEC_VERSION,
    C,
    F,
    I,
    instance_features,
    pool_features,
    row_features,
)
from runtime.pool.state import Record, State
from runtime.tables import Field, Tables

Matrix = npt.NDArray[np.float32]
FILE = "weights.npz"
SPEC = f"{SPEC_VERSION}-{SPEC_HASH}"  # of the features that weights were trained on
SHORTEST_S = 1e-6  # of a quota
LEVEL_PENALTY = 0.2  # what each longer quota costs before training, in units of the index's score
IDLE_PENALTY = 0.6  # what idle, or no prefetch, costs against the index's best row


class Weights(NamedTuple):
    """base [2, F] (turn, prefetch), w1 [H, F+I+C], b1 [H], w2 [H, H], b2 [H], w3 [Q, H], b3 [Q],
    idle [I+C+1] (bias last), quotas_s [Q]. All outputs are in units of the index's score."""

    base: Matrix
    w1: Matrix
    b1: Matrix
    w2: Matrix
    b2: Matrix
    w3: Matrix
    b3: Matrix
    idle: Matrix
    quotas_s: Matrix


class LearnedMemory(Tables):
    """The weights as tables, matrices transposed [inputs, outputs] so that sums over outputs are
    vectors; and scratch: rows [K], features, hidden layers, context [H], scores [Q]."""

    layout: ClassVar = {
        **{name: Field(np.float32, 2) for name in ("base", "w1", "w2", "w3", "hidden")},
        **{name: Field(np.float32) for name in ("b1", "b2", "b3", "idle", "context")},
        **{name: Field(np.float32) for name in ("features", "instance", "globals", "scores")},
        "quotas_ns": Field(np.int64),
        "rows": Field(np.int64),
    }
    base: Matrix
    w1: Matrix
    w2: Matrix
    w3: Matrix
    hidden: Matrix
    b1: Matrix
    b2: Matrix
    b3: Matrix
    idle: Matrix
    context: Matrix
    features: Matrix
    instance: Matrix
    globals: Matrix
    scores: Matrix
    quotas_ns: npt.NDArray[np.int64]
    rows: npt.NDArray[np.int64]


@inner
def add_layer(out: Matrix, inputs: Matrix, weights: Matrix, first: int) -> None:
    """out += inputs @ weights[first:]; inputs that are 0 (half of them, behind a ReLU) are free."""
    for i in range(inputs.shape[0]):
        value = inputs[i]
        if value != 0.0:
            for o in range(out.shape[0]):
                out[o] += value * weights[first + i, o]


@inner
def rectify(values: Matrix) -> None:
    for h in range(values.shape[0]):
        values[h] = max(values[h], np.float32(0.0))


@inner
def set_context(memory: LearnedMemory) -> float:
    """First-layer terms that all rows share; returns the learned part of the idle score."""
    idle = memory.idle[I + C]
    for i in range(I):
        idle += memory.idle[i] * memory.instance[i]
    for c in range(C):
        idle += memory.idle[I + c] * memory.globals[c]
    memory.context[:] = memory.b1
    add_layer(memory.context, memory.instance, memory.w1, F)
    add_layer(memory.context, memory.globals, memory.w1, F + I)
    return idle


@inner
def score_row(memory: LearnedMemory) -> None:
    """The network's part of the scores [Q] of the row in `features`."""
    first, second = memory.hidden[0], memory.hidden[1]
    first[:] = memory.context
    add_layer(first, memory.features, memory.w1, 0)
    rectify(first)
    second[:] = memory.b2
    add_layer(second, first, memory.w2, 0)
    rectify(second)
    memory.scores[:] = memory.b3
    add_layer(memory.scores, second, memory.w3, 0)


@inner
def choose(state: State, kind: int, g: int, memory: LearnedMemory) -> tuple[int, int]:
    """The best (model, quota level), model NONE for idle; ties go to the first row and level."""
    count, overflow = fill_rows(state, kind, g, memory.rows)
    instance_features(state, kind, g, memory.instance)
    pool_features(state, overflow, memory.globals)
    is_prefetch = kind == DecisionKind.PREFETCH
    base = memory.base[1 if is_prefetch else 0]
    idle_score = set_context(memory) - IDLE_PENALTY
    best, best_level, best_score, best_index = NONE, 0, -np.inf, -np.inf
    for i in range(count):
        row_features(state, g, memory.rows[i], memory.features)
        index = 0.0
        for f in range(F):
            index += base[f] * memory.features[f]
        best_index = max(best_index, index)
        score_row(memory)
        for q in range(1 if is_prefetch else memory.quotas_ns.shape[0]):
            score = index - LEVEL_PENALTY * q + memory.scores[q]
            if score > best_score:
                best, best_level, best_score = memory.rows[i], q, score
    if best_index + idle_score > best_score and (is_prefetch or can_idle(state, g)):
        return NONE, 0
    return best, best_level


@kernel
def decide(state: State, kind: int, index: int, event: Record, memory: LearnedMemory) -> None:
    if kind == DecisionKind.ROUTE or kind == DecisionKind.INTERRUPT:
        return
    m, level = choose(state, kind, index, memory)
    if m < 0:
        return
    event.model = m
    if kind == DecisionKind.TURN:
        event.kind = EventKind.TURN
        event.quota_ns = memory.quotas_ns[level]


@kernel
def drive(sim: Sim, memory: LearnedMemory) -> int:
    while True:
        signal = advance(sim)
        if signal != Signal.DECISION:
            return signal
        control = sim.control[0]
        decide(sim.state, control.decision_kind, control.decision_index, sim.event[0], memory)
        answer(sim)


def initial_weights(index: Index, quotas_s: tuple[float, ...], hidden: int, seed: int) -> Weights:
    """A network that decides as `index` does; hidden layers are He-initialised from `seed`."""
    rng = np.random.default_rng(seed)
    inputs, levels = F + I + C, len(quotas_s)

    def layer(fan_out: int, fan_in: int) -> Matrix:
        return rng.normal(0.0, np.sqrt(2.0 / fan_in), (fan_out, fan_in)).astype(np.float32)

    return Weights(
        base=index.weights().astype(np.float32),
        w1=layer(hidden, inputs),
        b1=np.zeros(hidden, np.float32),
        w2=layer(hidden, hidden),
        b2=np.zeros(hidden, np.float32),
        w3=np.zeros((levels, hidden), np.float32),
        b3=np.zeros(levels, np.float32),
        idle=np.zeros(I + C + 1, np.float32),
        quotas_s=np.array(quotas_s, np.float32),
    )


def save_weights(weights: Weights, path: Path) -> None:
    """An .npz of plain arrays with the feature spec's hash; appears whole or not at all."""
    aside = path.with_name(f".{path.name}.part.npz")
    np.savez(aside, spec_hash=np.array(SPEC), **weights._asdict())
    aside.replace(path)


def load_weights(path: Path) -> Weights:
    """Raises UserError for a file that is not one, or was trained on another feature spec."""
    try:
        with ZipFile(path), np.load(path, allow_pickle=False) as data:
            stated = str(data["spec_hash"])
            weights = Weights(*(np.ascontiguousarray(data[n], np.float32) for n in Weights._fields))
    except (OSError, KeyError, ValueError, EOFError, BadZipFile) as error:
        stated = str(getattr(error, "strerror", None) or error)
        reason = stated.splitlines()[0] if stated else type(error).__name__
        raise UserError(f"{path}: not policy weights: {reason}") from None
    check_spec(stated, str(path))
    _check_shapes(weights, path)
    return weights


def check_spec(stated: str, path: str) -> None:
    """Raises UserError for numbers other than those this version computes."""
    if stated != SPEC:
        raise UserError(
            f"{path}: trained on feature spec {stated}: expected {SPEC}; its inputs mean something"
            " else here, so train it again"
        )


def _check_shapes(weights: Weights, path: Path) -> None:
    hidden, levels = len(weights.b1), len(weights.quotas_s)
    expected = {
        "base": (2, F),
        "w1": (hidden, F + I + C),
        "b1": (hidden,),
        "w2": (hidden, hidden),
        "b2": (hidden,),
        "w3": (levels, hidden),
        "b3": (levels,),
        "idle": (I + C + 1,),
        "quotas_s": (levels,),
    }
    for name, shape in expected.items():
        array = getattr(weights, name)
        if array.shape != shape:
            raise UserError(f"{path}: {name} has shape {array.shape}: expected {shape}")
        if not np.isfinite(array).all():
            raise UserError(f"{path}: {name} has values that are not finite")
    if not levels or weights.quotas_s.min() < SHORTEST_S:
        raise UserError(f"{path}: quotas_s={weights.quotas_s}: expected {SHORTEST_S:g} s or more")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Learned:
    """Runs like an index: role-free, pull, causal prefetch."""

    name: str
    weights: Weights

    @classmethod
    def load(cls, path: Path, name: str = "learned") -> "Learned":
        return cls(name=name, weights=load_weights(path))

    def configure(self, pool: PoolSpec) -> PoolSpec:
        return Index(name=self.name, turn={}, prefetch={}).configure(pool)

    def memory(self, state: State) -> LearnedMemory:
        weights, hidden = self.weights, len(self.weights.b1)
        quotas_us = np.rint(weights.quotas_s.astype(np.float64) * 1e6).astype(np.int64)
        return LearnedMemory(
            **{name: getattr(weights, name) for name in ("base", "b1", "b2", "b3", "idle")},
            **{name: getattr(weights, name).T.copy() for name in ("w1", "w2", "w3")},
            quotas_ns=quotas_us * 1000,
            scores=np.zeros(len(quotas_us), np.float32),
            rows=np.zeros(ROWS, np.int64),
            features=np.zeros(F, np.float32),
            instance=np.zeros(I, np.float32),
            globals=np.zeros(C, np.float32),
            context=np.zeros(hidden, np.float32),
            hidden=np.zeros((2, hidden), np.float32),
        )

    def decide(self, state: State, kind: int, index: int, event: Record, memory: Any) -> None:
        decide(state, kind, index, event, memory)

    def drive(self, sim: Any, memory: Any) -> int:
        return int(drive(sim, memory))


def weights_by_feature(weights: Weights) -> dict[str, tuple[float, float]]:
    """The index part by feature name, as (turn, prefetch)."""
    return {name: (float(t), float(p)) for name, t, p in zip(NAMES, *weights.base, strict=True)}
