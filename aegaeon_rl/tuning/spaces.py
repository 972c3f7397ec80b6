"""Parameters as a point: 0 is the start, 1 a step of each parameter's own scale."""

from collections.abc import Callable
from dataclasses import dataclass
from math import exp, log

import numpy as np
import numpy.typing as npt

from aegaeon_rl.policies.aegaeon import AegaeonParameters
from aegaeon_rl.policies.index import NAMES
from aegaeon_rl.policies.tuned import IndexParameters, Parameters

Point = npt.NDArray[np.float64]
TURN = tuple(name for name in NAMES if name != "rate")  # it alone costs an exponential
PREFETCH = tuple(name for name in TURN if name != "is_loaded")
QUOTA_S = (0.02, 2.0)  # bounds of the shortest turn; the longest is up to LONGEST_S
LONGEST_S = 4.0
LEAST_SCALE = {  # of features that are small in practice, so that a step is felt
    "waiting": 6.0,
    "ready": 6.0,
    "kv_need": 6.0,
    "prefill_time": 20.0,
}


@dataclass(frozen=True, slots=True)
class Space:
    """`decode` makes parameters of a point [D]; the start is at 0."""

    dimensions: int
    decode: Callable[[Point], Parameters]


def space_of(start: Parameters) -> Space:
    if isinstance(start, IndexParameters):
        return _index_space(start)
    return _aegaeon_space(start)


def _index_space(start: IndexParameters) -> Space:
    """All weights of both vectors, and both quotas by their logarithms."""
    weights = np.array(
        [start.turn.get(name, 0.0) for name in TURN]
        + [start.prefetch.get(name, 0.0) for name in PREFETCH]
    )
    names = (*TURN, *PREFETCH)
    least = np.array([LEAST_SCALE.get(name, 1.0) for name in names])
    scales = np.maximum(0.5 * np.abs(weights), least)

    def decode(point: Point) -> IndexParameters:
        values = (weights + scales * point[:-2]).tolist()
        quota_s = _clipped(start.quota_s * exp(0.7 * point[-2]), *QUOTA_S)
        longest_s = _clipped(start.longest_s * exp(0.7 * point[-1]), quota_s, LONGEST_S)
        return IndexParameters(
            turn=dict(zip(TURN, values[: len(TURN)], strict=True)),
            prefetch=dict(zip(PREFETCH, values[len(TURN) :], strict=True)),
            quota_s=quota_s,
            longest_s=longest_s,
        )

    return Space(len(weights) + 2, decode)


def _aegaeon_space(start: AegaeonParameters) -> Space:
    """Whole numbers and choices by rounding."""

    def decode(point: Point) -> AegaeonParameters:
        return AegaeonParameters(
            prefill_share=_clipped(start.prefill_share + 0.125 * point[0], 0.0625, 0.75),
            max_group=round(exp(_clipped(log(start.max_group) + 0.7 * point[1], 0.0, 4.2))),
            qmax_s=_clipped(start.qmax_s * exp(0.7 * point[2]), 0.25, 30.0),
            prefill_by_time=bool((1.0 if start.prefill_by_time else 0.0) + point[3] > 0.5),
            idle_takes=bool((1.0 if start.idle_takes else 0.0) + point[4] > 0.5),
        )

    return Space(5, decode)


def _clipped(value: float, low: float, high: float) -> float:
    return float(min(max(value, low), high))
