"""sb3-contrib's MaskablePPO on batched pools, discounting in event time."""

from sb3_contrib import MaskablePPO

from aegaeon_rl.training.smdp import EventClock, EventTimeMaskableDictBuffer
from envs.scenario import demo_scenario
from envs.vector import PoolVecEnv


def main(decisions: int = 200_000, num_envs: int = 64, n_steps: int = 128) -> float:
    """Mean return of the last hundred episodes (NaN before the first has ended)."""
    env = EventClock(PoolVecEnv(demo_scenario(), num_envs))
    model = MaskablePPO(
        "MultiInputPolicy",
        env,
        gamma=1.0,  # the buffer discounts by seconds
        gae_lambda=0.99,
        n_steps=n_steps,
        batch_size=num_envs * n_steps // 4,
        n_epochs=2,
        rollout_buffer_class=EventTimeMaskableDictBuffer,
        rollout_buffer_kwargs={"horizon_s": 45.0},
        seed=0,
        device="cpu",
    )
    model.rollout_buffer.attach(model.get_env())
    model.learn(decisions)
    returns = [episode["r"] for episode in model.ep_info_buffer]
    return sum(returns) / len(returns) if returns else float("nan")


if __name__ == "__main__":
    print(f"{main():.2f} mean return")
