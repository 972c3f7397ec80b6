"""`Scene`: one pool of an environment as a person wants to see it, at a decision.

Its bars are spans of the journal that the pool keeps, replayed as for the report's Gantt.
"""

from typing import NamedTuple

import numpy as np

from envs.episode import Episode, empty_state
from envs.scenario import ScenarioSpec
from runtime.core import NONE, NS, DecisionKind, RequestPhase, SlotState, Stage
from runtime.emulator.loop import missed_deadlines
from runtime.emulator.tables import Sim
from runtime.pool import lists
from runtime.pool.state import LISTS_PER_INSTANCE, State
from runtime.timeline.bars import Bar, bars_of
from runtime.timeline.replay import Replay
from runtime.timeline.spans import SpanKind

STAGES = {
    Stage.DOWN: "down",
    Stage.FREE: "free",
    Stage.IDLE: "idle",
    Stage.COMMANDED: "weights",
    Stage.BLOCKED: "blocked",
    Stage.KV_IN: "KV in",
    Stage.PREFILL: "prefill",
    Stage.DECODE: "decode",
    Stage.ENDING: "ending",
}


class Instance(NamedTuple):
    """`turn_s` since the turn was ordered, None outside one; `next_model` is what it prefetches."""

    number: int
    stage: str
    model: int
    turn_s: float | None
    quota_s: float
    requests: int
    kv_share: float
    next_model: int
    load_left_s: float


class Queue(NamedTuple):
    """Open requests of a model; `slack_s` is the least time to a next deadline."""

    model: int
    waiting: int
    ready: int
    running_on: int
    oldest_s: float
    slack_s: float


class View(NamedTuple):
    """`asked`: the decision that is due, in words; `asked_of`: its instance, or NONE. Queues: most
    urgent first, those that are late last. Seconds are of the pool's clock."""

    title: str
    models: tuple[str, ...]
    now_s: float
    end_s: float
    in_flight: int
    open: int
    on_time: int
    missed: int
    asked: str
    asked_of: int
    instances: list[Instance]
    queues: list[Queue]


class Scene:
    """Follows a pool through one episode. `sim` must keep its journal from its first event on."""

    def __init__(self, spec: ScenarioSpec, episode: Episode, sim: Sim) -> None:
        self.spec, self.episode, self.sim = spec, episode, sim
        trace = spec.trace(episode.trace)
        self.models = trace.models
        self.title = f"{trace.name} at load {episode.load:.2f} on {episode.pool.name}"
        self._replay = Replay(empty_state(spec, episode), 0, 1 << 62)
        self._replay.sample_ns = 1 << 62  # levels are not shown
        self._fed = 0

    def bars(self, seconds: float) -> tuple[list[Bar], list[Bar]]:
        """The last `seconds` of every instance: what it did, and beside it the prefetches (look
        `ahead`) and KV on its way out (`out`)."""
        rows = int(self.sim.control["journal_rows"][0])
        for row in range(self._fed, rows):
            self._replay.feed(row, self.sim.journal[row])
        self._fed = rows
        now_ns = int(self.sim.state.pool["now_ns"][0])
        from_ns = now_ns - round(seconds * NS)
        spans = self._replay.so_far(from_ns, now_ns)
        beside = []
        for kind, look in ((SpanKind.LOAD_AHEAD, "ahead"), (SpanKind.KV_OUT, "out")):
            for span in spans[spans["kind"] == kind]:
                begin_s = max(from_ns, int(span["start_ns"])) / NS
                place = int(span["instance"]), int(span["model"])
                beside.append(Bar(*place, look, begin_s, int(span["end_ns"]) / NS))
        return bars_of(spans, from_ns, now_ns), beside

    def view(self) -> View:
        state, control, pool = self.sim.state, self.sim.control[0], self.sim.state.pool[0]
        kind = DecisionKind(int(control["decision_kind"]))
        is_of_instance = kind not in (DecisionKind.NONE, DecisionKind.ROUTE)
        live = state.requests[state.requests["phase"] != RequestPhase.FREE]
        on_time = self.sim.results["on_time_tokens"].sum() + live["on_time_tokens"].sum()
        return View(
            title=self.title,
            models=self.models,
            now_s=int(pool["now_ns"]) / NS,
            end_s=int(control["horizon_ns"]) / NS,
            in_flight=int(pool["in_flight"]),
            open=int(pool["claimable"]),
            on_time=int(on_time),
            missed=int(missed_deadlines(self.sim)),
            asked=kind.name.lower(),
            asked_of=int(control["decision_index"]) if is_of_instance else NONE,
            instances=[instance(state, g) for g in range(len(state.instances))],
            queues=queues(state),
        )


def instance(state: State, g: int) -> Instance:
    row, now_ns = state.instances[g], int(state.pool["now_ns"][0])
    is_in_turn = row["stage"] >= Stage.COMMANDED
    held = [listed(state, g, which) for which in (lists.PREFILL, lists.BATCH, lists.INCOMING)]
    return Instance(
        number=g,
        stage=STAGES[Stage(int(row["stage"]))],
        model=int(row["model"]),
        turn_s=(now_ns - int(row["turn_start_ns"])) / NS if is_in_turn else None,
        quota_s=min(int(row["quota_ns"]) / NS, 1e6),
        requests=sum(held),
        kv_share=kv_share(state, g),
        next_model=next_model(state, g),
        load_left_s=load_left_s(state, g),
    )


def listed(state: State, g: int, which: int) -> int:
    """Requests in a list of instance g."""
    row = 2 * len(state.models) + LISTS_PER_INSTANCE * g + which
    return int(state.lists["count"][row])


def kv_share(state: State, g: int) -> float:
    """KV on the device over what fits beside the model's weights."""
    row, pool = state.instances[g], state.pool[0]
    if row["model"] < 0:
        return 0.0
    weights = pool["reserved_bytes"] or state.models["weight_bytes"][row["model"]]
    return float(row["kv_used_bytes"] / (pool["kv_fraction"] * (pool["vram_bytes"] - weights)))


def load_left_s(state: State, g: int) -> float:
    """Of the load under way, predicted for a link of its own; 0: none is."""
    row, now_ns = state.instances[g], int(state.pool["now_ns"][0])
    if row["loading_slot"] < 0:
        return 0.0
    since_ns = int(row["load_since_ns"])
    gone_ns = now_ns - since_ns if since_ns != NONE else 0
    return max(0.0, (int(row["load_left_ns"]) - gone_ns) / NS)


def next_model(state: State, g: int) -> int:
    """What is loaded ahead of need, or on its way; NONE: nothing."""
    slots = state.slots[g]
    ahead = slots[(slots["is_ahead"] != 0) & (slots["state"] != SlotState.EMPTY)]
    return int(ahead["model"][0]) if len(ahead) else NONE


def queues(state: State) -> list[Queue]:
    """Of the models with open requests."""
    now_ns, count = int(state.pool["now_ns"][0]), len(state.models)
    waiting, ready = (state.lists["count"][i * count : (i + 1) * count] for i in (0, 1))
    found = []
    for m in np.flatnonzero(waiting + ready).tolist():
        model = state.models[m]
        slack_s = (int(model["urgent_ns"]) - now_ns) / NS
        oldest_s = (now_ns - int(model["oldest_ns"])) / NS
        sizes = int(waiting[m]), int(ready[m]), int(model["running_on"])
        found.append(Queue(m, *sizes, oldest_s, slack_s))
    return sorted(found, key=lambda q: (q.slack_s < 0, q.slack_s, q.model))
