"""Any stream of actions: the pool stays whole, rewards finite, time goes on."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from envs.pools import Pools
from envs.scenario import ScenarioSpec
from runtime.core import SloSpec
from runtime.pool.integrity import check_integrity

Mask = np.ndarray[Any, np.dtype[np.bool_]]
Stream = Callable[[Mask, np.random.Generator, int], int]
LEVELS = 2


def allowed(mask: Mask, rng: np.random.Generator, step: int) -> int:
    return int(rng.choice(np.flatnonzero(mask)))


def anything(mask: Mask, rng: np.random.Generator, step: int) -> int:
    """Masked actions too."""
    return int(rng.integers(len(mask)))


def forbidden(mask: Mask, rng: np.random.Generator, step: int) -> int:
    closed = np.flatnonzero(~mask)
    return int(rng.choice(closed)) if len(closed) else 0


def idle(mask: Mask, rng: np.random.Generator, step: int) -> int:
    return len(mask) - 1


def last_row(mask: Mask, rng: np.random.Generator, step: int) -> int:
    """Never what is urgent or loaded: a switch each turn."""
    rows = np.flatnonzero(mask[:-1])
    return int(rows[-1]) if len(rows) else len(mask) - 1


def in_turn(mask: Mask, rng: np.random.Generator, step: int) -> int:
    able = np.flatnonzero(mask)
    return int(able[step % len(able)])


def in_fits(mask: Mask, rng: np.random.Generator, step: int) -> int:
    """Work for a while, then wait for a while."""
    return idle(mask, rng, step) if step // 16 % 2 else last_row(mask, rng, step)


STREAMS: tuple[Stream, ...] = (allowed, anything, forbidden, idle, last_row, in_turn, in_fits)
VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "one_slot": {"weight_slots": 1},
    "short_of_memory": {"kv_fraction": 0.55, "host_kv_bytes": 2 * 10**9},
    "slow_links": {"h2d_bytes_s": 4e9, "d2h_bytes_s": 4e9, "instances_per_port": 2},
    "impatient": {"ttft_timeout_s": 0.5, "max_queue": 12},
    "failing": {"mtbf_s": 2.0, "mttr_s": 1.0},
    "noisy": {"noise": 0.3},
    "fair": {"max_wait_s": 0.5, "prefill_chunk_tokens": 256},
    "interrupted": {"interrupt_slack_s": 5.0},
    "several_weights": {"weight_budget_bytes": 50 * 10**9, "weight_slots": 3},
    "routed": {"interrupt_slack_s": 5.0},
}
SLOS = (SloSpec(ttft_s=1.0, tbt_s=0.05), SloSpec(ttft_s=0.1, tbt_s=0.005))


def variant(scenario: ScenarioSpec, name: str, slo: SloSpec) -> ScenarioSpec:
    pool = replace(scenario.pools[0], **VARIANTS[name])
    is_routed = name == "routed"
    return replace(scenario, pools=(pool,), slos=(slo,), load_scale=(0.5, 8.0), routes=is_routed)


class Watch:
    """Plays a stream in one pool and holds it to the laws, step by step."""

    def __init__(self, pools: Pools, stream: Stream, seed: int, every: int) -> None:
        self.pools, self.stream, self.every = pools, stream, every
        self.rng = np.random.default_rng(seed)
        for p in range(pools.count):
            pools.seed(p, seed + p)
        for p in range(pools.count):
            pools.reset(p)
        self.standing = np.zeros(pools.count, np.int64)  # decisions since time moved
        self.steps, self.ends = 0, 0

    def play(self, steps: int) -> None:
        for _ in range(steps):
            self.step()

    def step(self) -> None:
        pools, mask = self.pools, self.pools.mask
        assert mask.any(axis=1).all()
        actions = [self.stream(mask[p], self.rng, self.steps) for p in range(pools.count)]
        reward = pools.step(np.array(actions, np.int64))
        assert np.isfinite(reward).all()
        assert np.isfinite(pools.dt_s).all()
        assert (pools.dt_s >= 0).all()
        self.standing = np.where(pools.dt_s > 0, 0, self.standing + 1)
        assert self.standing.max() <= self.most_at_once
        for p in range(pools.count):
            self.look(p)
        self.steps += 1

    @property
    def most_at_once(self) -> int:
        """Decisions of one instant: of an instance a turn, and a prefetch for each time one of
        the others took what it would have prefetched."""
        instances = self.pools.scenario.pools[0].instances
        return 4 * instances + 4

    def look(self, p: int) -> None:
        sim = self.pools.sims[p]
        assert sim is not None
        if self.steps % self.every == 0 or self.pools.is_over[p]:
            check_integrity(sim.state)
        if self.pools.is_over[p]:
            self.ends += 1
            self.pools.reset(p)
            self.standing[p] = 0


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 1 << 40),
    name=st.sampled_from(list(VARIANTS)),
    stream=st.sampled_from(STREAMS),
    slo=st.sampled_from(SLOS),
    rows=st.sampled_from([1, 8]),
)
def test_any_stream_of_actions_keeps_the_laws(
    scenario: ScenarioSpec, seed: int, name: str, stream: Stream, slo: SloSpec, rows: int
) -> None:
    Watch(Pools(variant(scenario, name, slo), 1, rows=rows), stream, seed, every=4).play(120)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 1 << 40), data=st.data())
def test_actions_of_an_adversary_keep_the_laws(
    scenario: ScenarioSpec, seed: int, data: st.DataObject
) -> None:
    actions = data.draw(st.lists(st.integers(0, 8 * LEVELS), min_size=20, max_size=60))

    def drawn(mask: Mask, rng: np.random.Generator, step: int) -> int:
        return actions[step % len(actions)]

    hard = variant(scenario, "short_of_memory", SLOS[1])
    Watch(Pools(hard, 1, rows=8), drawn, seed, every=1).play(60)


@pytest.mark.long
@pytest.mark.parametrize("stream", STREAMS, ids=lambda stream: stream.__name__)
@pytest.mark.parametrize("name", VARIANTS)
def test_hundreds_of_thousands_of_decisions_keep_the_laws(
    scenario: ScenarioSpec, name: str, stream: Stream
) -> None:
    """Over all cases: two million decisions."""
    watch = Watch(Pools(variant(scenario, name, SLOS[0]), 32, rows=8), stream, 7, every=250)
    watch.play(1000)
    assert watch.ends > 32
