"""Random valid event sequences on small pools: the laws hold, nothing is stuck, replay is exact."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    precondition,
    rule,
    run_state_machine_as_test,
)

from runtime.core import (
    FOREVER_NS,
    NONE,
    NS,
    DecisionKind,
    Dispatch,
    EventKind,
    HostKvFull,
    KvPlace,
    Phases,
    PrefetchMode,
    RequestPhase,
    SlotState,
    Stage,
)
from runtime.pool.integrity import check_integrity
from runtime.pool.state import EVENT
from runtime.pool.transitions import Outcome

P, D, B = Phases.PREFILL, Phases.DECODE, Phases.BOTH
PREFILL, BATCH, INCOMING, OUTGOING = range(4)
LONGEST_RUN = 12  # steps
LIVE = (RequestPhase.WAITING, RequestPhase.READY, RequestPhase.RUNNING)

POOLS = st.fixed_dictionaries(
    {
        "roles": st.sampled_from([(), (), (P, D), (D, B), (P, B)]),
        "dispatch": st.sampled_from([Dispatch.PULL, Dispatch.PUSH, Dispatch.PULL]),
        "prefetch": st.sampled_from(PrefetchMode),
        "vram_bytes": st.sampled_from([440, 560, 700, 4000]),
        "host_kv_bytes": st.sampled_from([40, 200, 4000]),
        "host_weight_bytes": st.sampled_from([50, 150, 4000]),
        "weight_slots": st.sampled_from([1, 2, 3]),
        "weight_budget_bytes": st.sampled_from([0, 0, 100, 170]),
        "load_chunk_bytes": st.sampled_from([0, 30]),
        "kv_in_overlaps": st.booleans(),
        "host_kv_full": st.sampled_from(HostKvFull),
        "slots_reserved": st.booleans(),
        "lookahead_tokens": st.sampled_from([0, 6]),
        "kv_reload_every_turn": st.booleans(),
        "kv_stays": st.booleans(),
        "token_preempt": st.sampled_from([True, True, False]),
        "kv_survives_switch": st.sampled_from([True, True, False]),
        "priorities": st.booleans(),
        "prefill_chunk_tokens": st.sampled_from([0, 0, 5]),
        "max_wait_s": st.sampled_from([0.0, 0.2]),
        "max_queue": st.sampled_from([0, 3]),
        "interrupt_slack_s": st.sampled_from([0.0, 0.5, 9.0]),
    }
)
TOPOLOGIES = st.sampled_from(
    [
        {"nodes": 2, "instances_per_node": 1},
        {"nodes": 1, "instances_per_node": 2},
        {"nodes": 1, "instances_per_node": 2, "instances_per_port": 2},
    ]
)
RARE = st.sampled_from([False, False, True])


class Move(NamedTuple):
    """What happens (`what` of the possible), and how: a report's or an answer's details."""

    what: int
    n: int
    seconds: float
    ends: int
    pick: int
    phases: Phases
    quota_s: float
    tag: int
    joins: int


MOVES = st.builds(
    Move,
    what=st.integers(0, 59),
    n=st.sampled_from([1, 2, 5, 12, 12]),
    seconds=st.sampled_from([0.001, 0.0107, 0.15]),
    ends=st.sampled_from([0, 0, 0, 1, 5]),
    pick=st.integers(0, 9),
    phases=st.sampled_from([P, B, D, B]),
    quota_s=st.sampled_from([0.0, 0.02, 1e9, 1e9]),
    tag=st.sampled_from([NONE, NONE, NONE, 0, 1]),
    joins=st.sampled_from([0, 1, 1]),
)


class Machine(RuleBasedStateMachine):
    """A driver that reports, in any order a real one could, what instances do."""

    def __init__(self, hand_pool: Any) -> None:
        super().__init__()
        self.hand_pool = hand_pool

    @initialize(
        spec=POOLS,
        topology=TOPOLOGIES,
        models=st.sampled_from([1, 2, 2, 3]),
        capacity=st.sampled_from([4, 8]),
    )
    def new_pool(
        self, spec: dict[str, Any], topology: dict[str, int], models: int, capacity: int
    ) -> None:
        weights = (100, 60, 100)[:models]
        self.pool = self.hand_pool(weights=weights, capacity=capacity, **topology, **spec)
        self.began_s = [0.0, 0.0]
        self.longest = [0, 0]

    # What the engine of an instance could report now.

    def plan(self, g: int) -> None:
        """The stage of g begins now; a run may be as long as its blocks fit."""
        self.began_s[g] = self.pool.now_s
        self.longest[g] = LONGEST_RUN
        while self.longest[g] > 1 and self.growth(g, self.longest[g]) > self.free_bytes(g):
            self.longest[g] -= 1

    def growth(self, g: int, k: int) -> int:
        grown = 0
        for r in self.pool.owned(g, BATCH):
            tokens = int(self.pool.req(r)["prompt_tokens"] + self.pool.req(r)["emitted_tokens"])
            grown += (-(-(tokens + k) // 4) - -(-tokens // 4)) * 40
        return grown

    def free_bytes(self, g: int) -> int:
        pool, inst = self.pool.state.pool[0], self.pool.inst(g)
        weights = pool["reserved_bytes"] or self.pool.state.models["weight_bytes"][inst["model"]]
        return int(pool["vram_bytes"] - weights - inst["kv_used_bytes"])

    def due(self, g: int) -> EventKind | None:
        """The report that ends the stage of g."""
        stage, inst = self.pool.stage(g), self.pool.inst(g)
        if stage == Stage.COMMANDED:
            is_ready = self.pool.state.slots[g, inst["active_slot"]]["state"] == SlotState.READY
            return EventKind.SWITCHED if is_ready else None
        return {
            Stage.KV_IN: EventKind.KV_IN_DONE,
            Stage.PREFILL: EventKind.PREFILLED,
            Stage.DECODE: EventKind.STEPS,
            Stage.ENDING: EventKind.TURN_ENDED,
        }.get(stage)

    def go_on(self, g: int, seconds: float) -> None:
        """One step of a run that is not over."""
        at_s = max(self.pool.now_s, self.began_s[g] + seconds + 1e-9)
        self.pool.apply(EventKind.STEPS, instance=g, n=1, x=seconds, at_s=at_s, goes_on=1)
        self.pool.drain()
        self.longest[g] -= 1
        self.began_s[g] = self.pool.now_s

    def report(self, g: int, n: int, seconds: float, ends: int) -> None:
        """End the stage of g after `n` requests or steps; `ends` are the bits that finish."""
        kind = self.due(g)
        assert kind is not None
        touched, fields, is_inner = [], {}, self.is_inner_chunk(g)
        if kind == EventKind.KV_IN_DONE:
            fields["n"] = min(n, self.pool.size(g, INCOMING))
        elif kind == EventKind.PREFILLED:
            touched = self.pool.owned(g, PREFILL)[: 0 if is_inner else n]
            fields |= {"n": len(touched), "x": seconds}
        elif kind == EventKind.STEPS:
            touched = self.pool.owned(g, BATCH)
            fields |= {"n": min(n, self.longest[g]), "x": seconds, "y": seconds / 64}
        time_s = self.began_s[g]
        if touched or "x" in fields:
            k = fields["n"] if kind == EventKind.STEPS else 1
            time_s += seconds * k + fields.get("y", 0.0) * k * (k - 1) / 2 + 1e-9
        self.pool.apply(kind, instance=g, at_s=max(self.pool.now_s, time_s), **fields)
        for i, r in enumerate(touched):
            if ends >> i & 1:
                self.pool.apply(EventKind.FINISHED, request=r, instance=g)
        self.pool.drain()
        self.plan(g)

    def is_inner_chunk(self, g: int) -> bool:
        """Does the next prefill call of g leave its first prompt unfinished?"""
        chunk, queue = (
            int(self.pool.state.pool["prefill_chunk_tokens"][0]),
            self.pool.owned(g, PREFILL),
        )
        if not chunk or not queue:
            return False
        req = self.pool.req(queue[0])
        left = req["prompt_tokens"] + req["emitted_tokens"] - req["prefilled_tokens"]
        return bool(left > chunk)

    def loads(self) -> list[int]:
        inst = self.pool.state.instances
        return np.flatnonzero((inst["loading_slot"] >= 0) & (inst["load_since_ns"] >= 0)).tolist()

    def weights_ready(self, g: int) -> None:
        self.pool.apply(EventKind.WEIGHTS_READY, instance=g)
        self.pool.drain()

    def overlapped(self, g: int) -> int:
        """Requests whose KV comes in while g computes."""
        return 0 if self.pool.stage(g) == Stage.KV_IN else int(self.pool.inst(g)["moving_in"])

    def kv_in(self, g: int, n: int) -> None:
        self.pool.apply(EventKind.KV_IN_DONE, instance=g, n=min(n, self.overlapped(g)))
        self.pool.drain()

    def leaving(self, g: int) -> int:
        """Requests whose KV moves out; those behind them wait for room on the host."""
        kv = self.pool.state.requests["kv"]
        return sum(kv[r] == KvPlace.MOVING_OUT for r in self.pool.owned(g, OUTGOING))

    def kv_out(self, g: int, n: int) -> None:
        was = self.pool.stage(g)
        self.pool.apply(EventKind.KV_OUT_DONE, instance=g, n=min(n, self.leaving(g)))
        self.pool.drain()
        if self.pool.stage(g) != was:
            self.plan(g)

    @rule(moves=st.lists(MOVES, min_size=3, max_size=12))
    def proceed(self, moves: list[Move]) -> None:
        """Anything that could happen next in the pool itself, in any order."""
        for move in moves:
            open_to: list[Callable[[], None]] = [partial(self.decide, move)]
            for g in range(2):
                if self.due(g) is not None:
                    open_to.append(partial(self.report, g, move.n, move.seconds, move.ends))
                if self.due(g) == EventKind.STEPS and self.longest[g] > 1:
                    open_to.append(partial(self.go_on, g, move.seconds))
                if self.overlapped(g):
                    open_to.append(partial(self.kv_in, g, move.n))
                if self.leaving(g):
                    open_to.append(partial(self.kv_out, g, move.n))
            open_to += [partial(self.weights_ready, g) for g in self.loads()]
            open_to[move.what % len(open_to)]()

    # What comes from outside.

    @rule(
        model=st.sampled_from([0, 0, 1, 2]),
        prompt=st.sampled_from([1, 7, 11, 13, 15, 19, 19, 100]),
        later_s=st.sampled_from([0.0, 0.003, 0.3]),
        priority=st.integers(0, 1),
    )
    def arrival(self, model: int, prompt: int, later_s: float, priority: int) -> None:
        model %= len(self.pool.state.models)
        self.pool.arrive(model, prompt, at_s=self.pool.now_s + later_s, tag=priority)
        self.pool.drain()

    def live(self) -> list[int]:
        return np.flatnonzero(np.isin(self.pool.state.requests["phase"], LIVE)).tolist()

    @precondition(lambda self: self.live())
    @rule(i=st.integers(0, 40), kind=st.sampled_from([EventKind.CANCEL, EventKind.EXPIRE]), go=RARE)
    def request_ends(self, i: int, kind: EventKind, go: bool) -> None:
        live = self.live() if go else []
        if not live:
            return
        self.pool.apply(kind, request=live[i % len(live)])
        self.pool.drain()

    @rule(g=st.integers(0, 1), go=RARE)
    def instance_fails_or_returns(self, g: int, go: bool) -> None:
        is_down = self.pool.stage(g) == Stage.DOWN
        if not is_down and not go:
            return
        kind = EventKind.INSTANCE_JOINED if is_down else EventKind.INSTANCE_FAILED
        assert self.pool.apply(kind, instance=g) == Outcome.OK
        assert self.pool.apply(kind, instance=g) == Outcome.REFUSED
        self.pool.drain()

    # What a policy answers.

    def decide(self, move: Move) -> None:
        kind, index = self.pool.decision()
        if kind == DecisionKind.NONE:
            return
        event = self.pool.posed(kind, index)
        if kind == DecisionKind.ROUTE:
            event["tag"] = move.tag
        elif kind == DecisionKind.INTERRUPT:
            event["n"] = move.pick % 2
        else:
            rows, overflow = self.pool.rows(kind, index)
            assert rows
            assert overflow == 0
            if move.pick < 9:  # else the posed answer
                event["model"] = rows[move.pick % len(rows)]
            if kind == DecisionKind.TURN and move.pick < 9:
                event["kind"], event["phases"] = EventKind.TURN, move.phases
                event["quota_ns"], event["tag"] = round(move.quota_s * NS), move.tag
                event["joins"] = move.joins
        outcome = self.pool.apply_record(event)
        assert outcome == Outcome.OK or (move.phases, move.tag) != (Phases.BOTH, NONE)
        self.pool.drain()

    @rule(
        kind=st.sampled_from(
            [
                EventKind.TURN,
                EventKind.PREFETCH,
                EventKind.ROUTE,
                EventKind.IDLE,
                EventKind.INTERRUPT,
            ]
        ),
        g=st.integers(0, 1),
        model=st.integers(0, 2),
        r=st.integers(0, 3),
        phases=st.sampled_from(Phases),
        go=RARE,
    )
    def unasked_answer(
        self, kind: int, g: int, model: int, r: int, phases: Phases, go: bool
    ) -> None:
        """An answer that nobody asked for, or that comes late, is applied whole or refused."""
        if not go:
            return
        model %= len(self.pool.state.models)
        self.pool.apply(
            kind, instance=g, model=model, request=r, phases=phases, quota_ns=FOREVER_NS, n=r % 2
        )
        self.pool.drain()

    # At the end: every request can still end, and the journal tells the whole story.

    def step_to_end(self) -> bool:
        """Let one thing happen; requests end at their first boundary. False: nothing can."""
        for g in range(2):
            if self.pool.stage(g) == Stage.DOWN:
                self.instance_fails_or_returns(g, True)
            elif self.due(g) is not None:
                self.report(g, 9, 0.01, -1)
            elif self.leaving(g):
                self.kv_out(g, 99)
            elif g in self.loads():
                self.weights_ready(g)
            else:
                continue
            return True
        kind, index = self.pool.decision()
        if kind == DecisionKind.NONE:
            return False
        event = self.pool.posed(kind, index)
        if kind == DecisionKind.TURN:
            event["kind"], event["model"] = EventKind.TURN, self.pool.rows(kind, index)[0][0]
        assert self.pool.apply_record(event) == Outcome.OK
        self.pool.drain()
        return True

    def teardown(self) -> None:
        if not hasattr(self, "pool"):
            return
        check_integrity(self.pool.state)  # after a failure there is no more to say
        self.arrival(0, 1, 0.0, 0)  # wakes instances that a policy left idle
        for _ in range(500):
            if not self.step_to_end():
                break
        assert self.live() == []
        assert int(self.pool.state.pool["in_flight"][0]) == 0
        assert len(self.pool.ended) == self.pool.next_id
        replayed = self.pool.replay()
        for name in replayed.layout:
            same = getattr(replayed, name).tobytes() == getattr(self.pool.state, name).tobytes()
            assert same, f"replay differs in {name}"


def test_machine_laws_hold_after_every_transition(hand_pool: Any) -> None:
    run_state_machine_as_test(
        lambda: Machine(hand_pool),
        settings=settings(
            max_examples=150,
            stateful_step_count=40,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )


def test_machine_events_hold_no_hidden_padding() -> None:
    assert sum(EVENT[name].itemsize for name in EVENT.names) == EVENT.itemsize
