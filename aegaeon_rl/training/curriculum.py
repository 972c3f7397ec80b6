"""Which levels of a scenario a learner meets: more of those where it is behind its teacher.

A level's gap is the share of the token deadlines of its episodes that the learner missed and the
teacher met, less those that it met and the teacher missed; both play the same episodes. The rule:

    chance(level) = floor / L + (1 - floor) * max(0, gap) / sum of max(0, gap) over the L levels

and floor = 1 where no gap is over 0: nothing is ever left out, and where the learner is ahead it is
not sent back. Between rounds gaps are averaged: new = keep * old + (1 - keep) * measured. All of it
is plain data, so that a resumed run draws the episodes that the uninterrupted one would have drawn.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import isfinite
from typing import Any, NamedTuple

import numpy as np

from envs.deadlines import missed_by
from envs.episode import Episode, arrivals_in, begin, draw, empty_state
from envs.scenario import ScenarioSpec
from runtime.core import NS, check_within
from runtime.emulator.loop import Signal
from runtime.emulator.run import PolicyStuckError, new_memory
from runtime.emulator.tables import grow_slots
from runtime.errors import UserError
from runtime.plain import from_plain, plain
from runtime.protocol import Policy


@dataclass(frozen=True, slots=True, kw_only=True)
class Curriculum:
    """`gaps` [L] by level of the scenario, after `rounds` of measuring. Raises UserError."""

    gaps: tuple[float, ...]
    rounds: int = 0
    floor: float = 0.25  # share of episodes that are spread evenly
    keep: float = 0.5  # of the old gaps, when new ones come

    def __post_init__(self) -> None:
        check_within("curriculum.floor", self.floor, 0, 1)
        check_within("curriculum.keep", self.keep, 0, 1)
        if not self.gaps or not all(map(isfinite, self.gaps)):
            raise UserError(f"curriculum.gaps={list(self.gaps)}: expected a number for each level")

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "Curriculum":
        made: Curriculum = from_plain(cls, data, "curriculum")
        return made

    def to_json(self) -> dict[str, Any]:
        data: dict[str, Any] = plain(self)
        return data

    def weights(self) -> tuple[float, ...]:
        """The chance of each level; they sum to 1."""
        behind = np.maximum(0.0, self.gaps)
        even = np.full(len(behind), 1 / len(behind))
        if behind.sum() == 0:
            return tuple(even.tolist())
        return tuple((self.floor * even + (1 - self.floor) * behind / behind.sum()).tolist())

    def updated(self, measured: Sequence[float]) -> "Curriculum":
        """After a round; the first one counts in full."""
        if len(measured) != len(self.gaps):
            raise UserError(
                f"curriculum: {len(measured)} gaps: expected {len(self.gaps)}, one each"
            )
        keep = self.keep if self.rounds else 0.0
        pairs = zip(self.gaps, measured, strict=True)
        gaps = tuple(keep * old + (1 - keep) * float(new) for old, new in pairs)
        return replace(self, gaps=gaps, rounds=self.rounds + 1)


def measured_gaps(
    spec: ScenarioSpec, learner: Policy, teacher: Policy, *, episodes: int, seed: int
) -> tuple[float, ...]:
    """The gap of each level over `episodes` of it: a function of the policies and the seed."""
    found = []
    for level in range(spec.levels):
        one = replace(spec, level_weights=tuple(float(i == level) for i in range(spec.levels)))
        rng = np.random.default_rng((seed, level))
        missed, due = 0, 0
        for episode in (draw(one, rng) for _ in range(episodes)):
            missed += play(one, episode, learner).missed - play(one, episode, teacher).missed
            due += due_in(one, episode)
        found.append(missed / max(1, due))
    return tuple(found)


class Played(NamedTuple):
    """Deadlines missed from the warm-up to the end, and decisions made in that time."""

    missed: int
    decisions: int


def play(spec: ScenarioSpec, episode: Episode, policy: Policy) -> Played:
    """An episode in which `policy` answers all decisions."""
    sim = begin(spec, episode)
    first = int(sim.control["decisions"][0])
    end_ns = int(sim.control["horizon_ns"][0])
    before = missed_by(sim, round(spec.warm_s * NS))
    memory = new_memory(sim, policy)
    while (signal := policy.drive(sim, memory)) != Signal.END:
        if signal != Signal.SLOTS_FULL:
            raise PolicyStuckError(f"policy {policy.name}: requests wait and nothing happens")
        grow_slots(sim)
    missed = int(missed_by(sim, end_ns) - before)
    return Played(missed, int(sim.control["decisions"][0]) - first)


def due_in(spec: ScenarioSpec, episode: Episode) -> int:
    """Token deadlines of the episode's requests from the end of the warm-up to its own."""
    arrivals = arrivals_in(spec, episode)
    models = empty_state(spec, episode).models[arrivals.model]
    first_ns = arrivals.time_ns + models["ttft_ns"]

    def before(at_s: float) -> int:
        passed = (round(at_s * NS) - first_ns - 1) // models["tbt_ns"] + 1
        return int(np.clip(passed, 0, arrivals.output_tokens).sum())

    return before(episode.length_s) - before(spec.warm_s)
