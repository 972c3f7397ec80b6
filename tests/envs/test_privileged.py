"""The privileged key against a plain count of the episode's future, and what its spec says."""

import numpy as np
import pytest

from envs.episode import sample
from envs.privileged import (
    BUCKETS_S,
    HIGH,
    POOL_FUTURE,
    PRIVILEGED_HASH,
    ROW_FUTURE,
    VERSION,
    H,
    W,
    privileged_features,
)
from envs.scenario import ScenarioSpec
from runtime.core import NONE, NS, RequestPhase
from runtime.emulator.tables import Sim
from runtime.pool.features import SPEC_HASH, spec_hash


def shown(sim: Sim, models: list[int]) -> np.ndarray:
    out = np.full(len(models) * H + W, -1, np.float32)
    place = np.zeros(len(sim.state.models), np.int64)
    privileged_features(sim, np.array(models, np.int64), place, out)
    return out.reshape(-1, H)


def by_hand(sim: Sim, models: set[int]) -> list[float]:
    """Counts and tokens of these models' future, unscaled."""
    now, arrivals = int(sim.state.pool["now_ns"][0]), sim.arrivals
    edges = (0.0, *BUCKETS_S)
    coming = [
        ((int(t) - now) / NS, int(p), int(o))
        for i, (t, m, p, o) in enumerate(
            zip(
                arrivals.time_ns,
                arrivals.model,
                arrivals.prompt_tokens,
                arrivals.output_tokens,
                strict=True,
            )
        )
        if m in models and i >= sim.control["cursor"][0] and t - now <= BUCKETS_S[-1] * NS
    ]
    counts = [
        sum(1 for ahead, _, _ in coming if low < ahead <= high or (low == 0 and ahead == 0))
        for low, high in zip(edges, BUCKETS_S, strict=False)
    ]
    live = [r for r in sim.state.requests if r["phase"] != RequestPhase.FREE]
    left = {True: 0, False: 0}
    for r in live:
        if r["model"] in models:
            rest = int(arrivals.output_tokens[r["id"]]) - int(r["emitted_tokens"])
            left[bool(r["phase"] == RequestPhase.RUNNING)] += rest
    tokens = [sum(p for _, p, _ in coming), sum(o for _, _, o in coming)]
    return [*counts, *tokens, left[False], left[True]]


def scaled(values: list[float], instances: int = 1) -> list[float]:
    scales = [float(f.scale) * instances for f in ROW_FUTURE]
    return [min(v / s, f.high) for v, s, f in zip(values, scales, ROW_FUTURE, strict=True)]


@pytest.mark.parametrize("seed", range(6))
def test_future_is_what_a_plain_count_says(scenario: ScenarioSpec, seed: int) -> None:
    sim = sample(scenario, np.random.default_rng(seed))
    models = [3, 0, 6, NONE, NONE]
    found = shown(sim, models)
    for k, m in enumerate(models):
        expected = [0.0] * H if m == NONE else scaled(by_hand(sim, {m}))
        assert found[k].tolist() == pytest.approx(expected, rel=1e-5), (k, m)
    everyone = by_hand(sim, set(range(7)))
    assert found[-1].tolist() == pytest.approx(scaled(everyone, 2), rel=1e-5)
    assert sum(everyone[:4]) > 0
    assert sum(everyone[6:]) > 0


def test_future_stays_within_its_clips(scenario: ScenarioSpec) -> None:
    sim = sample(scenario, np.random.default_rng(1))
    sim.arrivals.output_tokens[:] = 1_000_000
    found = shown(sim, [0, 1, 2, 3, 4])
    assert (found >= 0).all()
    assert (found <= HIGH).all()
    assert found[-1, 5] == HIGH[5]


def test_future_reads_the_pool_and_changes_nothing(scenario: ScenarioSpec) -> None:
    sim = sample(scenario, np.random.default_rng(2))
    before = sim.state.requests.tobytes(), sim.control.tobytes(), sim.arrivals.time_ns.tobytes()
    assert shown(sim, [0, 1]).tobytes() == shown(sim, [0, 1]).tobytes()
    after = sim.state.requests.tobytes(), sim.control.tobytes(), sim.arrivals.time_ns.tobytes()
    assert before == after


def test_privileged_spec_has_a_hash_of_its_own() -> None:
    assert spec_hash(VERSION, ROW_FUTURE, POOL_FUTURE) == PRIVILEGED_HASH != SPEC_HASH
    assert (len(ROW_FUTURE), len(POOL_FUTURE)) == (H, W)
    assert len({f.name for f in ROW_FUTURE}) == H
