"""Actor-critic in plain PyTorch, one update a step: no library but torch and Gymnasium."""

import gymnasium as gym
import torch
from torch import nn

HORIZON_S = 45.0


def seen(observation: dict) -> tuple[torch.Tensor, torch.Tensor]:
    """Numbers [B, N], and which actions are allowed [B, A]."""
    names = ("rows", "instance", "globals")
    numbers = [torch.from_numpy(observation[name].copy()) for name in names]
    return torch.cat(numbers, dim=1), torch.from_numpy(observation["action_mask"] > 0)


def main(decisions: int = 100_000, num_envs: int = 64, seed: int = 0) -> float:
    """Mean reward of a decision over the last tenth."""
    torch.manual_seed(seed)
    env = gym.make_vec("envs:aegaeon/Pool-v0", num_envs, vectorization_mode="vector_entry_point")
    x, mask = seen(env.reset(seed=seed)[0])
    body = nn.Sequential(nn.Linear(x.shape[1], 64), nn.Tanh())
    actor, critic = nn.Linear(64, mask.shape[1]), nn.Linear(64, 1)
    optimizer = torch.optim.Adam([*body.parameters(), *actor.parameters(), *critic.parameters()])
    rewards, ended = [], torch.zeros(num_envs, dtype=torch.bool)
    for _ in range(decisions // num_envs):
        hidden = body(x)
        policy = torch.distributions.Categorical(
            logits=actor(hidden).masked_fill(~mask, -1e8), validate_args=False
        )
        action = policy.sample()
        observation, reward, _, truncated, info = env.step(action.numpy())
        (x, mask), dt_s = seen(observation), torch.from_numpy(info["dt_s"])
        with torch.no_grad():
            target = torch.from_numpy(reward) + torch.exp(-dt_s / HORIZON_S) * critic(body(x))[:, 0]
        advantage = target.float() - critic(hidden)[:, 0]
        loss = advantage.square() - policy.log_prob(action) * advantage.detach()
        loss = loss[~ended]  # a step after an end is the reset (NEXT_STEP): nothing was decided
        ended = torch.from_numpy(truncated)
        optimizer.zero_grad()
        loss.mean().backward()
        optimizer.step()
        rewards.append(reward.mean())
    return float(sum(rewards[-len(rewards) // 10 :]) / max(1, len(rewards) // 10))


if __name__ == "__main__":
    print(f"{main():.5f} mean reward of a decision")
