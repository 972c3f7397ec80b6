"""The network in torch decides as the compiled policy does."""

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from gymnasium import spaces

from aegaeon_rl.policies.heuristics import collate, fcfs, index
from aegaeon_rl.policies.index import Index
from aegaeon_rl.policies.learned import (
    IDLE_PENALTY,
    LEVEL_PENALTY,
    Learned,
    Weights,
    initial_weights,
)
from aegaeon_rl.training.network import RowNetwork, RowPolicy, policy_arguments
from aegaeon_rl.training.packed import Packed, pack
from aegaeon_rl.training.session import Job
from envs.pools import Pools, observation_space
from runtime.core import NONE, DecisionKind, EventKind
from runtime.emulator.run import run
from runtime.pool.features import F

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


def shown_by(pools: Pools) -> Packed:
    """What the pools show, as the network takes it."""
    return pack(pools.observation(slice(None)), len(pools.quotas_s))


def open_scores(network: RowNetwork, pools: Pools) -> np.ndarray:
    """Scores [K*Q+1] of the first pool's actions, in units of the index; masked ones at -inf."""
    with torch.no_grad():
        logits = network.forward_actor(shown_by(pools))[0].numpy()
    return np.where(pools.mask[0], logits / network.scale, -np.inf)


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
        pools.seed(0, seed)
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
    trace = job.parts.train.window(0, 100)  # later two scores tie but for the last bit
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
    shown, weights = shown_by(pools), stirred(3)
    soft, sharp = network_of(weights, 1.0), network_of(weights, 10.0)
    expected = 10.0 * soft.forward_actor(shown).detach().numpy()
    assert sharp.forward_actor(shown).detach().numpy() == pytest.approx(expected, rel=1e-5)


def test_closed_rows_change_nothing(make_job: Callable[..., Job], tmp_path: Path) -> None:
    pools = Pools(make_job(tmp_path).scenario(), 8, rows=ROWS, quotas_s=QUOTAS_S)
    for p in range(8):
        pools.reset(p)
    observation, levels = pools.observation(slice(None)), len(QUOTAS_S)
    is_open = observation["action_mask"][:, : ROWS * levels : levels]
    noise = np.random.default_rng(0).random((8, ROWS, F), np.float32) * (is_open == 0)[:, :, None]
    other = {**observation, "rows": observation["rows"] + noise.reshape(8, -1)}
    for ours, theirs in zip(pack(observation, levels), pack(other, levels), strict=True):
        assert torch.equal(ours, theirs)


def dense_scores(network: RowNetwork, observation: dict[str, torch.Tensor]) -> torch.Tensor:
    """The network's definition, on all rows at once, closed or not [B, K*Q+1]."""
    rows = observation["rows"].reshape(-1, ROWS, F)
    is_open = observation["action_mask"][:, :-1].reshape(-1, ROWS, len(QUOTAS_S))[:, :, 0] > 0
    context = torch.cat([observation["instance"], observation["globals"]], dim=1)
    inputs = torch.cat([rows, context[:, None].expand(-1, ROWS, -1)], dim=2)
    hidden = torch.relu(network.second(torch.relu(network.first(inputs))))
    index = (rows * network.base[(context[:, 1] > 0.5).long()][:, None]).sum(2)
    scores = index[:, :, None] - network.penalty + network.last(hidden)
    best = torch.where(is_open, index, -torch.inf).amax(1)
    idle = torch.where(torch.isfinite(best), best, 0.0) - IDLE_PENALTY
    idle = idle + network.idle(context)[:, 0]
    return network.scale * torch.cat([scores.flatten(1), idle[:, None]], dim=1)


def crowd(size: int) -> dict[str, torch.Tensor]:
    """Made-up decisions: from no open row to all of them, in any place."""
    rng = np.random.default_rng(size)
    space = observation_space(ROWS, len(QUOTAS_S))
    space.seed(size)
    drawn = [space.sample() for _ in range(size)]
    observation = {name: np.stack([one[name] for one in drawn]) for name in space.spaces}
    is_open = rng.random((size, ROWS)) < np.linspace(0, 1.1, size)[:, None]
    mask = np.repeat(is_open, len(QUOTAS_S), axis=1)
    observation["action_mask"] = np.hstack([mask, np.ones((size, 1), bool)]).astype(np.int8)
    return {name: torch.from_numpy(array) for name, array in observation.items()}


def test_open_rows_alone_score_and_learn_as_among_all() -> None:
    network, observation = network_of(stirred(6)), crowd(40)
    mask = observation["action_mask"] > 0
    weight = torch.randn(mask.shape, generator=torch.Generator().manual_seed(0)) * mask
    scores = network.forward_actor(pack(observation, len(QUOTAS_S)))
    dense = dense_scores(network, observation)
    assert torch.allclose(scores[mask], dense[mask], atol=1e-4)
    ours, theirs = (
        torch.autograd.grad((x * weight).sum(), list(network.first.parameters()))
        for x in (scores, dense)
    )
    for a, b in zip(ours, theirs, strict=True):
        assert torch.allclose(a, b, rtol=1e-3, atol=1e-2)


def test_summary_is_mean_and_most_of_open_rows() -> None:
    observation = crowd(40)
    rows = observation["rows"].reshape(40, ROWS, F)
    is_open = (observation["action_mask"][:, :-1:3] > 0)[:, :, None]
    mean = (rows * is_open).sum(1) / is_open.sum(1).clamp(min=1)
    most = torch.where(is_open, rows, 0.0).amax(1)
    summary = pack(observation, 3).summary
    assert torch.allclose(summary, torch.cat([mean, most], dim=1), atol=1e-5)


def make_policy() -> RowPolicy:
    space, action = observation_space(ROWS, len(QUOTAS_S)), spaces.Discrete(ROWS * 3 + 1)
    return RowPolicy(space, action, lambda _: 1e-3, **policy_arguments(stirred(7), ROWS, 2.0))


def test_probabilities_are_sb3_contribs_masked_distribution() -> None:
    policy, observation = make_policy(), crowd(40)
    masks = observation["action_mask"].numpy() > 0
    distribution = policy.get_distribution(observation, action_masks=masks)
    actions, values, log_prob = policy(observation, action_masks=masks)
    assert masks[np.arange(40), actions.numpy()].all()
    assert torch.allclose(log_prob, distribution.log_prob(actions), atol=1e-5)
    assert torch.equal(values, policy.predict_values(observation))
    again, same_log_prob, entropy = policy.evaluate_actions(observation, actions, masks)
    assert torch.equal(again, values)
    assert torch.allclose(same_log_prob, log_prob, atol=1e-6)
    assert torch.allclose(entropy, distribution.entropy(), atol=1e-4)
    best = policy(observation, deterministic=True, action_masks=masks)[0]
    assert torch.equal(best, distribution.mode())


def test_without_an_open_row_idle_still_has_a_score() -> None:
    network = network_of(stirred(5))
    observation = {name: array * 0 for name, array in crowd(1).items()}
    actor, critic = network(pack(observation, len(QUOTAS_S)))
    assert torch.isfinite(actor).all()
    assert torch.isfinite(critic).all()


def test_actor_and_critic_do_not_read_the_privileged_key(make_job: Callable[..., Job]) -> None:
    """With the key in the observation the same actions come out, whatever it holds."""
    scenario = make_job(Path("unused")).scenario()
    pools = Pools(scenario, 3, rows=ROWS, quotas_s=QUOTAS_S, privileged=True)
    for p in range(3):
        pools.seed(p, p)
        pools.reset(p)
    space = observation_space(ROWS, len(QUOTAS_S), privileged=True)
    actions = spaces.Discrete(ROWS * len(QUOTAS_S) + 1)
    arguments = policy_arguments(stirred(1), ROWS, 5.0)
    policy = RowPolicy(space, actions, lambda _: 1e-3, **arguments)
    seen = pools.observation(slice(None))
    told = [
        policy.judge(seen | {"privileged": np.full_like(seen["privileged"], value)}, pools.mask)
        for value in (0.0, 3.0)
    ]
    assert "privileged" in seen
    assert all(torch.equal(a, b) for a, b in zip(*told, strict=True))
