"""A batch of emulated pools: the one core behind the single, vector and SB3 faces."""

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from math import inf
from typing import Any

import numpy as np
import numpy.typing as npt
from gymnasium import spaces
from gymnasium.utils.seeding import np_random

from envs.episode import sample
from envs.scenario import ScenarioSpec
from envs.stepping import Buffers, count_from_here, new_buffers, resume, start, step_pools
from runtime.core import NS
from runtime.emulator.loop import Signal
from runtime.emulator.tables import Sim, grow_slots
from runtime.errors import UserError
from runtime.pool.features import HIGH, LOW, F, I
from runtime.tables import LINE_BYTES

QUOTAS_S = (0.1, 0.4)
ROWS = 32
DRAWS = 1000  # windows to try for one with a decision
SPARE = 1.5  # memory held for a pool, over what its first episode takes
NOT_STATE = ("_parts", "_workers", "_memory")
Scenario = ScenarioSpec | Mapping[str, Any] | str  # or its JSON, or a name in conf/scenario
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
    """P pools, each in an episode of its own. Pool p draws scenarios from its own stream.

    `threads` > 1 shares a step's pools out over as many; what comes out does not depend on it.
    Copies and pickles go on exactly as the original would.
    """

    def __init__(
        self,
        scenario: Scenario,
        count: int,
        *,
        rows: int = ROWS,
        quotas_s: Sequence[float] = QUOTAS_S,
        threads: int = 1,
    ) -> None:
        self.scenario = ScenarioSpec.from_json(scenario)
        self.count, self.rows = count, rows
        self.quotas_s, self.threads = tuple(quotas_s), threads
        for name, value in (("num_envs", count), ("rows", rows), ("threads", threads)):
            if value < 1:
                raise UserError(f"{name}={value}: expected 1 or more")
        if not self.quotas_s or not all(0 < q < inf for q in self.quotas_s):
            raise UserError(f"quotas_s={self.quotas_s}: expected one or more, each over 0 s")
        self._reward_per_miss = -1.0 / self.scenario.deadline_rate
        self.buffers: Buffers = new_buffers(count, rows, self.quotas_s)
        self.buffers.clocks["is_over"] = 1  # until the first reset
        self.sims: list[Sim | None] = [None] * count
        self.rngs = [np.random.default_rng() for _ in range(count)]
        self._start_parts()

    def _start_parts(self) -> None:
        """Who steps which pools, and the memory they lie in; neither is state."""
        edges = np.linspace(0, self.count, min(self.threads, self.count) + 1).astype(int).tolist()
        self._parts = list(pairwise(edges))
        self._workers = ThreadPoolExecutor(len(edges) - 1) if len(edges) > 2 else None
        self._memory: npt.NDArray[np.uint8] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name not in NOT_STATE}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._start_parts()
        for p, sim in enumerate(self.sims):
            if sim is not None:
                self._place(p, sim)

    @property
    def idle_action(self) -> int:
        return self.rows * len(self.quotas_s)

    def seed(self, p: int, seed: int) -> None:
        """Pool p's episodes follow from `seed` from its next reset on."""
        self.rngs[p], _ = np_random(seed)

    def reset(self, p: int) -> None:
        """Draw a new episode for pool p; one that is over before its first decision is redrawn.

        Raises UserError when that goes on: the scenario has next to no requests.
        """
        for _ in range(DRAWS):
            sim = sample(self.scenario, self.rngs[p])
            self._place(p, sim)
            start(self.buffers, p, sim)
            self._grow(p)
            if not self.buffers.clocks["is_over"][p]:
                count_from_here(self.buffers, p)
                self.buffers.clocks["dt_s"][p] = 0.0
                return
        raise UserError(
            f"trace {self.scenario.name}: none of {DRAWS} windows has a decision to take:"
            " expected more requests, or longer episodes"
        )

    def _place(self, p: int, sim: Sim) -> None:
        """Pool p plays `sim`. Its tables move into one block of memory with all others', which
        saves the processor most of its look-ups of addresses; what is too large stays outside."""
        if self._memory is None:
            size = round(SPARE * sim.packed_bytes) // LINE_BYTES * LINE_BYTES
            memory = np.zeros(self.count * size + LINE_BYTES, np.uint8)
            begin = -memory.ctypes.data % LINE_BYTES
            self._memory = memory[begin : begin + self.count * size].reshape(self.count, size)
        if sim.packed_bytes <= self._memory.shape[1]:
            sim.pack(self._memory[p])
        self.sims[p] = sim
        self.buffers.addresses[p] = sim.address

    def turn_over(self) -> None:
        """Go on in the other half of the buffers, with what the present one shows."""
        buffers, now = self.buffers, int(self.buffers.half[0])
        for values in (buffers.rows, buffers.instance, buffers.globals, buffers.mask, buffers.used):
            halves = values.reshape(2, self.count, -1)
            halves[1 - now] = halves[now]
        buffers.half[0] = 1 - now

    def step(self, actions: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
        """Act in all pools that are not over; returns rewards [P], 0 of those. Raises UserError."""
        if actions.shape != (self.count,) or not self._are_actions(actions):
            raise UserError(
                f"actions {actions!r}: expected {self.count} from 0 to {self.idle_action}"
            )
        buffers = self.buffers
        buffers.half[0] ^= 1
        if self._workers is None:
            step_pools(buffers, actions, 0, self.count)
        else:
            list(self._workers.map(lambda part: step_pools(buffers, actions, *part), self._parts))
        for p in np.flatnonzero(buffers.clocks["signal"] == Signal.SLOTS_FULL):
            self._grow(int(p))
        return buffers.missed * self._reward_per_miss

    def _are_actions(self, actions: npt.NDArray[np.int64]) -> bool:
        return bool(actions.min() >= 0 and actions.max() <= self.idle_action)

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
        """Pool time the last step took [P]; 0 after a reset."""
        return self.buffers.clocks["dt_s"].copy()

    @property
    def now_s(self) -> npt.NDArray[np.float64]:
        """Pool time since the start of the warm-up [P]."""
        return self.buffers.clocks["now_ns"] / NS

    @property
    def mask(self) -> npt.NDArray[np.bool_]:
        """Allowed actions [P, K*Q+1]: a view that stands until the step after the next."""
        first = int(self.buffers.half[0]) * self.count
        return self.buffers.mask[first : first + self.count]

    def observation(self, p: int | slice, *, copy: bool = True) -> Observation:
        """What pool p (or a slice of pools) shows: a copy, or a view that stands until the step
        after the next."""
        buffers, first = self.buffers, int(self.buffers.half[0]) * self.count
        shown: dict[str, npt.NDArray[Any]] = {
            "rows": buffers.rows,
            "instance": buffers.instance,
            "globals": buffers.globals,
            "action_mask": buffers.mask.view(np.int8),
        }
        return {
            name: values[first : first + self.count][p].copy()
            if copy
            else values[first : first + self.count][p]
            for name, values in shown.items()
        }
