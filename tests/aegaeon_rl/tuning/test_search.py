"""A search is paired, deterministic, and resumes to the bit."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from aegaeon_rl.policies.aegaeon import AegaeonParameters
from aegaeon_rl.policies.tuned import IndexParameters
from aegaeon_rl.tuning.objective import score
from aegaeon_rl.tuning.search import Search, Trial, best_of, search_for
from aegaeon_rl.tuning.spaces import Space, space_of
from aegaeon_rl.tuning.spec import TuneSpec
from aegaeon_rl.tuning.workloads import steady_cells
from aegaeon_rl.verbs.tune import keep_trials, read_trials
from envs.named import named
from runtime.core import PoolSpec, SloSpec
from runtime.errors import UserError
from runtime.plain import from_plain

SLO = SloSpec()
GOOD = {"token_attainment": 1.0, "request_lost": 0.0, "worst_model": 1.0, "ttft_p99_s": 1.0}


@dataclass(frozen=True)
class Bowl:
    """A cell whose attainment falls with the distance of the short quota from 0.3 s."""

    at_s: float
    slo: SloSpec = SLO
    name: str = "bowl"

    def play(self, policy: Any) -> dict[str, float]:
        return {**GOOD, "token_attainment": 1.0 - (policy.quota_s - self.at_s) ** 2}


def bowl(trials: int) -> Search:
    cells: Any = (Bowl(0.3), Bowl(0.4))
    space = space_of(IndexParameters())
    return Search(space=space, cells=cells, trials=trials, population=6, sigma=0.5, seed=3)


def kept(search: Search, known: list[Trial] | None = None) -> list[Trial]:
    return search_for(search, known or [], lambda _: None)


def test_a_search_finds_what_is_better_and_never_loses_its_start() -> None:
    search = bowl(120)
    trials = kept(search)
    best = best_of(trials)
    assert trials[0].point == (0.0,) * search.space.dimensions
    assert best.score > trials[0].score
    found = search.parameters(best)
    assert isinstance(found, IndexParameters)
    assert 0.3 <= found.quota_s <= 0.4


def test_a_resumed_search_is_the_uninterrupted_one(tmp_path: Path) -> None:
    whole, part = kept(bowl(24)), kept(bowl(12))
    keep_trials(tmp_path, bowl(12), part)
    known = read_trials(tmp_path / "results.parquet", bowl(24))
    played: list[int] = []
    again = search_for(bowl(24), known, lambda trials: played.append(len(trials)))
    assert again == whole
    assert played == [19, 25]


def test_trials_of_another_search_are_refused(tmp_path: Path) -> None:
    keep_trials(tmp_path, bowl(6), kept(bowl(6)))
    aegaeon: Any = Search(
        space=space_of(AegaeonParameters()), cells=(), trials=1, population=4, sigma=1, seed=0
    )
    with pytest.raises(UserError, match="other parameters or cells"):
        read_trials(tmp_path / "results.parquet", aegaeon)
    (tmp_path / "results.parquet").write_bytes(b"no")
    with pytest.raises(UserError, match="not the trials of a tuning run"):
        read_trials(tmp_path / "results.parquet", bowl(6))


@pytest.mark.parametrize("start", [IndexParameters(turn={"is_loaded": 3.0}), AegaeonParameters()])
def test_a_space_starts_where_it_should_and_stays_in_bounds(start: Any) -> None:
    space: Space = space_of(start)
    first = space.decode(np.zeros(space.dimensions))
    if isinstance(start, AegaeonParameters):
        assert first == start
    else:
        assert first.turn["is_loaded"] == 3.0  # type: ignore[union-attr]
    for far in (-50.0, 50.0):
        space.decode(np.full(space.dimensions, far))  # parameters check themselves


@pytest.mark.parametrize(
    ("worse", "loss"),
    [
        ({"token_attainment": 0.9}, 0.1),
        ({"request_lost": 0.1}, 0.05),
        ({"worst_model": 0.8}, 0.05),
        ({"ttft_p99_s": 4.5}, 0.04),
        ({"ttft_p99_s": float("inf")}, 0.1),
    ],
)
def test_attainment_is_not_bought_with_lost_requests(worse: dict[str, float], loss: float) -> None:
    assert score({**GOOD, **worse}, 10.0) == pytest.approx(1.0 - loss)


def test_cells_pair_pools_loads_and_seeds() -> None:
    spec = TuneSpec(steady=("4x0.5",), seeds=2, pool_loads=("h100x8:6x0.5",), steady_s=200.0)
    pools = [from_plain(PoolSpec, named("pool", name, "pool")) for name in ("h100x4", "h100x8")]
    names = [cell.name for cell in steady_cells(spec, pools, SloSpec(), spec.first_seed)]
    assert names == [
        *(f"h100x4 4x0.5 seed {seed}" for seed in (1000, 1001)),
        *(f"h100x8 6x0.5 seed {seed}" for seed in (1000, 1001)),
    ]


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"steady": ("150",)}, "'150': expected MODELSxRATE"),
        ({"steady": ()}, "expected loads like"),
        ({"trials": 0}, "tune.trials=0: expected at least 1"),
        ({"validation_seed": 1000}, "expected 1 or more away"),
        ({"warm_s": -1.0}, "tune.warm_s=-1.0: expected at least 0"),
    ],
)
def test_a_wrong_specification_is_refused(keys: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        TuneSpec(**keys)
