"""A pool driven by hand: a test gives the events, and every transition is checked."""

from typing import Any

import numpy as np
import pytest

from runtime.core import (
    NONE,
    NS,
    Command,
    DecisionKind,
    EventKind,
    ModelSpec,
    PoolSpec,
    RequestPhase,
    SloSpec,
    Stage,
)
from runtime.pool.candidates import ROWS, fill_rows, next_decision, pose
from runtime.pool.initial import new_state
from runtime.pool.integrity import check_integrity
from runtime.pool.state import COST, EVENT, grow_requests
from runtime.pool.transitions import Outcome, apply, release

BLOCK = 4  # tokens
TOKEN_BYTES = 10
COSTS = {"prefill_s": 0.01, "prefill_token_s": 0.001, "decode_s": 0.01}

TABLES = (
    "requests", "models", "instances", "slots", "nodes", "links", "hosted", "lists", "outbox",
    "pool",
)  # fmt: skip


def spec_of(**changes: Any) -> PoolSpec:
    """One instance, 1000 bytes of KV (25 blocks of 40) beside two weight slots of 100 bytes."""
    plain: dict[str, Any] = {
        "name": "hand", "profile": "none", "checkpoints": ("none",), "instances_per_node": 1,
        "vram_bytes": 1200, "kv_fraction": 1.0, "block_tokens": BLOCK, "lookahead_tokens": 0,
        "h2d_bytes_s": 100.0, "d2h_bytes_s": 100.0, "disk_bytes_s": 50.0, "network_bytes_s": 10.0,
        "host_weight_bytes": 10_000, "host_kv_bytes": 10_000,
    }  # fmt: skip
    return PoolSpec(**(plain | changes))


class HandPool:
    """The driver's contract in its plainest form; the journal is all it ever told the core."""

    def __init__(
        self,
        *,
        weights: tuple[int, ...] = (100, 100),
        capacity: int = 16,
        slo: SloSpec | None = None,
        **changes: Any,
    ) -> None:
        self.make = (weights, capacity, slo or SloSpec(ttft_s=1.0, tbt_s=0.1), changes)
        self.state = self.fresh_state()
        self.event = np.zeros(1, EVENT)
        self.journal: list[bytes | str] = []
        self.commands: list[tuple[Command, int]] = []  # drained so far
        self.ended: list[tuple[int, RequestPhase]] = []  # (id, phase) of released requests
        self.next_id = 0
        check_integrity(self.state)

    def fresh_state(self) -> Any:
        weights, capacity, slo, changes = self.make
        models = tuple(
            ModelSpec(name=str(m), checkpoint="none", weight_bytes=w, kv_token_bytes=TOKEN_BYTES)
            for m, w in enumerate(weights)
        )
        costs = np.zeros((1, len(models)), COST)
        for column, seconds in COSTS.items():
            costs[column] = seconds
        slos = (slo,) * len(models)
        return new_state(spec_of(**changes), models, slos, costs, capacity=capacity)

    def apply(self, kind: EventKind, **fields: Any) -> Outcome:
        """One event at the pool's present time, or at `at_s`; then the laws are checked."""
        event = self.event[0]
        plain = {"tag": NONE, "instance": NONE, "model": NONE, "request": NONE, "id": NONE}
        at_s = fields.pop("at_s", None)
        now_ns = int(self.state.pool["now_ns"][0])
        plain |= {"n": 0, "quota_ns": 1 << 62, "phases": 3, "joins": 1, "x": 0.0, "y": 0.0}
        plain |= {"time_ns": now_ns if at_s is None else round(at_s * NS), "is_fallback": 0}
        plain["goes_on"] = 0
        for name, value in (plain | {"kind": kind} | fields).items():
            event[name] = value
        return self.apply_record(self.event)

    def apply_record(self, event: Any) -> Outcome:
        assert event["instance"][0] < len(self.state.instances), "kernels do not check indices"
        assert event["model"][0] < len(self.state.models), "kernels do not check indices"
        before = self.image() if event["kind"][0] in REFUSABLE else None
        outcome = Outcome(apply(self.state, event[0]))
        if outcome == Outcome.OK:
            self.journal.append(event.tobytes())
        elif before is not None:
            assert self.image() == before, f"a {outcome.name} event changed the state"
        check_integrity(self.state)
        return outcome

    def image(self) -> dict[str, bytes]:
        """All tables as bytes, the clock apart."""
        image = {name: getattr(self.state, name) for name in TABLES}
        image["pool"] = image["pool"].copy()
        image["pool"]["now_ns"] = 0
        return {name: table.tobytes() for name, table in image.items()}

    def drain(self) -> list[tuple[Command, int]]:
        """Take the commands; ended requests are released."""
        new = [
            (Command(kind), int(index))
            for kind, index in self.state.outbox[: self.state.pool["commands"][0]]
        ]
        self.state.pool["commands"] = 0
        for command, index in new:
            if command == Command.RETIRE:
                req = self.state.requests[index]
                self.ended.append((int(req["id"]), RequestPhase(int(req["phase"]))))
                release(self.state, index)
        self.journal.append("drain")
        self.commands += new
        check_integrity(self.state)
        return new

    def decision(self) -> tuple[DecisionKind, int]:
        kind, index = next_decision(self.state)
        self.journal.append("ask")
        check_integrity(self.state)
        return DecisionKind(kind), int(index)

    def posed(self, kind: int, index: int) -> Any:
        """The plainest answer, as an EVENT table of one row."""
        pose(self.state, kind, index, self.event[0])
        return self.event.copy()

    def rows(self, kind: int, g: int, k: int = ROWS) -> tuple[list[int], int]:
        """Candidate models and overflow."""
        rows = np.full(k, NONE, np.int64)
        count, overflow = fill_rows(self.state, kind, g, rows)
        return rows[:count].tolist(), int(overflow)

    def arrive(self, model: int, prompt: int = 4, **fields: Any) -> int:
        """Admit a request; returns its slot. A full table grows first."""
        if self.state.pool["free_head"][0] == NONE:
            grow_requests(self.state)
            self.journal.append("grow")
        slot = int(self.state.pool["free_head"][0])
        self.apply(EventKind.ARRIVAL, id=self.next_id, model=model, n=prompt, **fields)
        self.next_id += 1
        return slot

    def turn(self, g: int, model: int, **fields: Any) -> Outcome:
        return self.apply(EventKind.TURN, instance=g, model=model, **fields)

    def start(self, g: int, model: int, **fields: Any) -> None:
        """A turn with its weights in place."""
        assert self.turn(g, model, **fields) == Outcome.OK
        if self.inst(g)["loading_slot"] != NONE:
            self.apply(EventKind.WEIGHTS_READY, instance=g)
        self.apply(EventKind.SWITCHED, instance=g)

    def prefill(self, g: int, n: int = 1, seconds: float = 0.01) -> None:
        at_s = self.now_s + seconds
        self.apply(EventKind.PREFILLED, instance=g, n=n, x=seconds, at_s=at_s)

    def steps(self, g: int, n: int, seconds: float = 0.01) -> None:
        at_s = self.now_s + n * seconds
        self.apply(EventKind.STEPS, instance=g, n=n, x=seconds, at_s=at_s)

    def serve(self, g: int, model: int) -> None:
        """A whole turn that prefills what waits and then stops."""
        self.start(g, model, quota_ns=0)
        if self.stage(g) == Stage.KV_IN:
            self.apply(EventKind.KV_IN_DONE, instance=g, n=self.size(g, 2))
        while self.stage(g) == Stage.PREFILL:
            self.prefill(g)
        self.apply(EventKind.TURN_ENDED, instance=g)

    @property
    def now_s(self) -> float:
        return float(self.state.pool["now_ns"][0]) / NS

    def req(self, r: int) -> Any:
        return self.state.requests[r]

    def inst(self, g: int = 0) -> Any:
        return self.state.instances[g]

    def stage(self, g: int = 0) -> Stage:
        return Stage(int(self.inst(g)["stage"]))

    def members(self, lst: int) -> list[int]:
        """Slots in a list, in order."""
        found, r = [], int(self.state.lists["head"][lst])
        while r != NONE:
            found.append(r)
            r = int(self.state.requests["next"][r])
        return found

    def waiting(self, m: int) -> list[int]:
        return self.members(m)

    def ready(self, m: int) -> list[int]:
        return self.members(len(self.state.models) + m)

    def owned(self, g: int, which: int) -> list[int]:
        """Members of one of g's lists: prefill 0, batch 1, incoming 2, outgoing 3."""
        return self.members(2 * len(self.state.models) + 4 * g + which)

    def size(self, g: int, which: int) -> int:
        return len(self.owned(g, which))

    def routing(self) -> list[int]:
        return self.members(len(self.state.lists) - 1)

    def replay(self) -> Any:
        """The journal on a fresh state: the state it leads to."""
        state = self.fresh_state()
        for entry in self.journal:
            if entry == "drain":
                for kind, index in state.outbox[: state.pool["commands"][0]].tolist():
                    if kind == Command.RETIRE:
                        release(state, index)
                state.pool["commands"] = 0
            elif entry == "ask":
                next_decision(state)
            elif entry == "grow":
                grow_requests(state)
            else:
                apply(state, np.frombuffer(entry, EVENT)[0])
        return state


REFUSABLE = (
    EventKind.TURN, EventKind.IDLE, EventKind.PREFETCH, EventKind.ROUTE, EventKind.CANCEL,
    EventKind.EXPIRE, EventKind.FINISHED, EventKind.INSTANCE_FAILED, EventKind.INSTANCE_JOINED,
    EventKind.ARRIVAL, EventKind.INTERRUPT,
)  # fmt: skip


@pytest.fixture(scope="session")
def hand_pool() -> type[HandPool]:
    return HandPool
