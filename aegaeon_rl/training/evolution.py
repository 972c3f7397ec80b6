"""`Evolution`: the greedy policy's own score, followed uphill without gradients.

An evolution strategy (Salimans et al., 2017: opposite pairs, Adam-like steps) over all numbers of
the learned policy, its index part among them. A generation plays the same episodes with all its
members, so that what arrives falls out of the comparison; what is maximised is exactly what is
reported, deadlines met by the policy that is deployed. Letters: P members, E episodes, D numbers.
"""

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
import numpy.typing as npt

from aegaeon_rl.evaluation.record import write_text
from aegaeon_rl.policies.learned import FILE, Learned, Weights, save_weights
from aegaeon_rl.training.curriculum import due_in, play
from aegaeon_rl.training.spec import TrainSpec
from aegaeon_rl.training.trainer import POSITION, Checkpoint, starting_weights
from envs.episode import Episode, draw
from envs.scenario import ScenarioSpec
from runtime.errors import UserError

Floats = npt.NDArray[np.float64]
STATE = "state.npz"
EVOLVED = ("base", "w1", "b1", "w2", "b2", "w3", "b3", "idle")
KEEP, KEEP_SQUARE, KEEP_MEAN = 0.9, 0.95, 0.9  # of the step, of its size, of the mean kept
LEAST_SPREAD = 2e-3  # of attainment in an episode: smaller differences are not blown up


def flat(weights: Weights) -> Floats:
    """The numbers that evolve [D]."""
    return np.concatenate([getattr(weights, name).ravel() for name in EVOLVED]).astype(np.float64)


def unflat(values: Floats, like: Weights) -> Weights:
    parts, first = {}, 0
    for name in EVOLVED:
        shape = getattr(like, name).shape
        size = int(np.prod(shape))
        parts[name] = values[first : first + size].reshape(shape).astype(np.float32)
        first += size
    return like._replace(**parts)


def scales(weights: Weights) -> Floats:
    """How far each number may go at once [D]. The index's by its size; the network's less, for a
    step is as long as the noise in many numbers makes it, and idling on a whim costs most."""
    hidden = len(weights.b1)
    index = np.maximum(1.0, 0.25 * np.abs(weights.base))
    others = {"w1": 0.1, "w2": 0.1 / hidden**0.5, "w3": 0.2 / hidden**0.5, "idle": 0.03}
    sizes = [
        index if name == "base" else np.full(getattr(weights, name).shape, others.get(name, 0.1))
        for name in EVOLVED
    ]
    return np.concatenate([size.ravel() for size in sizes])


def worth(missed_share: Floats) -> Floats:
    """Of each member [P] by its share of missed deadlines in each episode [P, E]: every episode
    counts alike, and no member more than two deviations."""
    better = missed_share.mean(axis=0) - missed_share
    score = (better / (missed_share.std(axis=0) + LEAST_SPREAD)).mean(axis=1)
    spread = score.std()
    return np.clip(score / spread, -2, 2) if spread > 0 else score


class Evolution:
    """Mutable: the centre of the search, its momentum, and how many segments it has done. What it
    does in a generation is a function of the seed and the generation's number."""

    def __init__(self, scenario: ScenarioSpec, spec: TrainSpec, seed: int, folder: Path) -> None:
        self.scenario, self.spec, self.seed, self.folder = scenario, spec, seed, folder
        self.start = starting_weights(spec, seed)
        self.scale = spec.spread * scales(self.start)
        self.centre = flat(self.start)
        self.mean = self.centre.copy()  # of late centres: less noisy, and what is deployed
        self.step = np.zeros_like(self.centre)
        self.size = 0.0  # of a step, squared
        self.done = self.generation = self.decisions = 0

    def weights(self) -> Weights:
        return unflat(self.mean, self.start)

    def advance(self, progress: Callable[[int], None]) -> Checkpoint:
        """Generations until the segment's decisions are made, then its checkpoint."""
        with ThreadPoolExecutor(self.spec.threads) as threads:
            while self.decisions < (self.done + 1) * self.spec.segment:
                made = self._generation(threads)
                self.decisions += made
                progress(made)
        self.done += 1
        return self.save()

    def _generation(self, threads: ThreadPoolExecutor) -> int:
        """One step; returns decisions made."""
        rng = np.random.default_rng((self.seed, self.generation))
        episodes = [draw(self.scenario, rng) for _ in range(self.spec.episodes)]
        half = rng.normal(size=(self.spec.population // 2, len(self.centre)))
        noise = np.concatenate([half, -half])
        members = [self._member(row) for row in noise]

        def missed(pair: tuple[Learned, Episode]) -> tuple[float, int]:
            policy, episode = pair
            missed, decisions = play(self.scenario, episode, policy)
            return missed / max(1, due_in(self.scenario, episode)), decisions

        results = list(threads.map(missed, product(members, episodes)))
        shares = np.array([share for share, _ in results]).reshape(len(members), -1)
        self.generation += 1
        self._move(worth(shares) @ noise / len(noise))
        return sum(decisions for _, decisions in results)

    def _member(self, noise: Floats) -> Learned:
        return Learned(name="member", weights=unflat(self.centre + self.scale * noise, self.start))

    def _move(self, uphill: Floats) -> None:
        self.step = KEEP * self.step + (1 - KEEP) * uphill
        self.size = KEEP_SQUARE * self.size + (1 - KEEP_SQUARE) * float(np.mean(uphill**2))
        step = self.step / (1 - KEEP**self.generation)
        size = np.sqrt(self.size / (1 - KEEP_SQUARE**self.generation))
        self.centre = self.centre + self.spec.stride * self.scale * step / (size + 1e-8)
        self.mean = KEEP_MEAN * self.mean + (1 - KEEP_MEAN) * self.centre

    def save(self) -> Checkpoint:
        """Whole or not at all: checkpoint.json is written last."""
        folder = self.folder / "checkpoints" / f"{self.done:04d}"
        folder.mkdir(parents=True, exist_ok=True)
        save_weights(self.weights(), folder / FILE)
        aside = folder / f".{STATE}.part.npz"
        np.savez(aside, centre=self.centre, mean=self.mean, step=self.step, size=self.size)
        aside.replace(folder / STATE)
        position = {
            "number": self.done,
            "generation": self.generation,
            "decisions": self.decisions,
        }
        write_text(folder / POSITION, json.dumps(position) + "\n")
        return Checkpoint(self.done, folder)

    def restore(self, checkpoint: Checkpoint) -> None:
        """Go on from a checkpoint. Only arrays and numbers are read, never a pickle.

        Raises UserError when it is none, or was made with another network."""
        path = checkpoint.folder / STATE
        try:
            with np.load(path, allow_pickle=False) as data:
                arrays = {name: data[name] for name in ("centre", "mean", "step", "size")}
            position = json.loads((checkpoint.folder / POSITION).read_text())
            counts = [int(position[key]) for key in ("number", "generation", "decisions")]
        except (OSError, KeyError, ValueError, EOFError, BadZipFile):
            raise UserError(
                f"{path}: not an evolution's state; without {path.parent} the run resumes one"
                " checkpoint earlier"
            ) from None
        if any(arrays[name].shape != self.centre.shape for name in ("centre", "mean", "step")):
            raise UserError(f"{checkpoint.folder}: not this network's: other sizes")
        self.centre, self.mean, self.step = (arrays[name] for name in ("centre", "mean", "step"))
        self.size = float(arrays["size"])
        self.done, self.generation, self.decisions = counts
