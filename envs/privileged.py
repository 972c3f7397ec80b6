"""What only a critic may see, and only in training: the future of the episode.

Letters: K rows, H numbers per row, W for the whole pool. No acting policy reads it: it is a key of
the observation that is there when asked for, no weights of a policy have inputs for it, and its
spec has a hash of its own.
"""

import numpy as np
import numpy.typing as npt

from runtime.compiled import inner, kernel
from runtime.core import NONE, DecisionKind, RequestPhase
from runtime.emulator.tables import Sim
from runtime.pool.features import Feature, clip, spec_hash
from runtime.tables import at

BUCKETS_S = (1.0, 3.0, 10.0, 30.0)  # ends of the spans in which coming requests are counted
ROW_FUTURE = (
    Feature("arrivals_1s", "requests", "8", 0, 4, "of the model, within the next second"),
    Feature("arrivals_3s", "requests", "8", 0, 4, "then up to 3 s from now"),
    Feature("arrivals_10s", "requests", "8", 0, 4, "then up to 10 s"),
    Feature("arrivals_30s", "requests", "8", 0, 4, "then up to 30 s"),
    Feature("prompt_30s", "tokens", "8192", 0, 8, "prompt tokens of those arrivals"),
    Feature("output_30s", "tokens", "2048", 0, 8, "output tokens of those arrivals"),
    Feature("open_left", "tokens", "2048", 0, 8, "still to come for its open requests"),
    Feature("running_left", "tokens", "2048", 0, 8, "still to come for requests in a turn"),
)
POOL_FUTURE = tuple(
    feature._replace(scale=f"{feature.scale} an instance", meaning=f"all models: {meaning}")
    for feature, meaning in zip(
        ROW_FUTURE,
        (
            *("arrivals within the next second", "then up to 3 s from now", "then up to 10 s"),
            *("then up to 30 s", "prompt tokens of those arrivals"),
            *("output tokens of those arrivals", "still to come for open requests"),
            "still to come for requests in a turn",
        ),
        strict=True,
    )
)
VERSION = 1
PRIVILEGED_HASH = spec_hash(VERSION, ROW_FUTURE, POOL_FUTURE)
H, W = len(ROW_FUTURE), len(POOL_FUTURE)
HIGH = np.array([feature.high for feature in ROW_FUTURE], np.float32)
PER = np.array([1 / float(feature.scale) for feature in ROW_FUTURE], np.float32)
SPANS = len(BUCKETS_S)
PROMPT, OUTPUT, OPEN, RUNNING = SPANS, SPANS + 1, SPANS + 2, SPANS + 3
BUCKETS_NS = tuple(round(end_s * 1e9) for end_s in BUCKETS_S)
Vector = npt.NDArray[np.float32]


@inner
def span_of(ahead_ns: int) -> int:
    """The span that an arrival so far ahead falls into; SPANS: beyond the last."""
    for i in range(SPANS):
        if ahead_ns <= BUCKETS_NS[i]:
            return i
    return SPANS


@inner
def add(out: Vector, row: int, rows: int, number: int, amount: float) -> None:
    """To a row's number, where the model has a row, and to the pool's."""
    if row != NONE:
        out[row * H + number] += amount
    out[rows * H + number] += amount


@inner
def add_arrivals(sim: Sim, place: npt.NDArray[np.int64], rows: int, out: Vector) -> None:
    arrivals, now = sim.arrivals, sim.state.pool[0].now_ns
    for i in range(sim.control[0].cursor, arrivals.time_ns.shape[0]):
        span = span_of(arrivals.time_ns[i] - now)
        if span == SPANS:
            return
        row = place[arrivals.model[i]]
        add(out, row, rows, span, 1.0)
        add(out, row, rows, PROMPT, arrivals.prompt_tokens[i])
        add(out, row, rows, OUTPUT, arrivals.output_tokens[i])


@inner
def add_live(sim: Sim, place: npt.NDArray[np.int64], rows: int, out: Vector) -> None:
    state, base = sim.state, sim.control[0].base
    for r in range(state.requests.shape[0]):
        request = state.requests[r]
        if request.phase == RequestPhase.FREE:
            continue
        left = sim.arrivals.output_tokens[request.id - base] - request.emitted_tokens
        is_running = request.phase == RequestPhase.RUNNING
        add(out, place[request.model], rows, RUNNING if is_running else OPEN, max(0, left))


@kernel
def privileged_features(
    sim: Sim, models: npt.NDArray[np.int64], place: npt.NDArray[np.int64], out: Vector
) -> None:
    """Fill `out` [K*H + W] for the models behind the rows [K] (NONE: no row); `place` [M] is
    scratch. The rows of a ROUTE are no models: theirs are 0."""
    rows, share = models.shape[0], 1.0 / sim.state.instances.shape[0]
    is_of_models = sim.control[0].decision_kind != DecisionKind.ROUTE
    out[:] = 0.0
    place[:] = NONE
    for k in range(rows):
        if is_of_models and models[k] != NONE:
            place[models[k]] = k
    add_arrivals(sim, place, rows, out)
    add_live(sim, place, rows, out)
    for k in range(rows + 1):
        for h in range(H):
            scaled = out[k * H + h] * PER[h] * (share if k == rows else 1.0)
            out[k * H + h] = clip(scaled, 0.0, HIGH[h])


sim_at = at(Sim)


@kernel
def privileged_of_pools(
    addresses: npt.NDArray[np.int64],
    models: npt.NDArray[np.int64],
    first: int,
    end: int,
    place: npt.NDArray[np.int64],
    out: npt.NDArray[np.float32],
) -> None:
    """Fill `out` [P, K*H + W] for pools first..end-1 by their addresses [P] (0: not yet played)
    and models [P, K]; `place` is as long as the most models of a pool."""
    for p in range(first, end):
        if addresses[p] != 0:
            sim = sim_at(addresses[p])
            privileged_features(sim, models[p], place[: sim.state.models.shape[0]], out[p])
