"""How a comparison is run: windows, seeds, loads, and the bootstrap behind its intervals."""

from dataclasses import dataclass
from typing import NamedTuple

from runtime.core import check_within
from runtime.errors import UserError

LARGEST_LOAD = 1e6
COUNTS = {"windows": (0, 100_000), "seeds": (1, 10_000), "draws": (100, 100_000)}  # least and most


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationSpec:
    """A trace longer than 1.5 windows is sampled: `windows` of `window_s`, evenly spaced, each
    from an empty pool with its first `warm_s` not counted. A shorter one is run whole, and all of
    it counts. `windows=0` runs any trace whole. A run goes on until its last token is due."""

    windows: int = 8
    window_s: float = 600.0
    warm_s: float = 60.0
    seeds: int = 1  # deals of model sizes: the first as the pool says, others shuffled
    loads: tuple[float, ...] = (0.5, 0.75, 1.0, 1.5, 2.0)  # multiples of the trace's own rate
    baseline: str | None = None  # compared against; None: aegaeon, else the first policy
    draws: int = 2000
    confidence: float = 0.95
    target: float = 0.99  # token attainment that `dedicated -> pooled` sizes for
    sizing: bool = True
    gantt_s: float = 60.0
    exports: bool = False  # decisions.parquet, requests.parquet, trace.json.gz of the first window
    export_policy: str | None = None  # None: the best
    export_s: float = 60.0

    def __post_init__(self) -> None:
        for name, (low, high) in COUNTS.items():
            check_within(f"evaluate.{name}", getattr(self, name), low, high)
        for name in ("window_s", "gantt_s", "export_s"):
            if not getattr(self, name) > 0:
                raise UserError(f"evaluate.{name}={getattr(self, name)}: expected more than 0 s")
        if not 0 <= self.warm_s < self.window_s:
            raise UserError(
                f"evaluate.warm_s={self.warm_s}: expected 0 <= warm_s < window_s={self.window_s}"
            )
        for name in ("confidence", "target"):
            if not 0 < getattr(self, name) < 1:
                raise UserError(f"evaluate.{name}={getattr(self, name)}: expected between 0 and 1")
        if not self.loads or not all(0 < load <= LARGEST_LOAD for load in self.loads):
            raise UserError(
                f"evaluate.loads={list(self.loads)}: expected positive multiples, at most 1e6"
            )


class Window(NamedTuple):
    """A part of the trace; arrivals in its first `warm_s` run but do not count."""

    start_s: float
    duration_s: float
    warm_s: float


def plan_windows(span_s: float, spec: EvaluationSpec) -> tuple[Window, ...]:
    """Evenly spaced windows that do not overlap, or the whole trace as one."""
    if spec.windows == 0 or span_s <= 1.5 * spec.window_s:
        return (Window(0.0, span_s + 1e-6, 0.0),)
    count = min(spec.windows, int(span_s // spec.window_s))
    gap_s = (span_s - spec.window_s) / max(1, count - 1)
    return tuple(Window(i * gap_s, spec.window_s, spec.warm_s) for i in range(count))
