"""`check_integrity`: plain NumPy proof that the tables of one pool agree with each other.

What the transitions keep by adding and subtracting is counted again here from the requests, one
function per law. It holds after every event, before or after the outbox is drained.
Letters as in state.py.
"""

from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from runtime.core import (
    FOREVER_NS,
    NONE,
    NS,
    Command,
    KvPlace,
    Phases,
    RequestPhase,
    SlotState,
    Stage,
)
from runtime.pool.bits import WORD
from runtime.pool.costs import prefill_s
from runtime.pool.lists import BATCH, INCOMING, OUTGOING, PREFILL
from runtime.pool.state import LISTS_PER_INSTANCE, State
from runtime.pool.transitions import RATE_TAU_S

Array = npt.NDArray[Any]

WAITING, READY, ROUTING = (LISTS_PER_INSTANCE + i for i in range(3))  # beside an instance's lists
LIVE = (RequestPhase.WAITING, RequestPhase.READY, RequestPhase.RUNNING)
ON_DEVICE = (KvPlace.DEVICE, KvPlace.MOVING_OUT, KvPlace.MOVING_IN)
ON_HOST = (KvPlace.HOST, KvPlace.MOVING_OUT, KvPlace.MOVING_IN)
ALLOWED = {  # kind of list: (phase, KV place) of its members
    WAITING: ((RequestPhase.WAITING, KvPlace.NOWHERE),),
    READY: ((RequestPhase.READY, KvPlace.DEVICE), (RequestPhase.READY, KvPlace.HOST)),
    PREFILL: ((RequestPhase.RUNNING, KvPlace.NOWHERE),),
    BATCH: ((RequestPhase.RUNNING, KvPlace.DEVICE),),
    INCOMING: (
        (RequestPhase.RUNNING, KvPlace.MOVING_IN),
        (RequestPhase.RUNNING, KvPlace.DEVICE),  # it joins the batch at the next boundary
    ),
    OUTGOING: (
        (RequestPhase.READY, KvPlace.MOVING_OUT),
        (RequestPhase.READY, KvPlace.DEVICE),  # queued: the host has no room yet
    ),
    ROUTING: ((RequestPhase.WAITING, KvPlace.NOWHERE), (RequestPhase.READY, KvPlace.HOST)),
}
STAGE_NEEDS = {Stage.KV_IN: INCOMING, Stage.PREFILL: PREFILL, Stage.DECODE: BATCH}


class IntegrityError(AssertionError):
    """Two places that must agree do not: one line with table, row, column and both values."""


class View:
    """What the laws share: each request's kind of list [N], its model or instance, its bytes."""

    def __init__(self, state: State) -> None:
        m, g = np.arange(len(state.models)), np.arange(len(state.instances))
        turn_kinds = np.tile(np.arange(LISTS_PER_INSTANCE), len(g))
        kinds = np.concatenate([m * 0 + WAITING, m * 0 + READY, turn_kinds, [ROUTING, NONE]])
        owners = np.concatenate([m, m, np.repeat(g, LISTS_PER_INSTANCE), [NONE, NONE]])
        self.state, self.requests = state, state.requests
        self.pool, self.instances = state.pool[0], state.instances
        self.kind, self.owner = kinds[state.requests["list"]], owners[state.requests["list"]]
        self.is_open = (self.kind == WAITING) | (self.kind == READY)
        self.in_turn = np.isin(self.kind, (PREFILL, BATCH, INCOMING))
        self.context = state.requests["prompt_tokens"] + state.requests["emitted_tokens"]
        self.kv_bytes = self.bytes_for(self.context)
        reserved = self.pool["reserved_bytes"]
        weights = np.append(state.models["weight_bytes"], state.models["weight_bytes"].min())
        held = self.pool["vram_bytes"] - np.where(reserved > 0, reserved, weights)
        self.capacity = (self.pool["kv_fraction"] * held).astype(np.int64)  # [M + 1]; last: most

    def bytes_for(self, tokens: Array) -> Array:
        blocks = -(-tokens // self.pool["block_tokens"])
        return blocks * self.state.models["block_bytes"].take(self.requests["model"], mode="clip")

    def total(self, index: Array, mask: Array, values: Array | int, size: int) -> Array:
        """Sum of `values` [N] where `mask`, for each value 0..size-1 of `index`."""
        sums = np.zeros(size, np.int64)
        np.add.at(sums, index[mask], np.broadcast_to(values, mask.shape)[mask])
        return sums

    def on_device(self, mask: Array, values: Array | int) -> Array:
        """Sum of `values` per instance [G] over requests that it owns."""
        return self.total(self.requests["instance"], mask, values, len(self.instances))


def fail(table: str, row: object, column: str, found: object, expected: object) -> None:
    raise IntegrityError(f"{table}[{row}].{column} is {found}, expected {expected}")


def equal(table: str, column: str, found: Any, expected: Any, where: Any = True) -> None:
    """`found` equals `expected` in each row that `where` selects."""
    found, expected, where = np.broadcast_arrays(found, expected, where)
    for row in np.argwhere((found != expected) & where)[:1]:
        at = tuple(row)
        fail(table, ", ".join(map(str, row)), column, found[at], expected[at])


def within(table: str, column: str, found: Any, low: Any, high: Any, where: Any = True) -> None:
    """`low` <= `found` <= `high` in each row that `where` selects."""
    found, low, high, where = np.broadcast_arrays(found, low, high, where)
    for row in np.argwhere(((found < low) | (found > high)) & where)[:1]:
        at = tuple(row)
        fail(table, ", ".join(map(str, row)), column, found[at], f"{low[at]}..{high[at]}")


def check_lists(state: State) -> None:
    """Links run both ways; each live request is in the one list it names, others in none."""
    following, before = state.requests["next"].tolist(), state.requests["prev"].tolist()
    holder = np.full(len(following), NONE)
    for lst, (head, tail, count) in enumerate(state.lists.tolist()):
        last, r, length = NONE, head, 0
        while r != NONE:
            table, row, column = (
                ("lists", lst, "head") if last == NONE else ("requests", last, "next")
            )
            if not 0 <= r < len(following) or holder[r] != NONE:
                fail(table, row, column, r, "the slot of a request in no other place")
            if before[r] != last:
                fail("requests", r, "prev", before[r], last)
            holder[r], last, r, length = lst, r, following[r], length + 1
        if tail != last:
            fail("lists", lst, "tail", tail, last)
        if count != length:
            fail("lists", lst, "count", count, length)
    equal("requests", "list", state.requests["list"], holder)
    within("requests", "phase", state.requests["phase"], 0, max(RequestPhase))
    is_live = np.isin(state.requests["phase"], LIVE)
    equal("requests", "phase in LIVE", is_live, holder != NONE)


def check_order(view: View) -> None:
    """Where turns and the router look, requests are in order of (-priority, arrival, id)."""
    requests = view.requests
    rows = np.flatnonzero((view.is_open | (view.kind == ROUTING)) & (requests["next"] != NONE))
    for r, after in zip(rows.tolist(), requests["next"][rows].tolist(), strict=True):
        keys = [
            (-int(requests["priority"][i]), int(requests["arrival_ns"][i]), int(requests["id"][i]))
            for i in (r, after)
        ]
        if keys[0] >= keys[1]:
            fail("requests", r, "next", after, f"a request after {keys[0]}, not {keys[1]}")


def check_free_chain(state: State) -> None:
    """The free chain runs through exactly the FREE slots, each once."""
    following = state.requests["next"].tolist()
    is_chained = np.zeros(len(following), bool)
    r = int(state.pool["free_head"][0])
    while r != NONE:
        if not 0 <= r < len(following) or is_chained[r]:
            fail("pool", 0, "free_head", r, "a chain of free slots, each once")
        is_chained[r], r = True, following[r]
    is_free = state.requests["phase"] == RequestPhase.FREE
    equal("requests", "phase == FREE", is_free, is_chained)
    equal("pool", "in_flight", state.pool["in_flight"], np.count_nonzero(~is_free))


def check_phases(view: View) -> None:
    """A request's list fixes its phase and where its KV may be; outside lists it has none."""
    requests = view.requests
    for kind, allowed in ALLOWED.items():
        for row in np.flatnonzero(view.kind == kind):
            phase, kv = int(requests["phase"][row]), int(requests["kv"][row])
            if (phase, kv) not in allowed:
                names = " or ".join(f"{p.name}, {k.name}" for p, k in allowed)
                fail("requests", row, "phase, kv", f"{phase}, {kv}", names)
    equal("requests", "kv", requests["kv"], KvPlace.NOWHERE, view.kind == NONE)
    may_linger = view.in_turn | (view.kind == OUTGOING)
    equal(
        "requests", "is_cancelled", requests["is_cancelled"], 0, (view.kind != NONE) & ~may_linger
    )


def check_owners(view: View) -> None:
    """`model`, `instance` and `node` say what the list and the KV place say."""
    requests, instances, state = view.requests, view.instances, view.state
    live, kv = view.kind != NONE, requests["kv"]
    within("requests", "model", requests["model"], 0, len(state.models) - 1, live)
    equal("requests", "model", requests["model"], view.owner, view.is_open)
    by_turn = view.in_turn | (view.kind == OUTGOING)
    equal("requests", "instance", requests["instance"], view.owner, by_turn)
    resident = (view.kind == READY) & (kv == KvPlace.DEVICE)
    within("requests", "instance", requests["instance"], 0, len(instances) - 1, resident)
    equal("requests", "instance", requests["instance"], NONE, live & ~by_turn & ~resident)
    of_instance = instances["model"][requests["instance"]]
    stays = (view.pool["kv_stays"] != 0) | (view.pool["host_kv_waits"] != 0)
    bound = view.in_turn | (resident & ~stays)
    equal("requests", "model", requests["model"], of_instance, bound)
    on_host = live & np.isin(kv, ON_HOST)
    within("requests", "node", requests["node"], 0, len(state.nodes) - 1, on_host)
    near = instances["node"][requests["instance"]]
    equal("requests", "node", requests["node"], near, kv == KvPlace.MOVING_OUT)


def check_routes(view: View) -> None:
    """A pull pool routes nothing; in a push pool open requests have a live instance."""
    routes, is_push = view.requests["route"], view.pool["is_push"] != 0
    live = view.kind != NONE
    equal("requests", "route", routes, NONE, live & (~is_push | (view.kind == ROUTING)))
    within("requests", "route", routes, 0, len(view.instances) - 1, view.is_open & is_push)
    if view.pool["is_push"] == 0:
        equal("lists", "count", view.state.lists["count"][-1:], 0)
    routed = view.total(routes, view.is_open & (routes >= 0), 1, len(view.instances))
    equal("instances", "routed", view.instances["routed"], routed)


def check_tokens(view: View) -> None:
    """Token counts and times are in order; KV exists only after a first token."""
    requests, used = view.requests, view.requests["phase"] != RequestPhase.FREE
    emitted, now = requests["emitted_tokens"], view.pool["now_ns"]
    within("requests", "on_time_tokens", requests["on_time_tokens"], 0, emitted, used)
    within("requests", "emitted_tokens", emitted, 1, FOREVER_NS, used & (requests["kv"] != 0))
    partial = requests["prefilled_tokens"]
    equal("requests", "prefilled_tokens", partial, 0, used & (view.kind != PREFILL))
    within("requests", "prefilled_tokens", partial, 0, view.context - 1, view.kind == PREFILL)
    first, last = requests["first_token_ns"], requests["last_token_ns"]
    equal("requests", "first_token_ns", first, NONE, used & (emitted == 0))
    within("requests", "first_token_ns", first, requests["arrival_ns"], last, used & (emitted > 0))
    within("requests", "last_token_ns", last, requests["arrival_ns"], now, used)


def check_device_memory(view: View) -> None:
    """KV bytes of an instance: whole blocks of all it holds, moves in flight, prefill room."""
    instances, kv = view.instances, view.requests["kv"]
    promised, outgoing = instances["kv_promised_bytes"], kv == KvPlace.MOVING_OUT
    held = view.on_device(np.isin(kv, ON_DEVICE), view.kv_bytes)
    held += view.on_device(view.kind == PREFILL, view.bytes_for(view.context + 1))
    equal("instances", "kv_used_bytes", instances["kv_used_bytes"], held - promised)
    leaving = view.on_device(outgoing, view.kv_bytes)
    equal("instances", "outgoing_bytes", instances["outgoing_bytes"], leaving)
    is_queued = (view.kind == OUTGOING) & ~outgoing
    queued = view.on_device(is_queued, view.kv_bytes)
    equal("instances", "queued_bytes", instances["queued_bytes"], queued)
    equal("pool", "queued", view.pool["queued"], np.count_nonzero(is_queued))
    before = view.requests["prev"]
    equal("requests", "kv before", kv[before], KvPlace.MOVING_OUT, outgoing & (before != NONE))
    blocked = np.isin(instances["stage"], (Stage.COMMANDED, Stage.BLOCKED)) & (leaving > 0)
    within("instances", "kv_promised_bytes", promised, 0, np.where(blocked, FOREVER_NS, 0))
    capacity = view.capacity[instances["model"]]  # no model: the last, the largest
    within("instances", "kv_used_bytes", held - leaving, 0, capacity)
    within("instances", "kv_used_bytes", instances["kv_used_bytes"], 0, view.capacity.max())
    context = view.on_device(view.kind == BATCH, view.context)
    equal("instances", "batch_context_tokens", instances["batch_context_tokens"], context)


def check_links(view: View) -> None:
    """A way in carries KV or a load, never both; a port counts the transfers of its instances."""
    instances, links = view.instances, view.state.links
    moving, has_load = instances["moving_in"], instances["load_since_ns"] >= 0
    is_there = (view.kind == INCOMING) & (view.requests["kv"] == KvPlace.DEVICE)
    overlaps, stage = view.pool["kv_in_overlaps"] != 0, instances["stage"]
    incoming = view.on_device((view.kind == INCOMING) & ~is_there, 1)
    within("instances", "moving_in", moving, 0, incoming)
    works = np.isin(stage, (Stage.PREFILL, Stage.DECODE)) & overlaps
    equal("instances", "moving_in > 0", moving > 0, stage == Stage.KV_IN, ~works)
    waits = view.on_device(is_there, 1)
    within(
        "instances", "requests with KV that wait to join", waits, 0, np.where(works, FOREVER_NS, 0)
    )
    carries_load = (instances["loading_slot"] != NONE) & (moving == 0)
    equal("instances", "load_since_ns >= 0", has_load, carries_load)
    flows = ((moving > 0) | has_load, instances["outgoing_bytes"] > 0)
    for column, is_flowing in zip(("in_flows", "out_flows"), flows, strict=True):
        counted = view.total(instances["port"], is_flowing, 1, len(links))
        equal("links", column, links[column], counted)


def check_host_memory(view: View) -> None:
    """Host bytes of a node: the KV it holds or receives, and the weights it caches."""
    state, nodes = view.state, view.state.nodes
    on_host = np.isin(view.requests["kv"], ON_HOST)
    held = view.total(view.requests["node"], on_host, view.kv_bytes, len(nodes))
    equal("nodes", "host_kv_used_bytes", nodes["host_kv_used_bytes"], held)
    within("nodes", "host_kv_used_bytes", held, 0, nodes["host_kv_bytes"])
    cached = (state.hosted["is_cached"] != 0) @ state.models["weight_bytes"]
    equal("nodes", "host_weight_used_bytes", nodes["host_weight_used_bytes"], cached)
    within("nodes", "host_weight_used_bytes", cached, 0, nodes["host_weight_bytes"])


def check_models(view: View) -> None:
    """The counters of open requests, turns and prefetches; FOREVER exactly without open work."""
    models, instances, slots = view.state.models, view.instances, view.state.slots
    m = np.arange(len(models))[:, None]
    equal("pool", "claimable", view.pool["claimable"], np.count_nonzero(view.is_open))
    is_cancelled = (view.kind != NONE) & (view.requests["is_cancelled"] != 0)
    equal("pool", "cancelling", view.pool["cancelling"], np.count_nonzero(is_cancelled))
    is_ranked = view.is_open & (view.requests["priority"] != 0)
    equal("pool", "ranked", view.pool["ranked"], np.count_nonzero(is_ranked))
    running = (instances["model"] == m) & (instances["stage"] >= Stage.COMMANDED)
    equal("models", "running_on", models["running_on"], running.sum(1))
    ahead = (slots["model"].ravel() == m) & (slots["is_ahead"].ravel() != 0)
    equal("models", "prefetched_on", models["prefetched_on"], ahead.sum(1))
    open_count = view.total(view.requests["model"], view.is_open, 1, len(models))
    since = models["waiting_since_ns"]
    equal("models", "waiting_since_ns", since, FOREVER_NS, open_count == 0)
    asks, latest = models["asks_ns"], view.pool["asks_ns"]
    within("models", "asks_ns", asks, NONE, latest)
    within("pool", "asks_ns", latest, NONE, view.pool["now_ns"])
    within("models", "waiting_since_ns", since, 0, view.pool["now_ns"], open_count > 0)


def check_rate(view: View) -> None:
    """The pool's arrival rate is the sum of its models', decayed to its last arrival."""
    models, pool = view.state.models, view.pool
    gap_s = (pool["rate_at_ns"] - models["rate_at_ns"]) / NS
    rate = np.sum(models["rate_rps"] * np.exp(-gap_s / RATE_TAU_S))
    equal("pool", "rate_rps", np.isclose(pool["rate_rps"], rate), True)


def check_open_work(view: View) -> None:
    """Each model's sums over its open requests, and the order of the models that have any."""
    state, requests, models = view.state, view.requests, view.state.models
    count = int(view.pool["open_models"])
    order = state.open_models[:count]
    equal("models", "is_stale", models["is_stale"], 0)
    place = np.full(len(models), NONE)
    place[order] = np.arange(count)
    equal("models", "place", models["place"], place)
    keys = [(int(models["urgent_ns"][m]), int(m)) for m in order]
    for i in np.flatnonzero(np.array([a > b for a, b in pairwise(keys)]))[:1]:
        fail("open_models", int(i) + 1, "key", keys[i + 1], f"more than {keys[i]}")
    due = requests["arrival_ns"] + models["ttft_ns"].take(requests["model"], mode="clip")
    due = due + requests["emitted_tokens"] * models["tbt_ns"].take(requests["model"], mode="clip")
    bound = requests["kv"] == KvPlace.DEVICE
    bound |= (requests["kv"] == KvPlace.HOST) & (view.pool["network_bytes_s"] <= 0)
    bound |= view.pool["is_push"] != 0
    for column, start, fold, values in (
        ("urgent_ns", FOREVER_NS, np.minimum, due),
        ("oldest_ns", FOREVER_NS, np.minimum, requests["arrival_ns"]),
        ("open_kv_bytes", 0, np.add, view.kv_bytes),
        ("bound", 0, np.add, bound.astype(np.int64)),
    ):
        folded = np.full(len(models), start)
        fold.at(folded, requests["model"][view.is_open], values[view.is_open])
        equal("models", column, models[column], folded)
    mean = np.zeros(len(models))
    np.add.at(mean, requests["model"][view.is_open], due[view.is_open].astype(float))
    equal("models", "deadline_sum_ns", np.isclose(models["deadline_sum_ns"], mean), True)
    seconds = np.zeros(len(models))
    for r in np.flatnonzero(view.kind == WAITING):
        m = requests["model"][r]
        seconds[m] += prefill_s(state.costs[0, m], view.context[r])
    equal("models", "waiting_s", np.isclose(models["waiting_s"], seconds), True)


def check_occupancy(view: View) -> None:
    """The sets of vacant instances, and of those in a turn by model."""
    instances, stage = view.instances, view.instances["stage"]
    vacant = [int(view.state.vacant[g // WORD] >> (g % WORD) & 1) for g in range(len(instances))]
    equal("instances", "is vacant", vacant, np.isin(stage, (Stage.FREE, Stage.IDLE)))
    equal("pool", "occupied", view.pool["occupied"], np.count_nonzero(stage >= Stage.COMMANDED))
    for m, head in enumerate(view.state.models["running_head"].tolist()):
        found: list[int] = []
        g = head
        while g != NONE and len(found) <= len(instances):
            found.append(g)
            g = int(instances["next_running"][g])
        running = np.flatnonzero((instances["model"] == m) & (stage >= Stage.COMMANDED))
        if sorted(found) != running.tolist():
            fail("models", m, "instances in a turn of it", found, running.tolist())


def check_slots(view: View) -> None:
    """A model is at most once on an instance, within the weight budget; the loading slot loads; the
    active one is its own."""
    instances, slots = view.instances, view.state.slots
    held, state, index = slots["model"], slots["state"], np.arange(slots.shape[1])
    active, loading = instances["active_slot"], instances["loading_slot"]
    for s in index:
        twin = (held == held[:, s : s + 1]) & (held != NONE) & (index != s)
        equal("slots", "model", held, NONE, twin)
    equal("slots", "state", state == SlotState.EMPTY, held == NONE)
    sizes = np.where(held == NONE, 0, view.state.models["weight_bytes"][held])
    budget = view.pool["weight_budget_bytes"]
    within("slots", "weight_bytes", sizes.sum(1), 0, budget)
    equal("slots", "state", state == SlotState.LOADING, index == loading[:, None])
    equal("slots", "is_ahead", slots["is_ahead"], 0, (held == NONE) | (index == active[:, None]))
    within("instances", "load_left_ns", instances["load_left_ns"], 0, FOREVER_NS, loading != NONE)
    own = held[np.arange(len(instances)), active]
    equal("instances", "active_slot", active == NONE, instances["model"] == NONE)
    equal("instances", "model", instances["model"], own, active != NONE)
    ready = state[np.arange(len(instances)), active]
    in_place = instances["stage"] > Stage.COMMANDED
    equal("instances", "active_slot's state", ready, SlotState.READY, in_place)


def check_stages(view: View) -> None:
    """A stage has its work; without a turn nothing is owned, and a DOWN instance has nothing."""
    instances, stage = view.instances, view.instances["stage"]
    within("instances", "stage", stage, 0, max(Stage))
    for needed, kind in STAGE_NEEDS.items():
        size = view.on_device(view.kind == kind, 1)
        within("instances", f"{needed.name} requests", size, 1, FOREVER_NS, stage == needed)
    leaving = instances["outgoing_bytes"]
    within("instances", "outgoing_bytes", leaving, 1, FOREVER_NS, stage == Stage.BLOCKED)
    owned = view.on_device(view.in_turn, 1)
    equal("instances", "owned requests", owned, 0, stage < Stage.COMMANDED)
    down = stage == Stage.DOWN
    for column, rest in (("kv_used_bytes", 0), ("model", NONE), ("loading_slot", NONE)):
        equal("instances", column, instances[column], rest, down)
    role = instances["role"]
    equal("instances", "turn_phases", instances["turn_phases"] & ~role & Phases.BOTH, 0)


def check_outbox(view: View) -> None:
    """Queued commands fit the outbox and name a slot that ended, or an instance."""
    count, size = int(view.pool["commands"]), len(view.state.outbox)
    within("pool", "commands", count, 0, size)
    commands = view.state.outbox[:count]
    within("outbox", "kind", commands["kind"], 0, max(Command))
    retires = commands["kind"] == Command.RETIRE
    limit = np.where(retires, len(view.requests), len(view.instances)) - 1
    within("outbox", "instance", commands["instance"], 0, limit)
    for slot in commands["instance"][retires]:
        within(
            "requests", "phase", view.requests["phase"][slot], RequestPhase.DONE, RequestPhase.SHED
        )


LAWS = (
    check_order,
    check_phases,
    check_owners,
    check_routes,
    check_tokens,
    check_device_memory,
    check_host_memory,
    check_models,
    check_rate,
    check_open_work,
    check_occupancy,
    check_slots,
    check_stages,
    check_links,
    check_outbox,
)


def check_integrity(state: State) -> None:
    """Raise IntegrityError for the first law that the state breaks."""
    check_lists(state)
    check_free_chain(state)
    view = View(state)
    for law in LAWS:
        law(view)
