"""How fast training is on this machine: MaskablePPO end to end, collection and updates together."""

import time
from pathlib import Path
from typing import NamedTuple

from aegaeon_rl.training.spec import TrainSpec
from aegaeon_rl.training.trainer import Trainer
from envs.scenario import ScenarioSpec

EPOCHS = 2
STEPS, BATCH = 128, 4096  # of the measured run: decisions a pool makes per rollout, minibatch


class TrainSpeed(NamedTuple):
    """Of the whole process: `wall_s` on the clock, `cpu_s` on all its threads."""

    decisions: int
    wall_s: float
    cpu_s: float

    @property
    def decisions_s(self) -> float:
        return self.decisions / self.wall_s

    @property
    def decisions_cpu_s(self) -> float:
        """Per second of processor time: what a loaded machine changes least."""
        return self.decisions / self.cpu_s


def measure_training(
    scenario: ScenarioSpec,
    *,
    pools: int,
    decisions: int,
    seed: int,
    folder: Path,
    threads: int = 2,
) -> TrainSpeed:
    """About `decisions` (whole rollouts) of training from the index at 2 epochs, the pools' first
    resets included; `threads` step the pools, one learns. A small run before it compiles the
    kernels. `folder` takes what runs leave."""
    small = TrainSpec(decisions=1, checkpoints=1, pools=2, steps=2, epochs=1, warm_critic=False)
    Trainer(scenario, small, seed, folder / "warm").advance(lambda _: None)
    spec = TrainSpec(
        decisions=decisions,
        checkpoints=1,
        pools=pools,
        threads=threads,
        steps=STEPS,
        batch=BATCH,
        epochs=EPOCHS,
        warm_critic=False,
    )
    trainer = Trainer(scenario, spec, seed, folder)
    wall_s, cpu_s = time.perf_counter(), time.process_time()
    trainer.advance(lambda _: None)
    wall_s, cpu_s = time.perf_counter() - wall_s, time.process_time() - cpu_s
    return TrainSpeed(trainer.model.num_timesteps, wall_s, cpu_s)
