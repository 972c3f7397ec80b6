"""Random allowed actions in one pool: the floor of everything else."""

import gymnasium as gym
import numpy as np


def main(decisions: int = 5000, seed: int = 0) -> float:
    """Reward per minute of pool time; -60 is every deadline of a mean minute missed."""
    env = gym.make("envs:aegaeon/Pool-v0")
    env.action_space.seed(seed)
    _, info = env.reset(seed=seed)
    total, seconds = 0.0, 0.0
    for _ in range(decisions):
        action = env.action_space.sample(mask=info["action_mask"].astype(np.int8))
        _, reward, terminated, truncated, info = env.step(action)
        total, seconds = total + float(reward), seconds + info["dt_s"]
        if terminated or truncated:
            _, info = env.reset()
    env.close()
    return 60 * total / seconds


if __name__ == "__main__":
    print(f"{main():.2f} reward per minute")
