"""A pool of a batch is what it would be alone: after the same answers, every table is the same."""

from typing import Any

import numpy as np
import pytest

from envs.pools import Pools
from envs.scenario import ScenarioSpec

SEEDS, STEPS = [3, 1 << 40, 77], 150
TABLES = ("requests", "models", "instances", "slots", "nodes", "pool", "gaps")


def played(scenario: ScenarioSpec, seeds: list[int], least: int) -> list[dict[str, Any]]:
    """Tables of each pool after some steps, each the allowed action at a place that the step
    gives; pools that end begin anew."""
    pools = Pools(scenario, len(seeds), rows=8)
    for p, seed in enumerate(seeds):
        pools.seed(p, seed)
    for p in range(len(seeds)):
        pools.reset(p)
    for step in range(STEPS):
        allowed = [np.flatnonzero(mask) for mask in pools.mask]
        pools.step(np.array([able[(least + step) % len(able)] for able in allowed], np.int64))
        for p in np.flatnonzero(pools.is_over):
            pools.reset(int(p))
    found = []
    for sim in pools.sims:
        assert sim is not None
        tables = {name: getattr(sim.state, name) for name in TABLES}
        found.append({**tables, "results": sim.results, "control": sim.control})
    return found


@pytest.mark.parametrize("least", [0, 1])
def test_pool_of_a_batch_is_as_it_would_be_alone(scenario: ScenarioSpec, least: int) -> None:
    together = played(scenario, SEEDS, least)
    apart = [played(scenario, [seed], least)[0] for seed in SEEDS]
    for pool, expected in zip(together, apart, strict=True):
        for name, table in expected.items():
            assert pool[name].tobytes() == table.tobytes(), name
    assert together[0]["results"].tobytes() != together[1]["results"].tobytes()
