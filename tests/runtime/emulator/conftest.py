"""Small worlds with round numbers: a flat profile, a pool, traces from rows, a scripted policy."""

import json
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from runtime.core import DecisionKind, EventKind, PoolSpec, PrefetchMode
from runtime.emulator.loop import Signal, advance, answer
from runtime.emulator.profile import SCHEMA
from runtime.pool.state import State
from traces import Trace, TraceKind

CHECKPOINT = "sosp25/Qwen2.5-7B"  # 14 GB: one second over a link of 14 GB/s
COSTS = {
    "prefill_s": 0.01,
    "prefill_token_s": 1e-5,
    "prefill_token2_s": 0.0,
    "decode_s": 0.01,
    "decode_context_s": 1e-6,
    "decode_batch_s": 1e-4,
}


class Script:
    """A policy that answers its n-th TURN with turns[n] = (model, quota_s), likewise PREFETCH.

    None: it idles, or prefetches nothing; so it does without an answer left.
    """

    name = "script"

    def __init__(self, turns: Iterable[Any] = (), prefetches: Iterable[Any] = ()) -> None:
        self.turns, self.prefetches = tuple(turns), tuple(prefetches)

    def configure(self, pool: PoolSpec) -> PoolSpec:
        mode = PrefetchMode.CAUSAL if self.prefetches else PrefetchMode.NONE
        return replace(pool, prefetch=mode)

    def memory(self, state: State) -> dict[int, Any]:
        return {
            DecisionKind.TURN.value: iter(self.turns),
            DecisionKind.PREFETCH.value: iter(self.prefetches),
        }

    def decide(self, state: State, kind: int, index: int, event: Any, memory: Any) -> None:
        following = next(memory[kind], None)
        if following is None:
            return
        if kind == DecisionKind.PREFETCH:
            event["model"] = following
        else:
            event["kind"] = EventKind.TURN
            event["model"], event["quota_ns"] = following[0], round(following[1] * 1e9)

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
def script() -> type[Script]:
    return Script


@pytest.fixture
def flat_pool(tmp_path: Path) -> Callable[..., PoolSpec]:
    """One instance by default; every link at 14 GB/s, KV of 1 MB a token, no look-ahead."""
    path = tmp_path / "flat.json"
    models = {CHECKPOINT: COSTS}
    path.write_text(
        json.dumps(
            {
                "schema": SCHEMA,
                "name": "flat",
                "gpu": "none",
                "kind": "derived",
                "source": "a test",
                "models": models,
            }
        )
    )

    def make(**changes: Any) -> PoolSpec:
        plain: dict[str, Any] = {
            "name": "flat",
            "profile": str(path),
            "checkpoints": (CHECKPOINT,),
            "instances_per_node": 1,
            "slots_reserved": False,
            "h2d_bytes_s": 14e9,
            "d2h_bytes_s": 1e9,
            "network_bytes_s": 1e9,
            "kv_move_token_bytes": 1_000_000,
            "block_tokens": 1,
            "lookahead_tokens": 0,
        }
        return PoolSpec(**(plain | changes))

    return make


@pytest.fixture(scope="session")
def trace_of() -> Callable[..., Trace]:
    """A trace from rows (arrival_s, model, prompt_tokens, output_tokens)."""

    def make(*rows: tuple[float, int, int, int], models: int | None = None) -> Trace:
        arrival, model, prompt, output = zip(*rows, strict=True)
        names = tuple(f"m{i}" for i in range(models or max(model) + 1))
        return Trace(
            name="rows",
            kind=TraceKind.SYNTHETIC,
            models=names,
            model=np.array(model, np.int32),
            arrival_s=np.array(arrival, np.float64),
            prompt_tokens=np.array(prompt, np.int32),
            output_tokens=np.array(output, np.int32),
        )

    return make


@pytest.fixture(scope="session")
def timeline() -> Callable[[Any], list[tuple[str, int, int]]]:
    """A journal as (kind, time in ns, instance), without the policy's answers."""
    answers = (EventKind.TURN, EventKind.IDLE, EventKind.PREFETCH)

    def read(journal: Any) -> list[tuple[str, int, int]]:
        return [
            (EventKind(row["kind"]).name, int(row["time_ns"]), int(row["instance"]))
            for row in journal
            if row["kind"] not in answers
        ]

    return read


@pytest.fixture(scope="session")
def burst() -> Trace:
    """Sixty requests of five models within six seconds."""
    rng = np.random.default_rng(7)
    n = 60
    return Trace(
        name="burst",
        kind=TraceKind.SYNTHETIC,
        models=tuple(f"m{i}" for i in range(5)),
        model=rng.integers(0, 5, n).astype(np.int32),
        arrival_s=np.sort(rng.uniform(0, 6, n)),
        prompt_tokens=rng.integers(1, 800, n).astype(np.int32),
        output_tokens=rng.integers(1, 120, n).astype(np.int32),
    )


@pytest.fixture(scope="session")
def h100x4() -> PoolSpec:
    sizes = ("Qwen2.5-7B", "Yi-1.5-9B", "Llama-2-13B")
    return PoolSpec(name="h100x4", profile="h100", checkpoints=sizes, instances_per_node=4)
