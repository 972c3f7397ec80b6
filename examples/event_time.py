"""Event time for any environment that tells in `info["dt_s"]` how many seconds a step took."""

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.wrappers import TimeLimit
from stable_baselines3 import PPO
from stable_baselines3.common.vec_env import DummyVecEnv

from aegaeon_rl.training.smdp import EventClock, EventTimeBuffer


class Oven(gym.Env):
    """A small batch takes 1 s and earns 1, a large one earns 8 and takes what is shown: discounted
    by the step it looks eight times as good, by the second only where it takes less than 8 s."""

    observation_space = spaces.Box(2.0, 32.0, (1,), np.float32)
    action_space = spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.large_s = self.np_random.uniform(2.0, 32.0)
        return np.array([self.large_s], np.float32), {}

    def step(self, action):
        reward, dt_s = (8.0, self.large_s) if action == 1 else (1.0, 1.0)
        self.large_s = self.np_random.uniform(2.0, 32.0)
        observation = np.array([self.large_s], np.float32)
        return observation, reward, False, False, {"dt_s": dt_s}


def make_model(n_steps: int = 256) -> PPO:
    env = EventClock(DummyVecEnv([lambda: TimeLimit(Oven(), 200)] * 8))
    model = PPO(
        "MlpPolicy",
        env,
        gamma=1.0,  # not by the step ...
        n_steps=n_steps,
        batch_size=256,
        rollout_buffer_class=EventTimeBuffer,
        rollout_buffer_kwargs={"horizon_s": 20.0},  # ... but by exp(-seconds / 20)
        seed=0,
        device="cpu",
    )
    model.rollout_buffer.attach(model.get_env())  # after construction: SB3 pickles the keywords
    return model


def main(decisions: int = 60_000) -> float:
    """Up to how many seconds the trained policy would bake a large batch; best: about 7."""
    model = make_model()
    model.learn(decisions)
    seconds = np.arange(2.0, 32.0, 0.5, np.float32)[:, None]
    actions, _ = model.predict(seconds, deterministic=True)
    return float(seconds[actions == 1].max(initial=0.0))


if __name__ == "__main__":
    print(f"large batches up to {main():.1f} s")
