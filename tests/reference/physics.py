"""What things weigh and how long they take, as docs/physics.md has it."""

import math
from itertools import pairwise

from reference.nouns import (
    Cost,
    Instance,
    Request,
)
from runtime.core import (
    KvPlace,
    ModelSpec,
    PoolSpec,
)


def step_end_ns(x: float, y: float, j: int) -> int:
    return round((x * j + y * (0.5 * j * (j - 1))) * 1e9)


def hashed(*words: int) -> int:
    """64 bits from splitmix64, chained over the words."""
    state = 0
    for word in words:
        state = ((state ^ word) + 0x9E3779B97F4A7C15) % 2**64
        for shift, multiplier in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
            state = (state ^ (state >> shift)) * multiplier % 2**64
        state ^= state >> 31
    return state


def uniform(*words: int) -> float:
    return ((hashed(*words) >> 11) + 0.5) / 2**53


class Physics:
    """Bytes and seconds; nothing here changes anything, but that draws of noise are counted."""

    def __init__(
        self, spec: PoolSpec, models: tuple[ModelSpec, ...], costs: tuple[Cost, ...]
    ) -> None:
        self.spec, self.models, self.costs = spec, models, costs

    def _capacity(self, m: int) -> int:
        is_reserved = self.spec.slots_reserved or self.spec.weight_budget_bytes > 0
        weights = self._weight_budget if is_reserved else self.models[m].weight_bytes
        return int(self.spec.kv_fraction * (self.spec.tp * self.spec.vram_bytes - weights))

    @property
    def _weight_budget(self) -> int:
        """Bytes that the models resident on one instance may have."""
        budget = self.spec.tp * self.spec.weight_budget_bytes
        return budget or self.spec.weight_slots * max(m.weight_bytes for m in self.models)

    @property
    def _h2d(self) -> float:
        return self.spec.tp * self.spec.h2d_bytes_s

    def _kv_in_s(self, moved: int, far: int) -> float:
        """`far` of the bytes come from another node."""
        seconds = (moved - far) / self._h2d
        return seconds + far / min(self._h2d, self.spec.network_bytes_s) if far else seconds

    def _kv_in_ns(self, inst: Instance, seconds: float) -> int:
        quantum = self.spec.step_quantum_s
        if self.spec.kv_reload_every_turn and inst.decoded_ns > 0:
            return 0  # paid at the turn's start
        if quantum > 0:
            seconds = math.floor(seconds / quantum + 1e-9) * quantum
        return math.ceil(seconds * 1e9 - 1e-3)

    def _kv_out_ns(self, moved: int) -> int:
        seconds = moved / (self.spec.tp * self.spec.d2h_bytes_s)
        return 0 if self.spec.kv_out_free else math.ceil(seconds * 1e9)

    def _bytes(self, m: int, tokens: int) -> int:
        blocks = math.ceil(tokens / self.spec.block_tokens)
        return blocks * self.spec.block_tokens * self.models[m].kv_token_bytes

    def _kv(self, r: Request) -> int:
        return self._bytes(r.model, r.context)

    def _need(self, r: Request) -> int:
        """What must be free before a turn takes r."""
        return self._bytes(r.model, r.context + max(1, self.spec.lookahead_tokens))

    def _claim_bytes(self, r: Request) -> int:
        """What r, in a turn, will hold before its next decode step."""
        return self._kv(r) if r.kv == KvPlace.MOVING_IN else self._bytes(r.model, r.context + 1)

    def _growth(self, members: list[Request], steps: int) -> int:
        return sum(self._bytes(r.model, r.context + steps) - self._kv(r) for r in members)

    def _moved_bytes(self, r: Request) -> int:
        per_token = self.spec.kv_move_token_bytes
        return r.context * per_token if per_token > 0 else self._kv(r)

    def _prompt_s(self, cost: Cost, tokens: float) -> float:
        if cost.prefill_token2 < 0:
            tokens = min(tokens, -0.5 * cost.prefill_token / cost.prefill_token2)
        return cost.prefill_token * tokens + cost.prefill_token2 * tokens * tokens

    def _part_s(self, cost: Cost, start: int, end: int) -> float:
        return self._prompt_s(cost, float(end)) - self._prompt_s(cost, float(start))

    def _step_s(self, cost: Cost, context: int, batch: int) -> float:
        seconds = cost.decode + self.spec.step_overhead_s + cost.decode_context * context
        if not cost.table:
            return seconds + cost.decode_batch * batch
        pairs = list(pairwise(cost.table))
        (low, low_s), (high, high_s) = next((p for p in pairs if batch <= p[1][0]), pairs[-1])
        return seconds + (low_s + (batch - low) / (high - low) * (high_s - low_s))

    def _truncated(self, seconds: float) -> float:
        quantum = self.spec.step_quantum_s
        if quantum <= 0:
            return seconds
        return max(1.0, math.floor(seconds / quantum + 1e-9)) * quantum

    def _noise(self, inst: Instance) -> float:
        inst.draws += 1
        if self.spec.noise <= 0:
            return 1.0
        s2, seed = math.log(1.0 + self.spec.noise**2), self.spec.seed
        u, v = (uniform(seed, inst.index, 2 * inst.draws + i) for i in (0, 1))
        z = math.sqrt(-2.0 * math.log(u)) * math.cos(2.0 * math.pi * v)
        return math.exp(math.sqrt(s2) * z - 0.5 * s2)
