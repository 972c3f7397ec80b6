"""The Gymnasium face of the pool: one core, a single and two vector environments."""

import gymnasium as gym

gym.register(
    id="aegaeon/Pool-v0",
    entry_point="envs.pool_env:PoolEnv",
    vector_entry_point="envs.vector:PoolVectorEnv",
)
