"""Snapshots of an emulated pool as the page would have asked for them: real data, no service."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from aegaeon_rl.policies.registry import make_policy
from runtime.catalog import assign_checkpoints
from runtime.core import NS, Command, PoolSpec, SloSpec
from runtime.emulator.profile import load_profile
from runtime.emulator.run import build_state, run
from runtime.pool.placement import preload
from runtime.pool.state import Record, State, Table, grow_requests
from runtime.pool.transitions import Outcome, apply, release
from runtime.service.messages import End
from runtime.service.recent import Recent
from runtime.service.snapshot_view import snapshot
from traces.market import MarketSpec, generate

POOL = PoolSpec(
    name="film",
    profile="h100",
    checkpoints=("Qwen2.5-7B", "Yi-1.5-9B", "Llama-2-13B"),
    instances_per_node=4,
    weight_slots=2,
)
STATUS = {
    "name": "index",
    "next": None,
    "is_up": True,
    "fallback": "index",
    "answers": {"policy": 9120, "late": 3, "invalid": 0},
    "restarts": 0,
    "last_error": None,
}


class Projector:
    """A pool that repeats a journal, and the Recent beside it."""

    def __init__(self, state: State) -> None:
        self.state, self.recent = state, Recent(state)

    def feed(self, event: Record) -> None:
        outcome = apply(self.state, event)
        if outcome == Outcome.TABLE_FULL:
            grow_requests(self.state)
            outcome = apply(self.state, event)
        assert outcome == Outcome.OK
        self.recent.on_event(event, "")
        commands = self.state.pool["commands"]
        for kind, slot in self.state.outbox[: int(commands[0])].tolist():
            if kind == Command.RETIRE:
                self.recent.on_end(None, self.state.requests[slot], End.LENGTH, 0)
                release(self.state, slot)
        commands[0] = 0


def recorded(
    instances: int, models: int, rate_rps: float, duration_s: float, seed: int = 1
) -> tuple[State, Table, list[str]]:
    """A fresh pool, the journal of a run on it, and the names of its models."""
    market = MarketSpec(
        name="film", models=models, duration_s=duration_s, rate_rps=rate_rps, seed=seed
    )
    trace, slo, policy = generate(market), SloSpec(), make_policy("index")
    pool = replace(POOL, instances_per_node=instances)
    done = run(trace, pool, policy, slo, journal=True)
    state = build_state(policy.configure(pool), trace.models, slo, load_profile(pool.profile))
    preload(state, done.placement)
    assert assign_checkpoints(trace.models, pool.checkpoints) == done.models
    return state, done.journal, list(trace.models)


def film(
    state: State, journal: Table, names: list[str], from_s: float, step_s: float = 0.5
) -> Iterator[dict[str, Any]]:
    """A snapshot each `step_s` from `from_s` on, while the journal lasts."""
    projector, at_ns = Projector(state), round(from_s * NS)
    decisions = 0
    for event in journal:
        while event["time_ns"] > at_ns:
            status = {**STATUS, "answers": {"policy": decisions, "late": decisions // 100}}
            yield snapshot(state, names, projector.recent, now_ns=at_ns, policy=status)
            at_ns += round(step_s * NS)
        projector.feed(event)
        decisions += int(event["kind"] >= 11 and event["kind"] <= 14)
