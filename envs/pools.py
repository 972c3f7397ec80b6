"""A batch of emulated pools: the one core behind the single, vector and SB3 faces."""

from collections.abc import Sequence
from math import inf

import numpy as np
import numpy.typing as npt
from gymnasium import spaces

from envs.episode import sample
from envs.scenario import ScenarioSpec
from envs.stepping import Buffers, count_from_here, new_buffers, resume, start, step_pools
from runtime.emulator.loop import Signal
from runtime.emulator.tables import Sim, grow_slots
from runtime.errors import UserError
from runtime.pool.features import HIGH, LOW, F, I

QUOTAS_S = (0.1, 0.4)
ROWS = 32
DRAWS = 1000  # windows to try for one with a decision
Observation = dict[str, npt.NDArray[np.float32] | npt.NDArray[np.int8]]


def observation_space(rows: int, levels: int) -> spaces.Dict:
    """rows [K * F] (flat, as SB3 wants; `reshape(K, F)`), instance [I], globals [C], action_mask
    [K * Q + 1]; clipped as features say."""
    return spaces.Dict(
        {
            "rows": spaces.Box(np.tile(LOW[:F], rows), np.tile(HIGH[:F], rows)),
            "instance": spaces.Box(LOW[F : F + I], HIGH[F : F + I]),
            "globals": spaces.Box(LOW[F + I :], HIGH[F + I :]),
            "action_mask": spaces.MultiBinary(rows * levels + 1),
        }
    )


class Pools:
    """P pools, each in an episode of its own. Pool p draws scenarios from its own stream."""

    def __init__(
        self,
        scenario: ScenarioSpec,
        count: int,
        *,
        rows: int = ROWS,
        quotas_s: Sequence[float] = QUOTAS_S,
    ) -> None:
        self.scenario, self.count, self.rows = scenario, count, rows
        self.quotas_s = tuple(quotas_s)
        if count < 1 or rows < 1:
            raise UserError(f"num_envs={count}, rows={rows}: expected 1 or more of each")
        if not self.quotas_s or not all(0 < q < inf for q in self.quotas_s):
            raise UserError(f"quotas_s={self.quotas_s}: expected one or more, each over 0 s")
        self._reward_per_miss = -1.0 / scenario.deadline_rate
        self.buffers: Buffers = new_buffers(count, rows, self.quotas_s)
        self.buffers.clocks["is_over"] = 1  # until the first reset
        self.sims: list[Sim | None] = [None] * count
        self.rngs = [np.random.default_rng() for _ in range(count)]

    @property
    def idle_action(self) -> int:
        return self.rows * len(self.quotas_s)

    def seed(self, seeds: Sequence[int]) -> None:
        self.rngs = [np.random.default_rng(seed) for seed in seeds]

    def reset(self, p: int) -> None:
        """Draw a new episode for pool p; one that is over before its first decision is redrawn.

        Raises UserError when that goes on: the scenario has next to no requests.
        """
        for _ in range(DRAWS):
            sim = sample(self.scenario, self.rngs[p])
            self.sims[p] = sim
            self.buffers.addresses[p] = sim.address
            start(self.buffers, p, sim)
            self._grow(p)
            if not self.buffers.clocks["is_over"][p]:
                count_from_here(self.buffers, p)
                return
        raise UserError(
            f"trace {self.scenario.name}: none of {DRAWS} windows has a decision to take:"
            " expected more requests, or longer episodes"
        )

    def step(self, actions: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
        """Act in all pools that are not over; returns rewards [P]. Raises UserError."""
        if actions.shape != (self.count,) or not self._are_actions(actions):
            raise UserError(
                f"actions {actions!r}: expected {self.count} from 0 to {self.idle_action}"
            )
        step_pools(self.buffers, actions)
        for p in np.flatnonzero(self.buffers.clocks["signal"] == Signal.SLOTS_FULL):
            self._grow(int(p))
        return self.buffers.missed * self._reward_per_miss

    def _are_actions(self, actions: npt.NDArray[np.int64]) -> bool:
        return bool(((actions >= 0) & (actions <= self.idle_action)).all())

    def _grow(self, p: int) -> None:
        while self.buffers.clocks["signal"][p] == Signal.SLOTS_FULL:
            sim = self.sims[p]
            assert sim is not None
            grow_slots(sim)
            resume(self.buffers, p)

    @property
    def is_over(self) -> npt.NDArray[np.bool_]:
        return self.buffers.clocks["is_over"] != 0

    @property
    def dt_s(self) -> npt.NDArray[np.float64]:
        """Pool time the last step took [P]."""
        return self.buffers.clocks["dt_s"]

    def observation(self, p: int | slice) -> Observation:
        """A copy of what pool p (or a slice of pools) shows."""
        buffers = self.buffers
        return {
            "rows": buffers.rows[p].copy(),
            "instance": buffers.instance[p].copy(),
            "globals": buffers.globals[p].copy(),
            "action_mask": buffers.mask[p].astype(np.int8),
        }
