"""Small pools with a flat profile, traces from rows, and a spy on a policy's decisions."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from runtime.core import PoolSpec
from runtime.emulator.loop import Signal, advance, answer
from runtime.emulator.profile import SCHEMA
from runtime.pool.state import State
from traces import Trace, TraceKind

CHECKPOINT = "sosp25/Qwen2.5-7B"  # 14 GB, loaded in one second
COSTS = {
    "prefill_s": 0.01,
    "prefill_token_s": 1e-5,
    "prefill_token2_s": 0.0,
    "decode_s": 0.01,
    "decode_context_s": 1e-6,
    "decode_batch_s": 1e-4,
}


class Spy:
    """A policy that shows each of its decisions to `look(state, kind, index, event, memory)`."""

    def __init__(self, policy: Any, look: Callable[..., None]) -> None:
        self.policy, self.look, self.name = policy, look, policy.name

    def configure(self, pool: PoolSpec) -> PoolSpec:
        return self.policy.configure(pool)

    def memory(self, state: State) -> Any:
        return self.policy.memory(state)

    def decide(self, state: State, kind: int, index: int, event: Any, memory: Any) -> None:
        self.policy.decide(state, kind, index, event, memory)
        self.look(state, kind, index, event, memory)

    def drive(self, sim: Any, memory: Any) -> int:
        signal = advance(sim)
        while signal == Signal.DECISION:
            control = sim.control[0]
            kind, index = int(control["decision_kind"]), int(control["decision_index"])
            self.decide(sim.state, kind, index, sim.event[0], memory)
            answer(sim)
            signal = advance(sim)
        return int(signal)


@pytest.fixture(scope="session")
def spy() -> type[Spy]:
    return Spy


@pytest.fixture
def flat_pool(tmp_path: Path) -> Callable[..., PoolSpec]:
    """`instances` on one node; a load takes 1 s, KV moves are nearly free."""
    path = tmp_path / "flat.json"
    facts = {"schema": SCHEMA, "name": "flat", "gpu": "none", "kind": "derived", "source": "a test"}
    path.write_text(json.dumps(facts | {"models": {CHECKPOINT: COSTS}}))

    def make(instances: int, **changes: Any) -> PoolSpec:
        plain: dict[str, Any] = {
            "name": "flat",
            "profile": str(path),
            "checkpoints": (CHECKPOINT,),
            "instances_per_node": instances,
            "slots_reserved": False,
            "h2d_bytes_s": 14e9,
            "kv_out_free": True,
            "kv_move_token_bytes": 1,
            "block_tokens": 1,
            "lookahead_tokens": 0,
        }
        return PoolSpec(**(plain | changes))

    return make


@pytest.fixture(scope="session")
def trace_of() -> Callable[..., Trace]:
    """A trace from rows (arrival_s, model, prompt_tokens, output_tokens)."""

    def make(*rows: tuple[float, int, int, int]) -> Trace:
        arrival, model, prompt, output = zip(*rows, strict=True)
        return Trace(
            name="rows",
            kind=TraceKind.SYNTHETIC,
            models=tuple(f"m{i}" for i in range(max(model) + 1)),
            model=np.array(model, np.int32),
            arrival_s=np.array(arrival, np.float64),
            prompt_tokens=np.array(prompt, np.int32),
            output_tokens=np.array(output, np.int32),
        )

    return make


@pytest.fixture(scope="session")
def burst() -> Trace:
    """Eighty requests of six models within eight seconds."""
    rng = np.random.default_rng(11)
    n = 80
    return Trace(
        name="burst",
        kind=TraceKind.SYNTHETIC,
        models=tuple(f"m{i}" for i in range(6)),
        model=rng.integers(0, 6, n).astype(np.int32),
        arrival_s=np.sort(rng.uniform(0, 8, n)),
        prompt_tokens=rng.integers(1, 900, n).astype(np.int32),
        output_tokens=rng.integers(1, 150, n).astype(np.int32),
    )
