"""A small market on two GPUs, plans for it, and RESULT tables from rows."""

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import pytest

from aegaeon_rl.evaluation.compare import Comparison, Plan, compare
from aegaeon_rl.evaluation.spec import EvaluationSpec
from aegaeon_rl.policies.registry import make_policy
from runtime.core import NONE, NS, PoolSpec, RequestPhase, SloSpec
from runtime.emulator.tables import RESULT
from runtime.protocol import Policy
from traces import Trace, TraceKind
from traces.market import MarketSpec, generate


@pytest.fixture(scope="session")
def market() -> Trace:
    """About 390 requests of seven models within 120 seconds."""
    return generate(MarketSpec(name="market", models=8, duration_s=120.0, rate_rps=4.0, seed=1))


@pytest.fixture(scope="session")
def pool() -> PoolSpec:
    sizes = ("Qwen2.5-7B", "Yi-1.5-9B", "Llama-2-13B")
    return PoolSpec(name="pair", profile="h100", checkpoints=sizes, instances_per_node=2)


@pytest.fixture(scope="session")
def plan_of(market: Trace, pool: PoolSpec) -> Callable[..., Plan]:
    """A plan on the market, with two windows of 40 s where `spec` says nothing else."""

    def make(
        trace: Trace | None = None,
        *,
        on: PoolSpec | None = None,
        slo: SloSpec | None = None,
        seed: int = 0,
        **spec: Any,
    ) -> Plan:
        plain: dict[str, Any] = {
            "windows": 2, "window_s": 40.0, "warm_s": 5.0, "loads": (1.0,), "draws": 200,
        }  # fmt: skip
        return Plan(
            trace=trace or market,
            pool=on or pool,
            slo=slo or SloSpec(),
            spec=EvaluationSpec(**(plain | spec)),
            seed=seed,
        )

    return make


@pytest.fixture(scope="session")
def policies() -> list[Policy]:
    return [make_policy(name) for name in ("aegaeon", "serverlessllm", "index")]


@pytest.fixture(scope="session")
def comparison(plan_of: Callable[..., Plan], policies: list[Policy]) -> Comparison:
    return compare(plan_of(loads=(1.0, 2.0), gantt_s=10.0), policies)


@pytest.fixture(scope="session")
def trace_of() -> Callable[..., Trace]:
    """A trace from rows (arrival_s, model, prompt_tokens, output_tokens)."""

    def make(rows: Iterable[tuple[float, int, int, int]], name: str = "rows") -> Trace:
        arrival, model, prompt, output = zip(*rows, strict=True)
        return Trace(
            name=name,
            kind=TraceKind.SYNTHETIC,
            models=tuple(f"m{i}" for i in range(max(model) + 1)),
            model=np.array(model, np.int32),
            arrival_s=np.array(arrival, np.float64),
            prompt_tokens=np.array(prompt, np.int32),
            output_tokens=np.array(output, np.int32),
        )

    return make


@pytest.fixture(scope="session")
def results_of() -> Callable[..., Any]:
    """A RESULT table; each row says what differs from a request served in full, at once."""

    def make(*rows: dict[str, Any]) -> Any:
        table = np.zeros(len(rows), RESULT)
        for i, row in enumerate(rows):
            arrival_s, due = row.get("arrival_s", 0.0), row.get("due", 100)
            first_s = row.get("first_s", arrival_s)
            plain = {
                "model": row.get("model", 0),
                "arrival_ns": round(arrival_s * NS),
                "first_token_ns": NONE if first_s is None else round(first_s * NS),
                "last_token_ns": round(row.get("last_s", arrival_s) * NS),
                "stall_ns": round(row.get("stall_s", 0.0) * NS),
                "qos": row.get("qos", 1.0),
                "due_tokens": due,
                "on_time_tokens": row.get("on_time", due),
                "phase": row.get("phase", RequestPhase.DONE),
            }
            for column, value in plain.items():
                table[column][i] = value
        return table

    return make
