"""A batch of emulated pools: the one core behind the single, vector and SB3 faces."""

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
from gymnasium import spaces
from gymnasium.utils.seeding import np_random

from envs.arguments import actions_of, count_of, flag_of, quotas_of
from envs.episode import Episode, begin, draw
from envs.observation import describe_observation
from envs.privileged import HIGH as FUTURE_HIGH
from envs.privileged import H, W, privileged_of_pools
from envs.scenario import ScenarioSpec
from envs.stepping import Buffers, count_from_here, new_buffers, resume, start, step_pools
from runtime.core import NS
from runtime.emulator.loop import Signal
from runtime.emulator.tables import Sim, grow_journal, grow_slots
from runtime.errors import UserError
from runtime.pool.features import HIGH, LOW, F, I
from runtime.tables import LINE_BYTES

QUOTAS_S = (0.1, 0.4)
ROWS = 32
DRAWS = 1000  # windows to try for one with a decision
JOURNAL_ROWS = 1 << 14  # of a recorded pool at first
FULL = (Signal.SLOTS_FULL, Signal.JOURNAL_FULL)
SPARE = 1.5  # memory held for a pool, over what its first episode takes
NOT_STATE = ("_parts", "_workers", "_memory")
Scenario = ScenarioSpec | Mapping[str, Any] | str  # or its JSON, or a name in conf/scenario
Observation = dict[str, npt.NDArray[np.float32] | npt.NDArray[np.int8]]


def observation_space(rows: int, levels: int, *, privileged: bool = False) -> spaces.Dict:
    """rows [K * F] (flat, as SB3 wants; `reshape(K, F)`), instance [I], globals [C], action_mask
    [K * Q + 1], and where asked for privileged [K * H + W]; clipped as features say."""
    parts: dict[str, spaces.Space[Any]] = {
        "rows": spaces.Box(np.tile(LOW[:F], rows), np.tile(HIGH[:F], rows)),
        "instance": spaces.Box(LOW[F : F + I], HIGH[F : F + I]),
        "globals": spaces.Box(LOW[F + I :], HIGH[F + I :]),
        "action_mask": spaces.MultiBinary(rows * levels + 1),
    }
    if privileged:
        high = np.tile(FUTURE_HIGH, rows + 1)
        parts["privileged"] = spaces.Box(np.zeros_like(high), high)
    return spaces.Dict(parts)


class Pools:
    """P pools, each in an episode of its own. Pool p draws scenarios from its own stream.

    `threads` > 1 shares a step's pools out over as many; what comes out does not depend on it.
    `privileged` adds what only a critic may see (envs.privileged); `is_recorded` keeps journals, to
    look at pools by. Copies and pickles go on exactly as the original would.
    """

    def __init__(
        self,
        scenario: Scenario,
        count: int,
        *,
        rows: int = ROWS,
        quotas_s: Sequence[float] = QUOTAS_S,
        threads: int = 1,
        privileged: bool = False,
        is_recorded: bool = False,
    ) -> None:
        self.scenario = ScenarioSpec.from_json(scenario)
        self.count, self.rows = count_of("num_envs", count), count_of("rows", rows)
        self.quotas_s, self.threads = quotas_of(quotas_s), count_of("threads", threads)
        self._reward_per_miss = -1.0 / self.scenario.deadline_rate
        self.buffers: Buffers = new_buffers(self.count, self.rows, self.quotas_s)
        self.buffers.clocks["is_over"] = 1  # until the first reset
        self.sims: list[Sim | None] = [None] * self.count
        self.episodes: list[Episode | None] = [None] * self.count
        self.journal_rows = JOURNAL_ROWS if is_recorded else 0
        self.future: npt.NDArray[np.float32] | None = None
        if flag_of("privileged", privileged):
            self.future = np.zeros((self.count, self.rows * H + W), np.float32)
            self._row_of = np.zeros(max(len(t.models) for t in self.scenario.opened), np.int64)
        self.rngs = [np.random.default_rng() for _ in range(self.count)]
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
            episode = draw(self.scenario, self.rngs[p])
            sim = begin(self.scenario, episode, journal_rows=self.journal_rows)
            self.episodes[p] = episode
            self._place(p, sim)
            start(self.buffers, p, sim)
            self._grow(p)
            if not self.buffers.clocks["is_over"][p]:
                count_from_here(self.buffers, p)
                self.buffers.clocks["dt_s"][p] = 0.0
                self._foresee(p, p + 1)
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

    def step(self, actions: npt.ArrayLike) -> npt.NDArray[np.float64]:
        """Act in all pools that are not over; returns rewards [P], 0 of those. Raises UserError."""
        chosen = actions_of(actions, self.count, self.idle_action)
        buffers = self.buffers
        buffers.half[0] ^= 1
        if self._workers is None:
            step_pools(buffers, chosen, 0, self.count)
        else:
            list(self._workers.map(lambda part: step_pools(buffers, chosen, *part), self._parts))
        for p in np.flatnonzero(np.isin(buffers.clocks["signal"], FULL)):
            self._grow(int(p))
        self._foresee(0, self.count)
        return buffers.missed * self._reward_per_miss

    def _grow(self, p: int) -> None:
        while (signal := self.buffers.clocks["signal"][p]) in FULL:
            sim = self.sims[p]
            assert sim is not None
            grow = grow_slots if signal == Signal.SLOTS_FULL else grow_journal
            grow(sim)
            resume(self.buffers, p)

    def _foresee(self, first: int, end: int) -> None:
        """What the critic may know of pools first..end-1 at their present decisions."""
        if self.future is not None:
            shown = self.buffers.addresses, self.buffers.models
            privileged_of_pools(*shown, first, end, self._row_of, self.future)

    def describe_observation(self) -> str:
        """Every number of an observation: name, unit, scale, clips, meaning."""
        privileged = self.future is not None
        return describe_observation(self.rows, self.quotas_s, privileged=privileged)

    def weigh_levels(self, weights: Sequence[float]) -> None:
        """How often each level of the scenario is drawn from the next resets on."""
        self.scenario = replace(self.scenario, level_weights=tuple(map(float, weights)))

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
        found = {
            name: values[first : first + self.count][p].copy()
            if copy
            else values[first : first + self.count][p]
            for name, values in shown.items()
        }
        return found if self.future is None else found | {"privileged": self.future[p].copy()}
