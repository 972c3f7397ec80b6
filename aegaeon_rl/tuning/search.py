"""CMA-ES over paired cells, two threads of compiled runs, resumable to the bit.

Nothing of the optimiser is saved: its generations follow from the seed and the scores told so far,
so a resumed search asks the same questions again and reads the answers from its trials.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from os import cpu_count
from typing import Any, NamedTuple

import cma
import numpy as np

from aegaeon_rl.policies.tuned import Parameters, policy_of
from aegaeon_rl.tuning.objective import score
from aegaeon_rl.tuning.spaces import Point, Space
from aegaeon_rl.tuning.workloads import Cell


class Trial(NamedTuple):
    """A candidate and its scores by cell; number 0 is the start."""

    number: int
    point: tuple[float, ...]
    scores: tuple[float, ...]

    @property
    def score(self) -> float:
        return float(np.mean(self.scores))


@dataclass(frozen=True, slots=True, kw_only=True)
class Search:
    space: Space
    cells: Sequence[Cell]
    trials: int  # beside the start; the last generation is completed
    population: int
    sigma: float
    seed: int

    def options(self) -> dict[str, Any]:
        return {"seed": self.seed + 1, "popsize": self.population, "verbose": -9}

    def parameters(self, trial: Trial) -> Parameters:
        return self.space.decode(np.array(trial.point))


def play(search: Search, points: Sequence[Point], threads: ThreadPoolExecutor) -> list[list[float]]:
    """Scores [points, cells]."""
    cells = search.cells

    def one(task: tuple[Point, Cell]) -> float:
        point, cell = task
        policy = policy_of(search.space.decode(point), "candidate")
        return score(cell.play(policy), cell.slo.ttft_s)

    flat = list(threads.map(one, [(point, cell) for point in points for cell in cells]))
    return [flat[i : i + len(cells)] for i in range(0, len(flat), len(cells))]


def search_for(
    search: Search, known: Sequence[Trial], tell: Callable[[list[Trial]], None]
) -> list[Trial]:
    """All trials. `known`, of an interrupted search, are not played again; `tell` hears of each
    complete generation that was."""
    trials: list[Trial] = []
    strategy = cma.CMAEvolutionStrategy(
        np.zeros(search.space.dimensions), search.sigma, search.options()
    )
    with ThreadPoolExecutor(max_workers=cpu_count()) as threads:

        def generation(points: Sequence[Point]) -> list[Trial]:
            first = len(trials)
            old = list(known[first : first + len(points)])
            if len(old) == len(points):
                trials.extend(old)
                return old
            found = play(search, points, threads)
            new = [
                Trial(first + i, tuple(map(float, point)), tuple(row))
                for i, (point, row) in enumerate(zip(points, found, strict=True))
            ]
            trials.extend(new)
            tell(trials)
            return new

        generation([np.zeros(search.space.dimensions)])
        while len(trials) <= search.trials:
            points = strategy.ask()
            strategy.tell(points, [-trial.score for trial in generation(points)])
    return trials


def best_of(trials: Sequence[Trial]) -> Trial:
    """The highest mean score; of equals the earliest."""
    return max(trials, key=lambda trial: (trial.score, -trial.number))
