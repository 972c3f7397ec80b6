"""`Trainer`: segments of MaskablePPO between checkpoints that resume exactly."""

import json
from collections.abc import Callable
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, NamedTuple
from zipfile import is_zipfile

import numpy as np
import torch
from sb3_contrib import MaskablePPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import configure
from torch import nn

from aegaeon_rl.evaluation.record import write_text
from aegaeon_rl.policies.index import Index
from aegaeon_rl.policies.learned import FILE, Learned, Weights, initial_weights, save_weights
from aegaeon_rl.policies.registry import make_policy
from aegaeon_rl.training.curriculum import Curriculum, measured_gaps
from aegaeon_rl.training.network import RowNetwork, RowPolicy, policy_arguments
from aegaeon_rl.training.packed import PackedBuffer
from aegaeon_rl.training.smdp import EventClock
from aegaeon_rl.training.spec import TrainSpec
from envs.scenario import ScenarioSpec
from envs.vector import PoolVecEnv
from runtime.errors import UserError
from runtime.protocol import Policy

STATE = "state.pt"
POSITION = "checkpoint.json"
STATE_KEYS = {"policy", "optimizer", "decisions", "updates", "segments"}


class Checkpoint(NamedTuple):
    """A folder with weights.npz (deployable), state.pt (to resume) and its number."""

    number: int
    folder: Path

    def policy(self) -> Learned:
        return Learned.load(self.folder / FILE, name=f"checkpoint {self.number}")


def starting_weights(spec: TrainSpec, seed: int) -> Weights:
    """An index with a network that adds nothing yet, or a trained policy's weights.

    Raises UserError for a policy that is neither.
    """
    policy = make_policy(spec.start, "train.start")
    if isinstance(policy, Learned):
        return policy.weights
    if not isinstance(policy, Index):
        raise UserError(f"train.start={spec.start}: expected an index or a trained policy's folder")
    return initial_weights(policy, spec.quotas_s, spec.hidden, seed)


class Progress(BaseCallback):
    """Tells how many decisions were made."""

    def __init__(self, advance: Callable[[int], None]) -> None:
        super().__init__()
        self.advance = advance

    def _on_step(self) -> bool:
        self.advance(self.training_env.num_envs)
        return True


class Trainer:
    """Mutable: a model, its pools, and how many segments it has done."""

    def __init__(self, scenario: ScenarioSpec, spec: TrainSpec, seed: int, folder: Path) -> None:
        torch.set_num_threads(1)  # two threads on a shared machine are slower than one
        self.spec, self.seed, self.folder = spec, seed, folder
        weights = starting_weights(spec, seed)
        quotas = tuple(round(float(q), 6) for q in weights.quotas_s)
        self.batch = PoolVecEnv(
            scenario,
            spec.pools,
            rows=spec.rows,
            quotas_s=quotas,
            group=spec.group,
            threads=spec.threads,
            copy=False,
        )
        self.pools = EventClock(self.batch)
        self.model = MaskablePPO(
            RowPolicy,
            self.pools,
            learning_rate=spec.learning_rate,
            n_steps=spec.steps,
            batch_size=spec.minibatch,
            n_epochs=spec.epochs,
            gamma=1.0,
            gae_lambda=spec.gae_lambda,
            clip_range=spec.clip,
            ent_coef=spec.entropy,
            rollout_buffer_class=PackedBuffer,
            rollout_buffer_kwargs={
                "horizon_s": spec.horizon_s,
                "group": spec.group,
                "levels": len(quotas),
            },
            policy_kwargs=policy_arguments(weights, spec.rows, spec.scale),
            seed=segment_seed(seed, 0),  # of the critic's first weights
            device="cpu",
        )
        buffer = self.model.rollout_buffer
        assert isinstance(buffer, PackedBuffer)
        buffer.attach(self.pools)
        self.model.set_logger(configure(str(folder / "tensorboard"), ["tensorboard"]))
        self.done: int = 0
        self.scenario: ScenarioSpec = scenario
        self.teacher: Policy = make_policy(spec.start, "train.start")
        self.curriculum: Curriculum = Curriculum(gaps=(0.0,) * scenario.levels)

    @property
    def decisions(self) -> int:
        return self.model.num_timesteps

    @property
    def network(self) -> RowNetwork:
        network = self.model.policy.mlp_extractor
        assert isinstance(network, RowNetwork)
        return network

    def advance(self, progress: Callable[[int], None]) -> Checkpoint:
        """One segment from seeds of its own, then its checkpoint."""
        if self.spec.curriculum_bins and self.done:
            self._weigh_levels()
        self._freeze_actor(self.spec.warm_critic and self.done == 0)
        self.model.set_random_seed(segment_seed(self.seed, self.done))
        self.model.set_env(self.pools, force_reset=True)
        self.model.learn(self.spec.segment, reset_num_timesteps=False, callback=Progress(progress))
        self.done += 1
        return self.save()

    def _weigh_levels(self) -> None:
        """Draw the levels of this segment by how far the policy is behind its start by now."""
        learner = Learned(name="learner", weights=self.network.weights())
        gaps = measured_gaps(
            self.scenario,
            learner,
            self.teacher,
            episodes=self.spec.curriculum_episodes,
            seed=segment_seed(self.seed, self.done),
        )
        self.curriculum = self.curriculum.updated(gaps)
        self.batch.weigh_levels(self.curriculum.weights())

    def _freeze_actor(self, is_frozen: bool) -> None:
        for layer in self.network.actor:
            nn.Module.requires_grad_(layer, not is_frozen)

    def save(self) -> Checkpoint:
        """Whole or not at all: checkpoint.json is written last."""
        folder = self.folder / "checkpoints" / f"{self.done:04d}"
        folder.mkdir(parents=True, exist_ok=True)
        save_weights(self.network.weights(), folder / FILE)
        aside = folder / f".{STATE}.part"
        torch.save(self._state(), aside)
        aside.replace(folder / STATE)
        position = {
            "number": self.done,
            "decisions": self.model.num_timesteps,
            "curriculum": self.curriculum.to_json(),
        }
        write_text(folder / POSITION, json.dumps(position) + "\n")
        return Checkpoint(self.done, folder)

    def _state(self) -> dict[str, Any]:
        return {
            "policy": self.model.policy.state_dict(),
            "optimizer": self.model.policy.optimizer.state_dict(),
            "decisions": self.model.num_timesteps,
            "updates": self.model._n_updates,
            "segments": self.done,
        }

    def restore(self, checkpoint: Checkpoint) -> None:
        """Go on from a checkpoint. Only tensors and numbers are read, never a pickle.

        Raises UserError when it is none, or was made with another network.
        """
        state = read_state(checkpoint.folder / STATE)
        try:
            self.model.policy.load_state_dict(state["policy"])
            self.model.policy.optimizer.load_state_dict(state["optimizer"])
        except (RuntimeError, ValueError, TypeError, KeyError) as error:
            reason = " ".join(str(error).split())
            raise UserError(f"{checkpoint.folder}: not this network's: {reason[:200]}") from None
        self.model.num_timesteps = state["decisions"]
        self.model._n_updates = state["updates"]
        self.done = state["segments"]
        self.curriculum = read_curriculum(checkpoint.folder / POSITION)


def segment_seed(seed: int, segment: int) -> int:
    """Within what NumPy's legacy generator takes, and far from others': pool p gets it plus p."""
    return int(np.random.SeedSequence((seed, segment)).generate_state(1)[0])


def read_state(path: Path) -> dict[str, Any]:
    """Raises UserError for a file that is not a training state, or holds more than one does."""
    try:
        state = torch.load(path, weights_only=True) if is_zipfile(path) else None
    except (OSError, EOFError, RuntimeError, ValueError, UnpicklingError):
        state = None
    if not isinstance(state, dict) or set(state) != STATE_KEYS:
        raise UserError(
            f"{path}: not a training state; without {path.parent} the run resumes one"
            " checkpoint earlier"
        )
    return state


def checkpoints(folder: Path) -> list[Checkpoint]:
    """Those that are complete, oldest first."""
    return sorted(
        Checkpoint(number_in(position), position.parent)
        for position in (folder / "checkpoints").glob(f"*/{POSITION}")
    )


def number_in(position: Path) -> int:
    return int(read_position(position)["number"])


def read_curriculum(position: Path) -> Curriculum:
    return Curriculum.from_json(read_position(position).get("curriculum", {}))


def read_position(position: Path) -> dict[str, Any]:
    """Raises UserError when the file is not what `save` wrote."""
    try:
        content: dict[str, Any] = json.loads(position.read_text())
        int(content["number"]), dict(content.get("curriculum", {}))
    except (ValueError, KeyError, TypeError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{position}: not a checkpoint's position: {reason}") from None
    return content
