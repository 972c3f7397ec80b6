"""A pool at time 0: its tables, filled from what it is made of and what it serves. Letters as in
state.py.
"""

import numpy as np

from runtime.core import (
    FOREVER_NS,
    NONE,
    NS,
    Dispatch,
    HostKvFull,
    ModelSpec,
    Phases,
    PoolSpec,
    PrefetchMode,
    SloSpec,
    Stage,
)
from runtime.errors import UserError
from runtime.pool.bits import new_bits
from runtime.pool.state import (
    COMMAND,
    GAP_BINS,
    HOSTED,
    INSTANCE,
    LINK,
    LIST,
    LISTS_PER_INSTANCE,
    MODEL,
    NODE,
    POOL,
    REQUEST,
    SLOT,
    State,
    Table,
    chain_free_slots,
)

LONGEST_LOAD_S = 86_400.0
GPUS_SCALE = ("vram_bytes", "h2d_bytes_s", "d2h_bytes_s")  # an instance has `tp` times as much
AS_STATED = (
    *("kv_fraction", "disk_bytes_s", "network_bytes_s", "load_chunk_bytes", "block_tokens"),
    *("kv_move_token_bytes", "kv_out_free", "kv_in_overlaps", "kv_reload_every_turn", "kv_stays"),
    *("step_quantum_s", "lookahead_tokens", "prefill_budget_tokens", "prefill_chunk_tokens"),
    *("token_preempt", "kv_survives_switch", "priorities", "max_queue"),
)


def new_state(
    spec: PoolSpec,
    models: tuple[ModelSpec, ...],
    slos: tuple[SloSpec, ...],
    costs: Table,
    *,
    capacity: int = 1024,
) -> State:
    """An empty pool with `capacity` request slots; host caches hold the first models that fit.

    An instance has the memory and the host links of its `spec.tp` GPUs. `costs` [T, M] is the
    profile; what the scheduler believes adds the pool's step overhead. Raises UserError when the
    weight slots leave no room for KV.
    """
    n_models, n_instances, n_nodes = len(models), spec.instances, spec.nodes
    if len(slos) != n_models or costs.shape[1] != n_models:
        raise ValueError(f"{len(slos)} SLOs and costs {costs.shape} for {n_models} models")
    costs = costs.copy()
    costs["decode_s"] += spec.step_overhead_s
    state = State(
        requests=np.zeros(capacity, REQUEST),
        models=np.zeros(n_models, MODEL),
        instances=np.zeros(n_instances, INSTANCE),
        slots=np.zeros((n_instances, spec.weight_slots), SLOT),
        nodes=np.zeros(n_nodes, NODE),
        links=np.zeros(n_nodes * ports_per_node(spec), LINK),
        hosted=np.zeros((n_nodes, n_models), HOSTED),
        costs=costs,
        lists=np.zeros(2 * n_models + LISTS_PER_INSTANCE * n_instances + 1, LIST),
        outbox=np.zeros(64 + 8 * n_instances + 5 * capacity, COMMAND),
        pool=np.zeros(1, POOL),
        gaps=np.zeros(GAP_BINS, np.int64),
        open_models=np.zeros(n_models, np.int64),
        vacant=new_bits(n_instances, full=True),
        prefetch_due=new_bits(n_instances),
    )
    _fill_pool(state, spec, models)
    _fill_models(state, spec, models, slos)
    _check_room(state, spec, models)
    _fill_instances(state, spec)
    _fill_links(state, spec)
    _fill_nodes(state, spec)
    state.lists["head"] = state.lists["tail"] = NONE
    chain_free_slots(state.requests, 0)
    return state


def _reserved_bytes(spec: PoolSpec, largest: int) -> int:
    """Weight memory that an instance gives up for good; 0: the loaded model's only."""
    vram_bytes, budget = spec.tp * spec.vram_bytes, spec.tp * spec.weight_budget_bytes
    if 0 < budget < largest:
        raise UserError(
            f"pool.weight_budget_bytes={spec.weight_budget_bytes}: expected at least the largest"
            f" model's {-(-largest // spec.tp)}"
        )
    reserved = budget or (spec.weight_slots * largest if spec.slots_reserved else 0)
    if max(reserved, largest) >= vram_bytes:
        held = f"{spec.weight_slots} weight slots of {largest / 1e9:.1f} GB leave"
        key = "weight_slots"
        if budget:
            held, key = f"a weight budget of {budget / 1e9:.1f} GB leaves", "weight_budget_bytes"
        raise UserError(
            f"pool {spec.name}: {held} no room for KV in {vram_bytes / 1e9:.0f} GB;"
            f" lower pool.{key}"
        )
    return reserved


def _fill_pool(state: State, spec: PoolSpec, models: tuple[ModelSpec, ...]) -> None:
    largest = max(model.weight_bytes for model in models)
    reserved = _reserved_bytes(spec, largest)
    for name in ("h2d_bytes_s", "d2h_bytes_s", "disk_bytes_s"):
        if largest / getattr(spec, name) > LONGEST_LOAD_S:
            raise UserError(
                f"pool.{name}={getattr(spec, name)}: {largest / 1e9:.1f} GB would take over a day:"
                f" expected at least {largest / LONGEST_LOAD_S:.3g}"
            )
    pool = state.pool
    for name in GPUS_SCALE:
        pool[name] = spec.tp * getattr(spec, name)
    for name in AS_STATED:
        pool[name] = getattr(spec, name)
    pool["reserved_bytes"] = reserved
    budget = spec.tp * spec.weight_budget_bytes
    pool["weight_budget_bytes"] = budget or spec.weight_slots * largest
    pool["max_wait_ns"] = round(spec.max_wait_s * NS)
    pool["interrupt_slack_ns"] = round(spec.interrupt_slack_s * NS)
    pool["asks_ns"] = NONE
    pool["command_ns"] = round(spec.command_s * NS)
    pool["turn_overhead_ns"] = round(spec.turn_overhead_s * NS)
    pool["host_kv_waits"] = spec.host_kv_full is HostKvFull.WAIT
    pool["is_push"] = spec.dispatch is Dispatch.PUSH
    pool["prefetches"] = spec.prefetch is PrefetchMode.CAUSAL and spec.weight_slots > 1
    pool["credits_compute"] = spec.prefetch is PrefetchMode.RETROACTIVE


def _fill_models(
    state: State, spec: PoolSpec, models: tuple[ModelSpec, ...], slos: tuple[SloSpec, ...]
) -> None:
    table = state.models
    table["weight_bytes"] = [model.weight_bytes for model in models]
    rate = state.pool["h2d_bytes_s"][0]
    table["load_ns"] = np.ceil(table["weight_bytes"] / rate * 1e9)
    table["kv_token_bytes"] = [model.kv_token_bytes for model in models]
    table["waiting_since_ns"] = table["urgent_ns"] = table["oldest_ns"] = FOREVER_NS
    table["running_head"] = table["place"] = table["asks_ns"] = NONE
    table["block_bytes"] = [model.kv_token_bytes * spec.block_tokens for model in models]
    table["ttft_ns"] = [round(slo.ttft_s * NS) for slo in slos]
    table["tbt_ns"] = [round(slo.tbt_s * NS) for slo in slos]


def _check_room(state: State, spec: PoolSpec, models: tuple[ModelSpec, ...]) -> None:
    """Raises UserError for a model of which an instance could not hold one KV block."""
    pool = state.pool[0]
    for model, block in zip(models, state.models["block_bytes"].tolist(), strict=True):
        held = pool["reserved_bytes"] or model.weight_bytes
        room = int(spec.kv_fraction * (pool["vram_bytes"] - held))
        if room < block:
            raise UserError(
                f"pool.kv_fraction={spec.kv_fraction}: pool {spec.name} has {room:,} bytes for the"
                f" KV of {model.name}: expected at least one block of {block:,}"
            )


def _fill_instances(state: State, spec: PoolSpec) -> None:
    table = state.instances
    table["node"] = np.arange(spec.instances) // spec.instances_per_node
    table["role"] = spec.roles or (Phases.BOTH,) * spec.instances
    table["stage"] = Stage.FREE
    table["model"] = table["active_slot"] = table["loading_slot"] = NONE
    table["load_since_ns"] = table["seen_wake"] = table["seen_arrivals"] = NONE
    state.slots["model"] = NONE


def ports_per_node(spec: PoolSpec) -> int:
    return -(-spec.instances_per_node // spec.instances_per_port)


def _fill_links(state: State, spec: PoolSpec) -> None:
    """Instances of a node in groups of `instances_per_port`; the last group may be smaller."""
    node, place = np.divmod(np.arange(spec.instances), spec.instances_per_node)
    port = node * ports_per_node(spec) + place // spec.instances_per_port
    state.instances["port"] = port
    ports = np.arange(len(state.links))
    state.links["first"] = np.searchsorted(port, ports)
    state.links["end"] = np.searchsorted(port, ports, side="right")


def _fill_nodes(state: State, spec: PoolSpec) -> None:
    state.nodes["host_kv_bytes"] = spec.host_kv_bytes
    state.nodes["host_weight_bytes"] = spec.host_weight_bytes
    resident = np.cumsum(state.models["weight_bytes"]) <= spec.host_weight_bytes
    state.hosted["is_cached"] = resident
    state.nodes["host_weight_used_bytes"] = state.models["weight_bytes"][resident].sum()
