"""What the page shows: one pool as plain data, from its tables and its recent past.

A pure function of its arguments. Models and instances go by their index in `models` and
`instances`; times are seconds of the pool's clock, memory bytes. `spans` are lists to be short:
[instance, kind, model, start_ms, length_ms, requests], kinds by `SPAN_KINDS`.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from runtime.core import NONE, NS, KvPlace, RequestPhase, SlotState, Stage
from runtime.pool import lists
from runtime.pool.state import LISTS_PER_INSTANCE, State, Table
from runtime.service.recent import OPEN, SHOWN_S, Recent, attainment, curves, known, rounded, share
from runtime.timeline.spans import SpanKind

SCHEMA = "aegaeon-rl/pool/1"
SPAN_KINDS = [kind.name.lower() for kind in SpanKind]


def snapshot(
    state: State,
    names: Sequence[str],
    recent: Recent,
    *,
    now_ns: int | None = None,
    status: str = "ok",
    policy: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """`now_ns`: of the pool's clock, where that is past the last event. `policy`: who is in
    charge, and how often the fallback answered, as `Decider.status` says."""
    now_ns = max(recent.now_ns, now_ns or 0)
    live = state.requests[state.requests["phase"] != RequestPhase.FREE]
    last = recent.levels[-1]
    pool = state.pool[0]
    return {
        "schema": SCHEMA,
        "time_s": rounded_s(now_ns),
        "status": status,
        "policy": dict(policy or {}),
        "models": models(state, names, live, recent, now_ns),
        "instances": [instance(state, g, recent, now_ns) for g in range(len(state.instances))],
        "nodes": nodes(state, live),
        "span_kinds": SPAN_KINDS,
        "spans": spans(recent, now_ns),
        "curves": curves(recent),
        "totals": {
            "in_flight": int(pool["in_flight"]),
            "waiting": int(pool["claimable"]),
            "tokens": int(last.emitted.sum()),
            "attainment": rounded(share(int(last.on_time.sum()), int(last.emitted.sum()))),
            "switches": int(state.instances["switches"].sum()),
            "prefetched_switches": int(state.instances["prefetched_switches"].sum()),
            "recomputed": int(pool["recomputed"]),
            **{
                phase.name.lower(): recent.ended[phase]
                for phase in (
                    RequestPhase.DONE,
                    RequestPhase.FAILED,
                    RequestPhase.CANCELLED,
                    RequestPhase.SHED,
                )
            },
        },
    }


def models(
    state: State, names: Sequence[str], live: Table, recent: Recent, now_ns: int
) -> list[dict[str, Any]]:
    """Queues by phase, and how each fares. `late`: requests whose next token is overdue now."""
    rows = state.models
    of, phase, size = live["model"], live["phase"], len(rows)
    due_ns = live["arrival_ns"] + rows["ttft_ns"][of] + live["emitted_tokens"] * rows["tbt_ns"][of]
    is_open = np.isin(phase, OPEN)
    late = np.bincount(of[is_open & (due_ns < now_ns)], minlength=size)
    counts = {p: np.bincount(of[phase == p], minlength=size) for p in OPEN}
    oldest_ns = np.full(size, now_ns)
    waits = phase == RequestPhase.WAITING
    np.minimum.at(oldest_ns, of[waits], live["arrival_ns"][waits])
    last, then = recent.levels[-1], recent.levels[0]
    shares = attainment(then, last)
    return [
        {
            "name": name,
            "waiting": int(counts[RequestPhase.WAITING][m]),
            "ready": int(counts[RequestPhase.READY][m]),
            "running": int(counts[RequestPhase.RUNNING][m]),
            "late": int(late[m]),
            "oldest_wait_s": rounded_s(now_ns - int(oldest_ns[m])),
            "attainment": rounded(known(shares[m])),
            "tokens": int(last.emitted[m]),
            "weight_bytes": int(rows["weight_bytes"][m]),
            "ttft_s": float(rows["ttft_ns"][m]) / NS,
            "tbt_s": float(rows["tbt_ns"][m]) / NS,
        }
        for m, name in enumerate(names)
    ]


def instance(state: State, g: int, recent: Recent, now_ns: int) -> dict[str, Any]:
    """`model` is the one whose turn it is, null outside a turn."""
    row, pool = state.instances[g], state.pool[0]
    stage = Stage(int(row["stage"]))
    first = 2 * len(state.models) + LISTS_PER_INSTANCE * g
    count = state.lists["count"]
    held: list[dict[str, Any]] = [
        {"model": int(slot["model"]), "state": SlotState(int(slot["state"])).name.lower()}
        for slot in state.slots[g]
        if slot["state"] != SlotState.EMPTY
    ]
    sizes = state.models["weight_bytes"]
    weights = sum(int(sizes[slot["model"]]) for slot in held)
    model = int(row["model"])
    return {
        "stage": stage.name.lower(),
        "since_s": rounded_s(int(recent.since_ns[g])),
        "model": model if stage >= Stage.COMMANDED and model != NONE else None,
        "batch": int(count[first + lists.BATCH]),
        "prefill": int(count[first + lists.PREFILL]),
        "held": held,
        "weight_bytes": weights,
        "weight_budget_bytes": max(int(pool["weight_budget_bytes"]), weights),
        "kv_used_bytes": int(row["kv_used_bytes"]),
        "kv_bytes": kv_capacity(state, model),
        "memory_bytes": int(pool["vram_bytes"]),
        "node": int(row["node"]),
        "epoch": int(row["epoch"]),
        "switches": int(row["switches"]),
        "busy": rounded(share(int(row["busy_ns"]), now_ns)),
    }


def kv_capacity(state: State, model: int) -> int:
    """KV bytes of an instance beside the weights of `model`."""
    pool = state.pool[0]
    reserved = int(pool["reserved_bytes"])
    if reserved == 0 and model != NONE:
        reserved = int(state.models["weight_bytes"][model])
    return int(pool["kv_fraction"] * (pool["vram_bytes"] - reserved))


def nodes(state: State, live: Table) -> list[dict[str, Any]]:
    in_host = np.isin(live["kv"], (KvPlace.HOST, KvPlace.MOVING_IN, KvPlace.MOVING_OUT))
    held = np.bincount(np.maximum(live["node"][in_host], 0), minlength=len(state.nodes))
    return [
        {
            "kv_used_bytes": int(row["host_kv_used_bytes"]),
            "kv_bytes": int(row["host_kv_bytes"]),
            "kv_requests": int(held[d]),
            "weight_used_bytes": int(row["host_weight_used_bytes"]),
            "weight_bytes": int(row["host_weight_bytes"]),
        }
        for d, row in enumerate(state.nodes)
    ]


def spans(recent: Recent, now_ns: int) -> list[list[int]]:
    """Those that reach into the last SHOWN_S seconds, and what is under way."""
    from_ns = now_ns - SHOWN_S * NS
    shown = [span for span in recent.spans if span.end_ns > from_ns]
    return [
        [g, kind, model, start_ns // MS, (end_ns - start_ns + MS // 2) // MS, n]
        for g, kind, model, start_ns, end_ns, n in [*shown, *recent.open_spans(now_ns)]
    ]


MS = NS // 1000


def rounded_s(time_ns: int | npt.NDArray[np.int64]) -> float:
    return round(int(time_ns) / NS, 3)
