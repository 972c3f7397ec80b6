"""Pools in the middle of an episode, and the scenes of them."""

from collections.abc import Callable

import numpy as np
import pytest

from aegaeon_rl.policies.registry import make_policy
from envs.episode import Episode, begin, draw
from envs.rendering.scene import Scene
from envs.scenario import ScenarioSpec
from runtime.core import NS, PoolSpec, SloSpec
from runtime.emulator.loop import Signal, advance
from runtime.emulator.run import new_memory
from runtime.emulator.tables import Sim, grow_journal, grow_slots
from traces.market import MarketSpec, generate

SIZES = ("Qwen2.5-7B", "Yi-1.5-9B", "Llama-2-13B")
MakeScene = Callable[..., Scene]


def played(spec: ScenarioSpec, episode: Episode, until_s: float) -> Sim:
    """Run by the index to the first decision from `until_s` on."""
    sim = begin(spec, episode, journal_rows=64)
    policy = make_policy("index")
    memory, end_ns = new_memory(sim, policy), int(sim.control["horizon_ns"][0])
    sim.control["horizon_ns"] = round(until_s * NS)
    while (signal := policy.drive(sim, memory)) != Signal.END:
        grow = grow_journal if signal == Signal.JOURNAL_FULL else grow_slots
        grow(sim)
    sim.control["horizon_ns"] = end_ns
    while (signal := advance(sim)) == Signal.JOURNAL_FULL:
        grow_journal(sim)
    assert signal == Signal.DECISION
    return sim


@pytest.fixture(scope="session")
def make_scene() -> MakeScene:
    """A scene of a busy pool of `instances`, `until_s` into its clock."""
    market = MarketSpec(name="small", models=12, duration_s=400.0, rate_rps=4.0, seed=0)
    trace = generate(market)

    def make(instances: int = 2, until_s: float = 30.0, seed: int = 0, load: float = 2.0) -> Scene:
        pool = PoolSpec(
            name="pool", profile="h100", checkpoints=SIZES, instances_per_node=instances
        )
        spec = ScenarioSpec(
            traces=(trace,),
            pools=(pool,),
            slos=(SloSpec(ttft_s=1.0, tbt_s=0.05),),
            warm_s=10.0,
            shortest_s=40.0,
            longest_s=50.0,
            load_scale=(load, load),
        )
        episode = draw(spec, np.random.default_rng(seed))
        return Scene(spec, episode, played(spec, episode, until_s))

    return make
