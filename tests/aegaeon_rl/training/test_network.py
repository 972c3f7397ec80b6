"""The network in torch decides as the compiled policy does."""

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from aegaeon_rl.policies.heuristics import collate, fcfs, index
from aegaeon_rl.policies.index import Index
from aegaeon_rl.policies.learned import LEVEL_PENALTY, Learned, Weights, initial_weights
from aegaeon_rl.training.network import Columns, RowNetwork
from aegaeon_rl.training.session import Job
from envs.pools import Pools, observation_space
from runtime.core import NONE, DecisionKind, EventKind
from runtime.emulator.run import run

QUOTAS_S = (0.05, 0.2, 0.5)
ROWS = 16
IDLE = -1
NEAR = 1e-4  # scores this close may fall either way: sums in another order


def stirred(seed: int) -> Weights:
    """Weights whose network often overrules its index: every quota is chosen, and idle."""
    start = initial_weights(index(), QUOTAS_S, 12, seed)
    rng = np.random.default_rng(seed)

    def drawn(array: np.ndarray, size: float = 0.2) -> np.ndarray:
        return rng.normal(0, size, array.shape).astype(np.float32)

    levels = LEVEL_PENALTY * np.arange(len(QUOTAS_S), dtype=np.float32)
    return start._replace(
        b1=drawn(start.b1),
        b2=drawn(start.b2),
        w3=drawn(start.w3, 0.05),
        b3=levels + drawn(start.b3, 0.02),
        idle=drawn(start.idle),
    )


def network_of(weights: Weights, scale: float = 5.0) -> RowNetwork:
    return RowNetwork(weights, ROWS, scale)


def columns_of(pools: Pools) -> torch.Tensor:
    """What the pools show, as the network takes it [P, columns]."""
    levels = len(pools.quotas_s)
    observed = {name: torch.from_numpy(a) for name, a in pools.observation(slice(None)).items()}
    return Columns(observation_space(pools.rows, levels), pools.rows, levels)(observed)


def open_scores(network: RowNetwork, pools: Pools) -> np.ndarray:
    """Scores [K*Q+1] of the first pool's actions, in units of the index; masked ones at -inf."""
    with torch.no_grad():
        logits = network.forward_actor(columns_of(pools))[0].numpy()
    return np.where(pools.buffers.mask[0], logits / network.scale, -np.inf)


def compiled_action(policy: Learned, pools: Pools) -> tuple[int, int]:
    """(kind, the action that `policy` takes on the first pool's emulator); the pool stays as is."""
    sim = pools.sims[0]
    assert sim is not None
    control, event = sim.control[0], sim.event.copy()[0]
    kind = int(control["decision_kind"])
    policy.decide(sim.state, kind, int(control["decision_index"]), event, policy.memory(sim.state))
    if event["model"] == NONE:
        return kind, pools.idle_action
    row, level = pools.buffers.models[0].tolist().index(event["model"]), 0
    if kind == DecisionKind.TURN:
        assert event["kind"] == EventKind.TURN
        level = pools.buffers.quotas_ns.tolist().index(event["quota_ns"])
    return kind, row * len(pools.quotas_s) + level


def test_greedy_action_is_the_compiled_decision(
    make_job: Callable[..., Job], tmp_path: Path
) -> None:
    pools = Pools(make_job(tmp_path).scenario(), 1, rows=ROWS, quotas_s=QUOTAS_S)
    chosen: Counter[tuple[int, int]] = Counter()
    for seed in range(6):
        weights = stirred(seed)
        network, policy = network_of(weights), Learned(name="x", weights=weights)
        pools.seed([seed])
        pools.reset(0)
        for _ in range(400):
            scores = open_scores(network, pools)
            kind, action = compiled_action(policy, pools)
            assert scores[action] > scores.max() - NEAR
            if np.isfinite(scores).sum() > 1:
                is_idle = action == pools.idle_action
                chosen[kind, IDLE if is_idle else action % len(QUOTAS_S)] += 1
            pools.step(np.array([action]))
            if pools.is_over[0]:
                pools.reset(0)
    answers = [(DecisionKind.TURN, choice) for choice in (0, 1, 2, IDLE)]
    answers += [(DecisionKind.PREFETCH, choice) for choice in (0, IDLE)]
    assert min(chosen[answer] for answer in answers) > 20, chosen


@pytest.mark.parametrize("start", [index(), fcfs(), collate()], ids=lambda policy: policy.name)
def test_untrained_it_is_its_index(
    make_job: Callable[..., Job], tmp_path: Path, start: Index
) -> None:
    quotas_s = (start.quota_s, 2 * start.quota_s)
    untrained = network_of(initial_weights(start, quotas_s, 8, seed=1)).weights()
    job = make_job(tmp_path)
    trace = job.trace.window(0, 100)  # later two scores tie but for the last bit
    policies = (replace(start, longest_s=0.0), Learned(name="x", weights=untrained))
    first, second = (run(trace, job.pool, p, job.slo, journal=True) for p in policies)
    assert first.journal.tobytes() == second.journal.tobytes()
    assert len(first.journal) > 1000


def test_weights_go_in_and_out_unchanged() -> None:
    network, weights = network_of(stirred(1)), stirred(2)
    network.load(weights)
    base, quotas_s = network.weights().base, network.weights().quotas_s
    for name, array in network.weights()._asdict().items():
        expected = {"base": base, "quotas_s": quotas_s}.get(name, getattr(weights, name))
        assert array.dtype == np.float32
        assert np.array_equal(array, expected)
    taken = network.weights()
    with torch.no_grad():
        network.first.weight.zero_()
    assert np.array_equal(taken.w1, weights.w1)  # a copy


def test_scale_sharpens_and_never_reorders(make_job: Callable[..., Job], tmp_path: Path) -> None:
    pools = Pools(make_job(tmp_path).scenario(), 8, rows=ROWS, quotas_s=QUOTAS_S)
    for p in range(8):
        pools.reset(p)
    columns, weights = columns_of(pools), stirred(3)
    soft, sharp = network_of(weights, 1.0), network_of(weights, 10.0)
    expected = 10.0 * soft.forward_actor(columns).detach().numpy()
    assert sharp.forward_actor(columns).detach().numpy() == pytest.approx(expected, rel=1e-5)


def test_closed_rows_change_nothing(make_job: Callable[..., Job], tmp_path: Path) -> None:
    scenario = replace(make_job(tmp_path).scenario(), load_scale=(1.0, 1.0))
    pools = Pools(scenario, 8, rows=ROWS, quotas_s=QUOTAS_S)
    for p in range(8):
        pools.reset(p)
    columns, network = columns_of(pools), network_of(stirred(4))
    rows, is_open, context = network.parts(columns)
    noise = torch.rand(rows.shape) * (is_open[:, :, None] < 0.5)
    other = torch.cat([(rows + noise).flatten(1), is_open, context], dim=1)
    assert not torch.equal(columns, other)
    assert torch.equal(network.forward_critic(columns), network.forward_critic(other))
    mask = torch.from_numpy(pools.buffers.mask)
    mask[:, -1] = True  # idle is scored against the best open row
    before, after = network.forward_actor(columns), network.forward_actor(other)
    assert torch.equal(before[mask], after[mask])


def test_without_an_open_row_idle_still_has_a_score() -> None:
    network = network_of(stirred(5))
    columns = torch.zeros(1, ROWS * 16 + ROWS + 16)
    actor, critic = network(columns)
    assert torch.isfinite(actor).all()
    assert torch.isfinite(critic).all()
