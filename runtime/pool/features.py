"""What a policy sees: F numbers per candidate row, I per instance, C for the pool.

Scaled by SLOs and capacities, clipped, and versioned by `SPEC_HASH` over names, order, units,
scales and clips: a policy refuses a spec it was not trained on. No time of day (a policy would
memorise days) and no output length (nobody knows it). The same functions feed training and
production.
"""

import hashlib
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from runtime.compiled import inner, kernel
from runtime.core import FOREVER_NS, NONE, DecisionKind, Stage
from runtime.pool import lists
from runtime.pool.costs import load_left_ns, prefill_s, switch_left_ns
from runtime.pool.memory import capacity_bytes, context_tokens, kv_bytes
from runtime.pool.open_work import next_deadline_ns
from runtime.pool.state import State
from runtime.pool.transitions import RATE_TAU_S
from runtime.pool.turns import is_claimable
from runtime.pool.weights import slot_of


class Feature(NamedTuple):
    """A number of an observation: a quantity in `unit`, divided by `scale`, clipped to low..high.
    In a scale, TTFT is the model's own target in s, and capacities are those of the hardware."""

    name: str
    unit: str
    scale: str
    low: float
    high: float
    meaning: str


ROW_FEATURES = (
    Feature("slack_min", "s", "TTFT", 0, 4, "least slack after the switch, of those on time"),
    Feature("all_late", "flag", "1", 0, 1, "no open request can still meet its next deadline"),
    Feature("slack_mean", "s", "TTFT", -2, 2, "mean slack after the switch"),
    Feature("late_share", "share", "1", 0, 1, "share of open requests that will be late"),
    Feature("waiting", "requests", "8", 0, 4, "open requests that need a prefill"),
    Feature("ready", "requests", "8", 0, 4, "open requests with KV"),
    Feature("oldest_wait", "s", "TTFT", 0, 4, "age of the oldest open request"),
    Feature("unserved", "s", "TTFT", 0, 4, "time its work has waited for a turn"),
    Feature("switch_left", "s", "1", 0, 4, "time until its weights could be in place"),
    Feature("is_loaded", "flag", "1", 0, 1, "active on the instance"),
    Feature("is_prefetched", "flag", "1", 0, 1, "in another slot of it, or being loaded there"),
    Feature("running_elsewhere", "instances", "1", 0, 2, "instances that run it now"),
    Feature("prefetched_elsewhere", "instances", "1", 0, 2, "other instances that prefetched it"),
    Feature("rate", "requests/s", "8 / TTFT", 0, 4, "arrival rate, decaying mean over 60 s"),
    Feature("kv_need", "bytes", "KV capacity", 0, 2, "KV of its open requests"),
    Feature("prefill_time", "s", "TTFT", 0, 2, "predicted, of what waits (on the first GPU type)"),
)
INSTANCE_FEATURES = (
    Feature("is_turn", "flag", "1", 0, 1, "the decision is a TURN"),
    Feature("is_prefetch", "flag", "1", 0, 1, "the decision is a PREFETCH"),
    Feature("kv_free", "bytes", "KV capacity", 0, 1, "free KV memory under the active model"),
    Feature("has_model", "flag", "1", 0, 1, "a model is active"),
    Feature("batch", "requests", "8", 0, 4, "requests its present turn decodes"),
    Feature("load_left", "s", "1", 0, 4, "rest of the load under way"),
    Feature("compute", "s", "TTFT", 0, 4, "compute time since its last switch"),
    Feature("can_prefill", "flag", "1", 0, 1, "its role includes prefill"),
)
POOL_FEATURES = (
    Feature("claimable", "requests", "8 an instance", 0, 4, "open requests"),
    Feature("in_flight", "requests", "16 an instance", 0, 4, "all live requests"),
    Feature("busy", "share", "1", 0, 1, "share of instances in a turn"),
    Feature("open_models", "models", "instances", 0, 4, "models with open work"),
    Feature("overflow", "models", "8", 0, 4, "open models beyond the rows"),
    Feature("host_kv", "bytes", "host KV capacity", 0, 1, "fullest node's share of host KV memory"),
    Feature("prefetching", "share", "1", 0, 1, "share of instances with a load under way"),
    Feature("rate", "requests/s", "1 an instance", 0, 4, "arrival rate over all models"),
)


def spec_hash(version: int, *groups: tuple[Feature, ...]) -> str:
    """Of the version and of all but the meanings: a better wording makes no other spec."""
    stated = [[feature[:-1] for feature in group] for group in groups]
    return hashlib.sha256(repr((version, stated)).encode()).hexdigest()[:16]


SPEC_VERSION = 1  # grows when a number is computed otherwise, though its description is the same
SPEC_HASH = spec_hash(SPEC_VERSION, ROW_FEATURES, INSTANCE_FEATURES, POOL_FEATURES)
RATE = [feature.name for feature in ROW_FEATURES].index("rate")
F, I, C = len(ROW_FEATURES), len(INSTANCE_FEATURES), len(POOL_FEATURES)
LOW = np.array([f.low for f in ROW_FEATURES + INSTANCE_FEATURES + POOL_FEATURES], np.float32)
HIGH = np.array([f.high for f in ROW_FEATURES + INSTANCE_FEATURES + POOL_FEATURES], np.float32)
Vector = npt.NDArray[np.float32]


@inner
def clip(value: float, low: float, high: float) -> float:
    return min(max(value, low), high)


@kernel
def row_features(state: State, g: int, m: int, out: Vector) -> None:
    """Features [F] of model m as a candidate on g."""
    work_features(state, g, m, out)
    out[RATE] = rate_feature(state, m)


@inner
def rate_feature(state: State, m: int) -> float:
    """Apart from the others, since it alone costs an exponential."""
    model = state.models[m]
    idle_s = (state.pool[0].now_ns - model.rate_at_ns) / 1e9
    rate_rps = model.rate_rps * np.exp(-idle_s / RATE_TAU_S)
    return clip(rate_rps * model.ttft_ns / 8e9, 0.0, 4.0)


@inner
def work_features(state: State, g: int, m: int, out: Vector) -> None:
    """All of `row_features` but the rate."""
    inst, model, now = state.instances[g], state.models[m], state.pool[0].now_ns
    per_ttft, is_loaded = 1.0 / model.ttft_ns, inst.model == m
    s = slot_of(state, g, m)
    is_ahead = 1 if s != NONE and state.slots[g, s].is_ahead != 0 else 0
    switch = 0 if is_loaded else switch_left_ns(state, g, m, s)
    _open_features(state, g, m, now + switch, per_ttft, out)
    out[7] = clip((now - min(now, model.waiting_since_ns)) * per_ttft, 0.0, 4.0)
    out[8] = clip(switch * 1e-9, 0.0, 4.0)
    out[9] = 1.0 if is_loaded else 0.0
    out[10] = 1.0 if s != NONE and not is_loaded else 0.0
    out[11] = clip(model.running_on - (1 if _runs(state, g, m) else 0), 0.0, 2.0)
    out[12] = clip(model.prefetched_on - is_ahead, 0.0, 2.0)


@inner
def _runs(state: State, g: int, m: int) -> bool:
    return bool(state.instances[g].stage >= Stage.COMMANDED and state.instances[g].model == m)


@inner
def _open_features(
    state: State, g: int, m: int, start_ns: int, per_ttft: float, out: Vector
) -> None:
    """Features of the open requests of m that g may take: 0-6, 14, 15."""
    model = state.models[m]
    ready = lists.count(state, lists.ready_list(state, m))
    waiting = lists.count(state, lists.waiting_list(state, m))
    oldest, kv, seconds = model.oldest_ns, model.open_kv_bytes, model.waiting_s
    late, least, total = 0, model.urgent_ns - start_ns, model.deadline_sum_ns
    if model.bound > 0:
        ready, waiting, oldest, kv, seconds = _claimable_work(state, g, m)
    if model.bound > 0 or model.urgent_ns < start_ns:
        late, least, total = _claimable_slack(state, g, m, start_ns)
    count = max(1, ready + waiting)
    out[0] = 0.0 if late == ready + waiting else min(least * per_ttft, 4.0)
    out[1] = 1.0 if late == ready + waiting else 0.0
    out[2] = clip((total / count - start_ns) * per_ttft, -2.0, 2.0)
    out[3] = late / count
    out[4] = min(waiting * 0.125, 4.0)
    out[5] = min(ready * 0.125, 4.0)
    out[6] = clip((state.pool[0].now_ns - oldest) * per_ttft, 0.0, 4.0)
    out[14] = min(kv / capacity_bytes(state, m), 2.0)
    out[15] = clip(seconds * 1e9 * per_ttft, 0.0, 2.0)  # a kept sum: rounding may pass zero


@inner
def _claimable_work(state: State, g: int, m: int) -> tuple[int, int, int, int, float]:
    """Of the open requests of m that g may take: ready and waiting ones, oldest arrival, KV bytes,
    predicted prefill time."""
    cost, oldest = state.costs[0, m], state.pool[0].now_ns
    ready, waiting, kv, seconds = 0, 0, 0, 0.0
    for part in range(2):
        r = lists.first(state, lists.open_list(state, m, part))
        while r >= 0:
            if is_claimable(state, g, r):
                oldest = min(oldest, state.requests[r].arrival_ns)
                kv += kv_bytes(state, r)
                if part == 0:
                    waiting += 1
                    seconds += prefill_s(cost, context_tokens(state, r))
                else:
                    ready += 1
            r = state.requests[r].next
    return ready, waiting, oldest, kv, seconds


@inner
def _claimable_slack(state: State, g: int, m: int, start_ns: int) -> tuple[int, int, float]:
    """Of the open requests of m that g may take: how many are late at `start_ns`, the least slack
    of the others, the sum of deadlines."""
    late, least, total = 0, FOREVER_NS, 0.0
    for part in range(2):
        r = lists.first(state, lists.open_list(state, m, part))
        while r >= 0:
            if is_claimable(state, g, r):
                due_ns = next_deadline_ns(state, r)
                total += float(due_ns)
                if due_ns < start_ns:
                    late += 1
                else:
                    least = min(least, due_ns - start_ns)
            r = state.requests[r].next
    return late, least, total


@kernel
def instance_features(state: State, kind: int, g: int, out: Vector) -> None:
    """Features [I] of the instance that decides."""
    inst = state.instances[g]
    out[0] = 1.0 if kind == DecisionKind.TURN else 0.0
    out[1] = 1.0 if kind == DecisionKind.PREFETCH else 0.0
    out[2], out[6] = 1.0, 0.0
    if inst.model >= 0:
        capacity = capacity_bytes(state, inst.model)
        out[2] = clip(1.0 - inst.kv_used_bytes / capacity, 0.0, 1.0)
        out[6] = clip(inst.compute_ns / state.models[inst.model].ttft_ns, 0.0, 4.0)
    out[3] = 1.0 if inst.model >= 0 else 0.0
    size = lists.count(state, lists.instance_list(state, g, lists.BATCH))
    out[4] = clip(size / 8.0, 0.0, 4.0)
    out[5] = clip(load_left_ns(state, g) / 1e9, 0.0, 4.0) if inst.loading_slot >= 0 else 0.0
    out[7] = 1.0 if inst.role & 1 else 0.0


@kernel
def pool_features(state: State, overflow: int, out: Vector) -> None:
    """Features [C] of the whole pool."""
    pool, n = state.pool[0], state.instances.shape[0]
    loading = 0
    for g in range(n):
        loading += 1 if state.instances[g].loading_slot >= 0 else 0
    rate = pool.rate_rps * np.exp(-(pool.now_ns - pool.rate_at_ns) / 1e9 / RATE_TAU_S)
    fullest = 0.0
    for d in range(state.nodes.shape[0]):
        if state.nodes[d].host_kv_bytes > 0:
            share = state.nodes[d].host_kv_used_bytes / state.nodes[d].host_kv_bytes
            fullest = max(fullest, share)
    out[0] = clip(pool.claimable / (8.0 * n), 0.0, 4.0)
    out[1] = clip(pool.in_flight / (16.0 * n), 0.0, 4.0)
    out[2] = pool.occupied / n
    out[3] = clip(pool.open_models / n, 0.0, 4.0)
    out[4] = clip(overflow / 8.0, 0.0, 4.0)
    out[5] = clip(fullest, 0.0, 1.0)
    out[6] = loading / n
    out[7] = clip(rate / n, 0.0, 4.0)
