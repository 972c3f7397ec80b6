"""The tuned index in a vector of pools: a linear score over each row, in NumPy."""

import gymnasium as gym
import numpy as np

from aegaeon_rl.policies.heuristics import index

QUOTAS_S = (0.1, 0.4)


def main(decisions: int = 20_000, num_envs: int = 32, seed: int = 0) -> float:
    """Reward per minute of pool time."""
    env = gym.make_vec(
        "envs:aegaeon/Pool-v0",
        num_envs,
        vectorization_mode="vector_entry_point",
        quotas_s=QUOTAS_S,
    )
    turn, prefetch = index().weights()
    observation, _ = env.reset(seed=seed)
    total, seconds = 0.0, 0.0
    for _ in range(decisions // num_envs):
        is_prefetch = observation["instance"][:, 1] > 0.5
        weights = np.where(is_prefetch[:, None], prefetch, turn)
        rows = observation["rows"].reshape(num_envs, -1, len(turn))
        scores = np.einsum("bkf,bf->bk", rows, weights)
        is_open = observation["action_mask"][:, : -1 : len(QUOTAS_S)] > 0
        best = np.where(is_open, scores, -np.inf).argmax(axis=1) * len(QUOTAS_S)
        idle = observation["action_mask"].shape[1] - 1
        actions = np.where(is_open.any(axis=1), best, idle)
        observation, rewards, _, _, info = env.step(actions)
        total, seconds = total + rewards.sum(), seconds + info["dt_s"].sum()
    env.close()
    return 60 * total / seconds


if __name__ == "__main__":
    print(f"{main():.2f} reward per minute")
