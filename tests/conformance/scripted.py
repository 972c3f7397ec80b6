"""A second driver of the scheduler core: plain Python, a fake clock, scripted engines.

Written from the contract (runtime/pool/transitions.py, runtime/protocol.py) and not from the
emulator: it shares with it the core alone. Engines walk the stages of a turn by themselves, count
their own KV memory and weight slots, and predict times with the formulas below; token metrics are
recomputed from the list of every token's time.
"""

import heapq
import math
from collections.abc import Iterable
from itertools import pairwise
from typing import Any

import numpy as np

from runtime.catalog import assign_checkpoints
from runtime.core import (
    FOREVER_NS,
    NONE,
    Command,
    DecisionKind,
    EventKind,
    KvPlace,
    PoolSpec,
    PrefetchMode,
    RequestPhase,
    SloSpec,
    Stage,
)
from runtime.emulator.profile import load_profile
from runtime.emulator.tables import RESULT
from runtime.pool.candidates import next_decision, pose
from runtime.pool.initial import new_state
from runtime.pool.placement import preload
from runtime.pool.state import EVENT, LISTS_PER_INSTANCE, State, Table
from runtime.pool.transitions import Outcome, apply, release
from runtime.protocol import Oracle, Places, Policy, Turn, Workload
from traces import Trace

PREFILL, BATCH, INCOMING, OUTGOING = range(LISTS_PER_INSTANCE)
MOST_EVENTS = 50_000  # far above any scenario: a pool that decides for ever at one instant
LEAST_CREDITED_SWITCH_NS = 10_000_000


def table_s(cost: Any, batch: int) -> float:
    """A decode table: linear between its knots, the last segment goes on."""
    sizes = cost["knot_batch"][: cost["knots"]].tolist()
    k = next((k for k in range(1, len(sizes)) if sizes[k] >= batch), len(sizes) - 1)
    low, high = cost["knot_s"][k - 1], cost["knot_s"][k]
    return float(low + (batch - sizes[k - 1]) / (sizes[k] - sizes[k - 1]) * (high - low))


class StuckError(RuntimeError):
    """Requests wait and nothing is pending, or the pool decides for ever at one instant."""


class Clock:
    """What is pending, ordered by (time, kind, index); setting a name again voids the old entry."""

    def __init__(self) -> None:
        self.heap: list[tuple[int, int, int, int, Any]] = []
        self.serials: dict[Any, int] = {}
        self.serial = 0

    def set(self, name: Any, time_ns: int, kind: int, index: int) -> None:
        self.serial += 1
        self.serials[name] = self.serial
        heapq.heappush(self.heap, (time_ns, int(kind), index, self.serial, name))

    def drop(self, name: Any) -> None:
        self.serials.pop(name, None)

    def first(self) -> tuple[int, int, int, int, Any] | None:
        while self.heap and self.serials.get(self.heap[0][4]) != self.heap[0][3]:
            heapq.heappop(self.heap)
        return self.heap[0] if self.heap else None


class Flow:
    """A transfer: what is left of it alone on its way, and how many times slower it goes."""

    def __init__(self, kind: int, g: int, left_ns: int, share: float, now_ns: int) -> None:
        self.kind, self.g, self.left_ns, self.share = kind, g, left_ns, share
        self.since_ns, self.slow = now_ns, 1.0

    def settle(self, now_ns: int) -> int:
        self.left_ns = max(0, self.left_ns - int((now_ns - self.since_ns) / self.slow))
        self.since_ns = now_ns
        return self.left_ns


class Way:
    """One direction of a root port: its transfers share the bandwidth, one of each instance."""

    def __init__(self, clock: Clock, name: str) -> None:
        self.clock, self.name = clock, name
        self.flows: dict[int, Flow] = {}

    def begin(self, flow: Flow) -> int:
        """What is left of the transfer of the same instance that it replaces, or 0."""
        now_ns, old = flow.since_ns, self.flows.get(flow.g)
        left_ns = 0 if old is None else old.settle(now_ns)
        self.flows[flow.g] = flow
        self.share([flow] if old is not None else list(self.flows.values()), now_ns)
        return left_ns

    def end(self, g: int, now_ns: int) -> None:
        self.clock.drop((g, self.name))
        del self.flows[g]
        self.share(list(self.flows.values()), now_ns)

    def share(self, flows: list[Flow], now_ns: int) -> None:
        for flow in flows:
            flow.settle(now_ns)
            flow.slow = max(1.0, len(self.flows) * flow.share)
            due = now_ns + int(np.ceil(flow.left_ns * flow.slow))
            self.clock.set((flow.g, self.name), due, flow.kind, flow.g)


class HostCache:
    """Pinned weights of one node, least recently used out first (ties: lowest model)."""

    def __init__(self, sizes: list[int], limit: int) -> None:
        self.sizes, self.limit = sizes, limit
        self.used_ns = dict.fromkeys(range(len(sizes)), 0)
        self.cached = [m for m in range(len(sizes)) if sum(sizes[: m + 1]) <= limit]

    def touch(self, m: int, now_ns: int) -> None:
        self.used_ns[m] = now_ns
        if m in self.cached:
            return
        while self.cached and sum(self.sizes[i] for i in self.cached) + self.sizes[m] > self.limit:
            self.cached.remove(min(self.cached, key=lambda i: (self.used_ns[i], i)))
        if self.sizes[m] <= self.limit:
            self.cached.append(m)


def new_event(kind: int, time_ns: int, **fields: float) -> Table:
    """One EVENT row [1]; what is not given is NONE or 0."""
    event = np.zeros(1, EVENT)
    for name in ("id", "tag", "instance", "model", "request"):
        event[name] = NONE
    event["kind"], event["time_ns"] = kind, time_ns
    for name, value in fields.items():
        event[name] = value
    return event


def end_ns(x: float, y: float, j: int) -> int:
    """Step j ends x*j + y*j*(j-1)/2 seconds after the run began, rounded once."""
    return round((x * j + y * (0.5 * j * (j - 1))) * 1e9)


def prompt_s(cost: Any, tokens: float) -> Any:
    """Of one prompt; a concave fit is flat from its vertex on."""
    b, c = cost["prefill_token_s"], cost["prefill_token2_s"]
    most = min(float(tokens), -0.5 * b / c) if c < 0 else float(tokens)
    return b * most + c * most * most


def ns(seconds: float) -> int:
    return round(seconds * 1e9)


def uniform(*words: int) -> float:
    """Chained splitmix64 of the words, its upper 53 bits as a number in (0, 1)."""
    state = 0
    for word in words:
        state = ((state ^ word) + 0x9E3779B97F4A7C15) % 2**64
        for shift, multiplier in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
            state = (state ^ (state >> shift)) * multiplier % 2**64
        state ^= state >> 31
    return ((state >> 11) + 0.5) / 2**53


class ScriptedEngine:
    """runtime.protocol.Engine of one instance. `ring` makes what the clock says is due a report."""

    def __init__(self, g: int, pool: "ScriptedPool") -> None:
        self.g, self.pool, self.spec, self.state = g, pool, pool.spec, pool.state
        self.node = g // pool.spec.instances_per_node
        self.way_in, self.way_out = pool.ways[self._port()]
        self.reports: list[Table] = []
        self.turn: Turn | None = None
        self.stage = Stage.FREE
        self.model, self.is_switching, self.is_on_device = NONE, False, False
        self.ordered_ns = self.began_ns = self.decoded_ns = self.compute_ns = 0
        self.n, self.x, self.y = 0, 0.0, 0.0
        self.slots: dict[int, int] = {}
        self.partial: dict[int, int] = {}  # tokens of a prompt that chunks have done, by id
        self.owes_step = False  # the batch decodes between two chunks
        self.ready_ns: dict[int, int] = {}  # when a model's weights last came
        self.loading: tuple[int, int] | None = None  # slot, model
        self.load_left_ns, self.load_share = 0, 1.0
        self.in_n = self.out_n = self.stages = 0

    # the door of the protocol

    def start(self, turn: Turn) -> None:
        if self.turn is None:
            self.is_switching, self.model = turn.model != self.model, turn.model
            self.ordered_ns, self.decoded_ns, self.is_on_device = self.pool.now_ns, 0, False
            self.partial, self.owes_step = {}, False
        self.turn = turn
        self.began_ns = self.pool.now_ns
        self._enter(self._next_stage(turn))

    def join(self, requests: tuple[int, ...]) -> None:
        if self.stage == Stage.DECODE:
            elapsed = self.pool.now_ns - self.began_ns
            self.n = next(j for j in range(1, self.n + 1) if end_ns(self.x, self.y, j) >= elapsed)
            self._ring_at(self.began_ns + end_ns(self.x, self.y, self.n), EventKind.STEPS)

    def load(self, model: int) -> None:
        rest_ns = self._drop_load()
        slot = int(self.state.instances["loading_slot"][self.g])
        kept = self.state.slots["model"][self.g].tolist()  # the core chose what else must go
        self.slots = {s: m for s, m in self.slots.items() if kept[s] == m}
        sizes = [self.pool.models[m].weight_bytes for m in (*self.slots.values(), model)]
        assert sum(sizes) <= self.pool.weight_budget_bytes
        self.loading = (slot, model)
        rate = link_bytes_s = self.spec.tp * self.spec.h2d_bytes_s
        if model not in self.pool.caches[self.node].cached:
            rate = min(rate, self.spec.disk_bytes_s)
        share = rate / link_bytes_s
        if rest_ns > 0 and self.load_share > share:
            rest_ns = int(np.ceil(rest_ns * (self.load_share / share)))
        alone_ns = int(np.ceil(self.pool.models[model].weight_bytes / rate * 1e9))
        self.load_left_ns = rest_ns + alone_ns
        if self.spec.prefetch is PrefetchMode.RETROACTIVE:
            credited = self.load_left_ns - self.compute_ns
            self.load_left_ns = max(LEAST_CREDITED_SWITCH_NS, credited)
        self.load_share = share
        if self.in_n == 0:
            self._resume_load(self.pool.now_ns)

    def move_out(self, requests: tuple[int, ...]) -> None:
        if self.out_n > 0 or not requests:
            return
        self.out_n = len(requests)
        link_bytes_s = self.spec.tp * self.spec.d2h_bytes_s
        seconds = sum(self._moved_bytes(r) for r in requests) / link_bytes_s
        took = 0 if self.spec.kv_out_free else int(np.ceil(seconds * 1e9))
        self.way_out.begin(Flow(EventKind.KV_OUT_DONE, self.g, took, 1.0, self.pool.now_ns))

    def share(self, *, is_in: bool) -> None:
        way = self.way_in if is_in else self.way_out
        way.share(list(way.flows.values()), self.pool.now_ns)

    def fail(self, now_ns: int) -> None:
        """All on the device is gone, and so is what was pending."""
        self.pool.clock.drop((self.g, "compute"))
        for way in (self.way_in, self.way_out):
            if self.g in way.flows:
                way.end(self.g, now_ns)
        self.turn, self.stage, self.model, self.loading = None, Stage.DOWN, NONE, None
        self.slots, self.ready_ns = {}, {}
        self.in_n = self.out_n = self.compute_ns = 0

    def poll(self) -> Iterable[Table]:
        reports, self.reports = self.reports, []
        return reports

    # the script

    def ring(self, kind: int, time_ns: int) -> None:
        if kind == EventKind.KV_OUT_DONE:
            n, self.out_n = self.out_n, 0
            if n == len(self.pool.outgoing(self.g)):
                self.way_out.end(self.g, time_ns)
            self._report(kind, time_ns, n=n)
        elif kind == EventKind.WEIGHTS_READY:
            assert self.loading is not None
            slot, model = self.loading
            self.slots[slot], self.loading = model, None
            self.ready_ns[model] = time_ns
            self.way_in.end(self.g, time_ns)
            self.pool.caches[self.node].touch(model, time_ns)
            self._report(kind, time_ns)
        elif kind == EventKind.SWITCHED:
            self.is_on_device = True
            if self.is_switching:
                self.compute_ns = 0
            self._report(kind, time_ns)
        elif kind == EventKind.TURN_ENDED:
            self.turn, self.stage = None, Stage.FREE
            self._report(kind, time_ns)
        elif kind == EventKind.KV_IN_DONE:
            if self.loading is not None:
                self._resume_load(time_ns)
            else:
                self.way_in.end(self.g, time_ns)
            self._report(kind, time_ns, n=self.in_n)
            self.in_n = 0
        elif kind == EventKind.PREFILLED:
            assert self.turn is not None
            first = int(self.state.requests["id"][self.turn.prefill[0]])
            done = self.partial.get(first, 0) + self.spec.prefill_chunk_tokens
            self.partial = {first: done} if self.n == 0 else {}
            self.owes_step = self.spec.prefill_chunk_tokens > 0
            self._tokens(kind, time_ns, self.turn.prefill[: self.n], 1)
        else:
            assert self.turn is not None
            self.owes_step = False
            self.decoded_ns += end_ns(self.x, self.y, self.n)
            self._tokens(kind, time_ns, self.turn.batch, self.n)

    def _tokens(self, kind: int, time_ns: int, requests: tuple[int, ...], k: int) -> None:
        """The boundary, and a FINISHED for each request that met its end there."""
        self.compute_ns += end_ns(self.x, self.y, k)
        rows = [new_event(kind, time_ns, instance=self.g, n=self.n, x=self.x, y=self.y)]
        for r in requests:
            req = self.state.requests[r]
            begin = time_ns - end_ns(self.x, self.y, k)
            times = [begin + end_ns(self.x, self.y, j) for j in range(1, k + 1)]
            self.pool.tokens[int(req["id"])] += times
            if req["emitted_tokens"] + k >= self.pool.output_tokens[req["id"]]:
                rows.append(
                    new_event(EventKind.FINISHED, time_ns, instance=self.g, request=r, id=req["id"])
                )
        self.reports.append(np.concatenate(rows))

    def _report(self, kind: int, time_ns: int, **fields: float) -> None:
        self.reports.append(new_event(kind, time_ns, instance=self.g, **fields))

    def _ring_at(self, time_ns: int, kind: int) -> None:
        self.pool.clock.set((self.g, "compute"), time_ns, kind, self.g)

    def _next_stage(self, turn: Turn) -> Stage:
        if not self.is_on_device:
            return Stage.COMMANDED
        if turn.incoming and not self.spec.kv_in_overlaps:
            return Stage.KV_IN
        may_decode = turn.batch and self.decoded_ns < turn.quota_ns
        can_decode = may_decode and self._steps_that_fit(turn, 1) == 1
        if turn.prefill and not (self.owes_step and can_decode):
            return Stage.PREFILL
        if can_decode:
            return Stage.DECODE
        return Stage.KV_IN if turn.incoming else Stage.ENDING

    def _enter(self, stage: Stage) -> None:
        """Begin a stage; KV has the host link before a load under way."""
        assert self.turn is not None
        self.stage, turn, now = stage, self.turn, self.pool.now_ns
        if stage == Stage.COMMANDED:
            self.pool.clock.drop((self.g, "compute"))
            if turn.model in self.slots.values():
                ready = max(
                    self.ready_ns.get(turn.model, 0), self.ordered_ns + ns(self.spec.command_s)
                )
                self._ring_at(ready + ns(self.spec.turn_overhead_s), EventKind.SWITCHED)
        elif stage == Stage.KV_IN:
            self._move_in(turn.incoming)
        elif stage == Stage.PREFILL:
            self._move_in(turn.incoming)
            self._plan_prefill(turn)
            self._ring_at(now + end_ns(self.x, 0.0, 1), EventKind.PREFILLED)
        elif stage == Stage.DECODE:
            self._move_in(turn.incoming)
            self._plan_decode(turn)
            self._ring_at(now + end_ns(self.x, self.y, self.n), EventKind.STEPS)
        else:
            self._ring_at(now, EventKind.TURN_ENDED)

    def _drop_load(self) -> int:
        """What the chunk under way still needs, alone; chunks are counted from a load's end."""
        if self.loading is None or self.spec.load_chunk_bytes == 0:
            return 0
        if self.in_n == 0:
            self.load_left_ns = self.way_in.flows[self.g].settle(self.pool.now_ns)
        rate = self.load_share * (self.spec.tp * self.spec.h2d_bytes_s)
        chunk_ns = max(1, int(np.ceil(self.spec.load_chunk_bytes / rate * 1e9)))
        return self.load_left_ns % chunk_ns

    def _port(self) -> tuple[int, int]:
        return self.node, self.g % self.spec.instances_per_node // self.spec.instances_per_port

    def _move_in(self, requests: tuple[int, ...]) -> None:
        """At a boundary: what waits to come in does so as one group, once the last is there."""
        if requests and self.in_n == 0:
            self.in_n = len(requests)
            left_ns = self.way_in.begin(self._kv_flow(requests))
            self.load_left_ns = left_ns if self.loading is not None else 0

    def _resume_load(self, now_ns: int) -> None:
        kind = EventKind.WEIGHTS_READY
        self.way_in.begin(Flow(kind, self.g, self.load_left_ns, self.load_share, now_ns))

    def _kv_flow(self, requests: tuple[int, ...]) -> Flow:
        at_home = away = 0
        for r in requests:
            if self.state.requests["node"][r] == self.node:
                at_home += self._moved_bytes(r)
            else:
                away += self._moved_bytes(r)
        link_bytes_s = self.spec.tp * self.spec.h2d_bytes_s
        seconds = at_home / link_bytes_s
        if away:
            seconds += away / min(link_bytes_s, self.spec.network_bytes_s)
        share, quantum = (at_home + away) / link_bytes_s / seconds, self.spec.step_quantum_s
        if quantum > 0.0:
            seconds = np.floor(seconds / quantum + 1e-9) * quantum
        is_free = self.spec.kv_reload_every_turn and self.decoded_ns > 0
        left_ns = 0 if is_free else int(np.ceil(seconds * 1e9 - 1e-3))
        return Flow(EventKind.KV_IN_DONE, self.g, left_ns, share, self.pool.now_ns)

    def _plan_prefill(self, turn: Turn) -> None:
        """A chunk of the first prompt; or its rest, with whole prompts behind it in the budget."""
        lengths = [self._context(r) for r in turn.prefill]
        chunk, limit = self.spec.prefill_chunk_tokens, self.spec.prefill_budget_tokens
        done = self.partial.get(int(self.state.requests["id"][turn.prefill[0]]), 0)
        spans = [(done, lengths[0])]
        if chunk and lengths[0] - done > chunk:
            spans, self.n = [(done, done + chunk)], 0
        else:
            limit, self.n = min(limit, chunk) if chunk else limit, 1
            for length in lengths[1:]:
                if sum(e - s for s, e in spans) + length > limit:
                    break
                spans.append((0, length))
                self.n += 1
        cost = self._cost(turn)
        seconds = cost["prefill_s"]
        for s, e in spans:
            seconds += prompt_s(cost, e) - prompt_s(cost, s)
        self.x, self.y = self._truncated(float(seconds)) * self._noise(), 0.0

    def _plan_decode(self, turn: Turn) -> None:
        """Run until the first of: a request ends, the quota, no memory, another truncated time."""
        cost, size = self._cost(turn), len(turn.batch)
        context = sum(self._context(r) for r in turn.batch)
        left = [
            int(self.pool.output_tokens[self.state.requests["id"][r]])
            - int(self.state.requests["emitted_tokens"][r])
            for r in turn.batch
        ]
        x = float(cost["decode_s"] + self.spec.step_overhead_s)
        x += float(cost["decode_context_s"] * context)
        x += table_s(cost, size) if cost["knots"] else float(cost["decode_batch_s"] * size)
        y = float(cost["decode_context_s"] * size)
        k = 1 if turn.prefill else min(left)
        if self.spec.step_quantum_s > 0:
            shown = self._truncated(x)
            same = (j for j in range(1, k) if self._truncated(x + y * j) != shown)
            k, x, y = next(same, k), shown, 0.0
        if self.spec.noise > 0:
            noise = self._noise()
            x, y = round(x * noise * 1e9) / 1e9, round(y * noise * 1e9) / 1e9
        quota = turn.quota_ns - self.decoded_ns
        k = next((j for j in range(1, k + 1) if end_ns(x, y, j) >= quota), k)
        self.x, self.y, self.n = x, y, max(1, self._steps_that_fit(turn, k))

    def _truncated(self, seconds: float) -> float:
        quantum = self.spec.step_quantum_s
        return max(1.0, seconds / quantum + 1e-9) // 1 * quantum if quantum > 0 else seconds

    def _noise(self) -> float:
        """One lognormal factor of mean 1 for each stage of compute."""
        self.stages += 1
        spread2 = math.log(1 + self.spec.noise**2)
        u = uniform(self.spec.seed, self.g, 2 * self.stages)
        v = uniform(self.spec.seed, self.g, 2 * self.stages + 1)
        z = math.sqrt(-2 * math.log(u)) * math.cos(2 * math.pi * v)
        return math.exp(math.sqrt(spread2) * z - spread2 / 2) if self.spec.noise > 0 else 1.0

    def _cost(self, turn: Turn) -> Any:
        return self.pool.costs[0, turn.model]

    def _context(self, r: int) -> int:
        req = self.state.requests[r]
        return int(req["prompt_tokens"] + req["emitted_tokens"])

    def _bytes(self, m: int, tokens: int) -> int:
        blocks = -(-tokens // self.spec.block_tokens)
        return blocks * self.spec.block_tokens * self.pool.models[m].kv_token_bytes

    def _moved_bytes(self, r: int) -> int:
        if self.spec.kv_move_token_bytes > 0:
            return self._context(r) * self.spec.kv_move_token_bytes
        return self._bytes(int(self.state.requests["model"][r]), self._context(r))

    def _steps_that_fit(self, turn: Turn, k: int) -> int:
        """Steps, at most k, for which blocks are free: the device's KV is counted anew."""
        requests, held = self.state.requests, 0
        on_device = (KvPlace.DEVICE, KvPlace.MOVING_OUT, KvPlace.MOVING_IN)
        for r in np.flatnonzero((requests["list"] >= 0) & (requests["instance"] == self.g)):
            m, tokens = int(requests["model"][r]), self._context(r)
            if requests["kv"][r] in on_device:
                held += self._bytes(m, tokens)
            elif requests["phase"][r] == RequestPhase.RUNNING:
                held += self._bytes(m, tokens + 1)
        weights = self.pool.reserved_bytes or self.pool.models[turn.model].weight_bytes
        capacity = int(self.spec.kv_fraction * (self.spec.tp * self.spec.vram_bytes - weights))
        contexts = [self._context(r) for r in turn.batch]
        base = sum(self._bytes(turn.model, c) for c in contexts)
        for j in range(1, k + 1):
            if held - base + sum(self._bytes(turn.model, c + j) for c in contexts) > capacity:
                return j - 1
        return k


class ScriptedPool:
    """One trace through the core, driven event by event. `journal` are EVENT rows as tuples."""

    def __init__(
        self,
        trace: Trace,
        spec: PoolSpec,
        policy: Policy,
        slo: SloSpec,
        horizon_s: float | None,
        script: Any = (),
    ) -> None:
        self.policy, self.slo, self.spec = policy, slo, policy.configure(spec)
        self.models = assign_checkpoints(trace.models, self.spec.checkpoints)
        self.costs = load_profile(self.spec.profile).table(self.models, self.spec.tp)
        self.state: State = new_state(
            self.spec, self.models, tuple(map(slo.of, trace.models)), self.costs, capacity=1024
        )
        sizes = [model.weight_bytes for model in self.models]
        reserved = self.spec.weight_slots * max(sizes)
        budget = self.spec.tp * self.spec.weight_budget_bytes
        self.weight_budget_bytes = budget or reserved
        self.reserved_bytes = budget or (reserved if self.spec.slots_reserved else 0)
        self.caches = [
            HostCache(sizes, self.spec.host_weight_bytes) for _ in range(self.spec.nodes)
        ]
        self.trace, self.output_tokens = trace, trace.output_tokens
        self.horizon_ns = FOREVER_NS if horizon_s is None else round(horizon_s * 1e9)
        self.clock = Clock()
        ports = range(-(-self.spec.instances_per_node // self.spec.instances_per_port))
        self.ways = {
            (node, port): (Way(self.clock, "in"), Way(self.clock, "out"))
            for node in range(self.spec.nodes)
            for port in ports
        }
        self.engines = [ScriptedEngine(g, self) for g in range(self.spec.instances)]
        self._place()
        self.tokens: list[list[int]] = [[] for _ in range(trace.requests)]
        self.overdue: set[int] = set()
        self.slot = [NONE] * trace.requests
        self.journal: list[tuple[Any, ...]] = []
        self.decisions = self.refused = 0
        self.results = np.zeros(trace.requests, RESULT)
        self._schedule_arrivals()
        self.script = script
        for i, row in enumerate(script):
            self.clock.set(("script", i), int(row["time_ns"]), row["kind"], i)

    def _place(self) -> None:
        """Resident from the start; an engine is on the first model it is given."""
        if not isinstance(self.policy, Places):
            return
        placement = self.policy.placement(self.state, self._workload())
        preload(self.state, placement)
        for g, m in placement:
            engine = self.engines[g]
            engine.slots[len(engine.slots)] = m
            engine.model = m if engine.model == NONE else engine.model

    def _workload(self) -> Workload:
        own = [self.trace.model == m for m in range(len(self.models))]
        columns = (self.trace.prompt_tokens, self.trace.output_tokens)
        means = [[float(c[o].sum()) / max(1, o.sum()) for o in own] for c in columns]
        span_s = max(self.trace.span_s, 1.0)
        return Workload(*map(np.array, ([o.sum() / span_s for o in own], *means)))

    def _schedule_arrivals(self) -> None:
        limit_ns = round(self.spec.ttft_timeout_s * 1e9)
        for i in range(self.trace.requests):
            arrival_ns = round(float(self.trace.arrival_s[i]) * 1e9)
            self.clock.set(("arrival", i), arrival_ns, EventKind.ARRIVAL, i)
            if limit_ns > 0:
                self.clock.set(("expire", i), arrival_ns + limit_ns, EventKind.EXPIRE, i)
            result = self.results[i]
            result["arrival_ns"], result["model"] = arrival_ns, self.trace.model[i]
            result["prompt_tokens"] = self.trace.prompt_tokens[i]
            result["due_tokens"], result["first_token_ns"] = self.output_tokens[i], NONE

    @property
    def now_ns(self) -> int:
        return int(self.state.pool["now_ns"][0])

    @property
    def in_flight(self) -> int:
        return int(self.state.pool["in_flight"][0])

    def run(self, check: Any = None) -> None:
        """To the end; `check(state)` is called after each event. Raises StuckError."""
        memory = self.policy.memory(self.state)
        if isinstance(self.policy, Oracle):
            self.policy.foresee(memory, np.ascontiguousarray(self.output_tokens, np.int32))
        while True:
            entry = self._first()
            if entry is None or entry[0] > self.now_ns:
                kind, index = next_decision(self.state)
                if kind != DecisionKind.NONE:
                    self._decide(kind, index, memory)
                    if check is not None:
                        check(self.state)
                    continue
                if entry is None and self.in_flight > 0:
                    raise StuckError(f"{self.in_flight} requests wait and nothing is pending")
                if entry is None or entry[0] > self.horizon_ns:
                    break
            self._fire(entry)
            if check is not None:
                check(self.state)
            if len(self.journal) > MOST_EVENTS:
                raise StuckError(f"no end after {MOST_EVENTS} events, now {self.now_ns} ns")
        for r in np.flatnonzero(self.state.requests["phase"] != RequestPhase.FREE):
            self._keep(r)

    def _first(self) -> Any:
        """The next entry; a time limit binds only requests that wait for their first token."""
        self._resume_limits()
        while True:
            entry = self.clock.first()
            if entry is None or entry[1] < EventKind.EXPIRE:
                return entry
            if entry[1] > EventKind.EXPIRE:
                if self.in_flight > 0 or NONE in self.slot:
                    return entry
                self.clock.drop(entry[4])
                continue
            req = self.state.requests[self.slot[entry[2]]]
            has_come = self.slot[entry[2]] != NONE
            is_without = req["id"] == entry[2] and req["emitted_tokens"] == 0
            if not has_come or (is_without and req["phase"] == RequestPhase.WAITING):
                return entry
            self.clock.drop(entry[4])
            if is_without and req["phase"] == RequestPhase.RUNNING:
                self.overdue.add(entry[2])

    def _resume_limits(self) -> None:
        """A limit that passed while a turn owned its request binds once the request waits again."""
        for i in sorted(self.overdue):
            req = self.state.requests[self.slot[i]]
            if req["id"] == i and req["emitted_tokens"] == 0:
                if req["phase"] == RequestPhase.RUNNING:
                    continue
                if req["phase"] == RequestPhase.WAITING:
                    self.clock.set(("expire", i), self.now_ns, EventKind.EXPIRE, i)
            self.overdue.remove(i)

    def _fire(self, entry: Any) -> None:
        time_ns, kind, index, _, name = entry
        self.clock.drop(name)
        if kind == EventKind.ARRIVAL:
            self.slot[index] = int(self.state.pool["free_head"][0])
            event = new_event(kind, time_ns, id=index, model=self.trace.model[index])
            event["n"] = self.trace.prompt_tokens[index]
            event["tag"] = 0 if self.trace.priority is None else self.trace.priority[index]
            self._commit(event)
            return
        if kind == EventKind.EXPIRE:
            self._commit(new_event(kind, time_ns, id=index, request=self.slot[index]))
            return
        if kind > EventKind.EXPIRE:
            self._fire_script(kind, time_ns, self.script[index])
            return
        engine = self.engines[index]
        goes_on = kind == EventKind.KV_IN_DONE and engine.stage != Stage.KV_IN
        engine.ring(kind, time_ns)
        for report in engine.poll():
            self._commit(report)
        if kind == EventKind.KV_OUT_DONE:
            engine.move_out(self.outgoing(index))
        elif kind not in (EventKind.WEIGHTS_READY, EventKind.TURN_ENDED) and not goes_on:
            self._start(index)

    def _fire_script(self, kind: int, time_ns: int, row: Any) -> None:
        """Cancel a live request; fail an instance that works, return one that does not."""
        if kind == EventKind.CANCEL:
            r = self.slot[int(row["id"])]
            req = self.state.requests[r]
            is_live = r != NONE and req["id"] == row["id"] and 0 < req["phase"] < RequestPhase.DONE
            if is_live and not req["is_cancelled"]:
                self._commit(new_event(kind, time_ns, id=row["id"], request=r))
            return
        g = int(row["instance"])
        is_down = self.state.instances["stage"][g] == Stage.DOWN
        if is_down == (kind == EventKind.INSTANCE_JOINED):
            self.engines[g].fail(time_ns)
            self._commit(new_event(kind, time_ns, instance=g))

    def _decide(self, kind: int, index: int, memory: Any) -> None:
        """Ask the policy; an answer that is refused is replaced by the plainest one."""
        self.decisions += 1
        event = np.zeros(1, EVENT)
        pose(self.state, kind, index, event[0])
        self.policy.decide(self.state, kind, index, event[0], memory)
        event["time_ns"] = self.now_ns
        if self._is_answer(kind, index, event[0]):
            if self._commit(event) == Outcome.OK:
                return
        else:
            self.refused += 1
        pose(self.state, kind, index, event[0])
        event["is_fallback"] = 1
        self._commit(event)

    def _is_answer(self, kind: int, index: int, event: Any) -> bool:
        """Another question's answer, an unknown model or instance, or no time: not an answer."""
        if kind == DecisionKind.ROUTE:
            is_known = event["instance"] in range(NONE, self.spec.instances)
            return bool(event["kind"] == EventKind.ROUTE and event["request"] == index and is_known)
        if event["instance"] != index:
            return False
        if kind == DecisionKind.PREFETCH:
            is_known = event["model"] in range(NONE, len(self.models))
            return bool(event["kind"] == EventKind.PREFETCH and is_known)
        is_known = event["model"] in range(len(self.models))
        if kind == DecisionKind.INTERRUPT:
            is_stop_or_keep = event["n"] in (0, 1)
            return bool(event["kind"] == EventKind.INTERRUPT and is_known and is_stop_or_keep)
        is_turn = event["kind"] == EventKind.TURN and is_known and event["quota_ns"] > 0
        return bool(is_turn or event["kind"] == EventKind.IDLE)

    def _commit(self, events: Table) -> int:
        """Apply the events of one boundary, then carry out the commands that followed."""
        for i in range(len(events)):
            has_left = self.state.requests["list"][events["request"][i]] == NONE
            if events["kind"][i] == EventKind.FINISHED and has_left:
                continue  # cancelled at this boundary
            outcome = apply(self.state, events[i])
            if outcome != Outcome.OK:
                assert len(events) == 1
                self.refused += 1
                return int(outcome)
            self.journal.append(events[i].item())
        for i in range(int(self.state.pool["commands"][0])):
            command, index = self.state.outbox[i].item()
            if command == Command.START:
                self._start(index)
            elif command == Command.JOIN:
                self.engines[index].join(())
            elif command == Command.LOAD:
                slot = self.state.instances["loading_slot"][index]
                self.engines[index].load(int(self.state.slots["model"][index, slot]))
            elif command == Command.MOVE_OUT:
                self.engines[index].move_out(self.outgoing(index))
            elif command in (Command.SHARE_IN, Command.SHARE_OUT):
                self.engines[index].share(is_in=command == Command.SHARE_IN)
            else:
                self._keep(index)
                release(self.state, index)
        self.state.pool["commands"] = 0
        return int(Outcome.OK)

    def _start(self, g: int) -> None:
        """Give the engine the turn as the core now holds it, unless the turn is blocked."""
        inst = self.state.instances[g]
        if inst["stage"] == Stage.BLOCKED:
            return
        self.engines[g].start(
            Turn(
                instance=g,
                model=int(inst["model"]),
                quota_ns=int(inst["quota_ns"]),
                phases=int(inst["turn_phases"]),
                incoming=self._members(g, INCOMING),
                prefill=self._members(g, PREFILL),
                batch=self._members(g, BATCH),
            )
        )
        assert self.engines[g].stage == inst["stage"], "core and engine disagree on the stage"

    def outgoing(self, g: int) -> tuple[int, ...]:
        """Whose KV may leave: the host has taken them in."""
        kv = self.state.requests["kv"]
        return tuple(r for r in self._members(g, OUTGOING) if kv[r] == KvPlace.MOVING_OUT)

    def _members(self, g: int, which: int) -> tuple[int, ...]:
        lst, found = 2 * len(self.models) + LISTS_PER_INSTANCE * g + which, []
        r = int(self.state.lists["head"][lst])
        while r != NONE:
            found.append(r)
            r = int(self.state.requests["next"][r])
        return tuple(found)

    def _keep(self, r: int) -> None:
        """A request's record, from the times of its tokens."""
        req = self.state.requests[r]
        i = int(req["id"])
        times, result = self.tokens[i], self.results[i]
        slo = self.slo.of(self.trace.models[req["model"]])
        arrival_ns, ttft_ns = int(result["arrival_ns"]), round(slo.ttft_s * 1e9)
        tbt_ns = round(slo.tbt_s * 1e9)
        result["phase"], result["emitted_tokens"] = req["phase"], len(times)
        result["first_token_ns"] = times[0] if times else NONE
        result["last_token_ns"] = times[-1] if times else arrival_ns
        result["stall_ns"] = max((b - a for a, b in pairwise(times)), default=0)
        due = [arrival_ns + ttft_ns + j * tbt_ns for j in range(len(times))]
        result["on_time_tokens"] = sum(t <= d for t, d in zip(times, due, strict=True))
        if req["phase"] == RequestPhase.DONE:
            result["qos"] = qos([t - arrival_ns for t in times], ttft_ns, tbt_ns)


def qos(clocks: list[int], ttft_ns: int, tbt_ns: int) -> float:
    """The SOSP'25 artifact's covered wall time, gap by gap (its text is the reference)."""
    covered, start, held, target = 0, 0, 0, ttft_ns
    for clock in clocks:
        if clock - start <= target:
            held = target
        else:
            covered, start, held = covered + held, clock, 0
        target += tbt_ns
    covered += min(target, clocks[-1] - start)
    return covered / clocks[-1]
