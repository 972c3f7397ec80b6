"""How a policy is trained."""

from dataclasses import dataclass
from math import inf

from envs.arguments import quotas_of
from runtime.core import check_within
from runtime.errors import UserError, nearest

POSITIVE = ("learning_rate", "horizon_s", "clip", "scale", "spread", "stride", "shortest_s")
METHODS = ("ppo", "es")
LARGEST_ROLLOUT = 1 << 22  # decisions held between two updates
COUNTS = {  # least and most
    "decisions": (1, 1e12),
    "checkpoints": (1, 10_000),
    "pools": (1, 16_384),
    "steps": (2, 65_536),
    "group": (1, 16_384),
    "threads": (1, 1024),
    "epochs": (1, 1000),
    "batch": (1, LARGEST_ROLLOUT),
    "hidden": (1, 4096),
    "rows": (1, 4096),
    "population": (2, 4096),
    "episodes": (1, 10_000),
    "curriculum_bins": (0, 64),
    "curriculum_episodes": (1, 10_000),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainSpec:
    """A run is `checkpoints` segments of equal length; each starts all pools anew from seeds of
    its own, so that a run resumed at a checkpoint repeats the uninterrupted one to the bit. In the
    first segment only the critic learns (`warm_critic`)."""

    method: str = "ppo"  # MaskablePPO, or es: an evolution strategy on the greedy policy
    decisions: int = 1_000_000
    checkpoints: int = 8
    pools: int = 32
    group: int = 1  # pools that play the same episodes, each against the others' mean; 1: critic
    threads: int = 1  # that step the pools; what is learned does not depend on it
    steps: int = 256  # decisions a pool makes between two updates
    epochs: int = 2
    batch: int = 1024  # at most: a rollout is cut into equal batches
    learning_rate: float = 1e-3
    horizon_s: float = 45.0  # rewards weigh exp(-t / horizon_s); time, not steps
    gae_lambda: float = 0.99
    clip: float = 0.1
    entropy: float = 0.0
    warm_critic: bool = True
    start: str = "index"  # the index to start from, or the folder of a trained policy
    hidden: int = 32
    rows: int = 32
    quotas_s: tuple[float, ...] = (0.1, 0.4)  # used when starting from an index
    scale: float = 5.0  # logits per unit of index score: how close sampling stays to greedy
    warm_s: float = 20.0
    shortest_s: float = 30.0
    longest_s: float = 90.0
    load_scale: tuple[float, float] = (1.0, 1.5)
    scenario: str | None = None  # in conf/scenario: pools, SLOs, noise, ... that episodes vary too
    population: int = 16  # es: policies tried in a generation, in pairs of opposites
    episodes: int = 8  # es: that all of a generation play
    spread: float = 0.5  # es: of the tried weights, in units of each weight's scale
    stride: float = 0.15  # es: of a generation's step, in spreads
    curriculum_bins: int = 0  # of load_scale, drawn by how far it is behind its start; 0: no
    curriculum_episodes: int = 8  # of each level, played by both between segments
    train_share: float = 0.6  # of the span of a trace without a split; then validation, then test
    validation_share: float = 0.2

    def __post_init__(self) -> None:
        for name, (least, most) in COUNTS.items():
            check_within(f"train.{name}", getattr(self, name), least, most)
        if self.method not in METHODS:
            raise UserError(f"train.method={self.method!r}: {nearest(self.method, METHODS)}")
        if self.population % 2:
            raise UserError(f"train.population={self.population}: expected an even number")
        if self.rollout > LARGEST_ROLLOUT:
            raise UserError(
                f"train.pools={self.pools}, steps={self.steps}: expected a product of at most"
                f" {LARGEST_ROLLOUT}"
            )
        if self.pools % self.group:
            raise UserError(f"train.group={self.group}: expected a divisor of pools={self.pools}")
        for name in POSITIVE:
            if not 0 < getattr(self, name) < inf:
                raise UserError(f"train.{name}={getattr(self, name)}: expected more than 0")
        if not 0 <= self.warm_s < inf:
            raise UserError(f"train.warm_s={self.warm_s}: expected 0 or more seconds")
        if not self.shortest_s <= self.longest_s < inf:
            raise UserError(
                f"train.longest_s={self.longest_s}: expected at least shortest_s={self.shortest_s}"
            )
        low, high = self.load_scale
        if not 0 < low <= high < inf:
            raise UserError(f"train.load_scale={list(self.load_scale)}: expected 0 < low <= high")
        if not 0 <= self.gae_lambda <= 1:
            raise UserError(f"train.gae_lambda={self.gae_lambda}: expected 0 to 1")
        if not 0 <= self.entropy < inf:
            raise UserError(f"train.entropy={self.entropy}: expected 0 or more")
        if self.minibatch < 2:
            raise UserError(
                f"train.batch={self.batch}: expected 2 or more, and a divisor of"
                f" pools * steps = {self.rollout} that is"
            )
        if not 0 < self.train_share < 1 or not 0 < self.validation_share < 1 - self.train_share:
            raise UserError(
                f"train.train_share={self.train_share}, validation_share={self.validation_share}:"
                " expected positive shares that leave time to hold out"
            )
        quotas_of(self.quotas_s, "train.quotas_s")

    @property
    def shares(self) -> tuple[float, float]:
        return self.train_share, self.validation_share

    @property
    def rollout(self) -> int:
        return self.pools * self.steps

    @property
    def minibatch(self) -> int:
        """The largest divisor of a rollout up to `batch`: a rest of one sample has no deviation
        to normalise advantages by, and would make the weights NaN."""
        return max(n for n in range(1, min(self.batch, self.rollout) + 1) if self.rollout % n == 0)

    @property
    def segment(self) -> int:
        """Decisions between checkpoints: whole rollouts."""
        return max(1, round(self.decisions / self.checkpoints / self.rollout)) * self.rollout
