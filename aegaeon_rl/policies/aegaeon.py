"""`aegaeon`: the SOSP'25 scheduler, grouped FCFS prefill and weighted round-robin decode.

Prefill instances serve groups of at most MAX_GROUP requests of one model in order of creation (the
group may be refilled while it drains). Decode instances serve one batch per model, round by round,
with quotas that give every batch the same playback time.

In a pool with `sosp25_rules` the artifact's simulator is followed where it differs. Prefill: groups
are bounded by KV tokens; the request whose turn has come, its switch included, has left its group,
so that an instance counts as empty and takes new groups while it works on its last request. Decode:
batches go in the order of their models (there: of object addresses); one that has run empty counts
until its round ends; the quota has no first step of its own. An instance holds one model, and a
switch is shortened by the compute time since the last one.
"""

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np

from aegaeon_rl.policies.batches import (
    Groups,
    forget_empty,
    groups_on,
    needs_prefill,
    new_groups,
    next_model_on,
    open_group,
    refresh,
    requests_on,
)
from runtime.compiled import inner, kernel
from runtime.core import (
    NONE,
    DecisionKind,
    Dispatch,
    EventKind,
    Phases,
    PoolSpec,
    PrefetchMode,
    check_within,
)
from runtime.emulator.loop import Signal, advance, answer
from runtime.emulator.tables import Sim
from runtime.errors import UserError
from runtime.pool.candidates import can_route, has_turn_work
from runtime.pool.costs import load_ns, prefill_s, step_s
from runtime.pool.memory import bytes_for, capacity_bytes, context_tokens
from runtime.pool.state import Record, State, Table
from runtime.tables import Field, Tables

MAX_GROUP = 8
QMAX_S = 4.0
LEAST_A = 0.5
PREFILL_SHARE = 6 / 16


RULES = np.dtype(
    [
        ("is_artifact", "i8"),
        ("max_group", "i8"),  # requests of a prefill group
        ("prefill_by_time", "i8"),  # load of a prefill instance: seconds, else requests
        ("idle_takes", "i8"),  # an instance without batches takes what would wait behind others
        ("qmax_s", "f8"),
    ],
    align=True,
)


class AegaeonMemory(Tables):
    """Groups and batches; `rules` is one RULES record."""

    layout: ClassVar = {"groups": Groups, "rules": Field(RULES)}
    groups: Groups
    rules: Table


@inner
def kv_bytes_of(state: State, group: Record) -> int:
    return group.context_tokens * state.models[group.model].kv_token_bytes


@inner
def seconds_on(state: State, groups: Groups, g: int) -> float:
    """Estimated execution and switch time of the prefill groups on g (paper)."""
    total, before = 0.0, state.instances[g].model
    for i in range(groups.counters[0]):
        group = groups.groups[i]
        if group.instance == g and group.size > 0:
            cost = state.costs[state.instances[g].gpu_type, group.model]
            total += group.size * prefill_s(cost, group.context_tokens / group.size)
            if group.model != before:
                total += load_ns(state, g, group.model) * 1e-9
            before = group.model
    return total


@inner
def prefill_load(state: State, g: int, memory: AegaeonMemory) -> float:
    if memory.rules[0].prefill_by_time != 0:
        return seconds_on(state, memory.groups, g)
    if memory.rules[0].is_artifact != 0:
        return float(groups_on(memory.groups, g))
    return float(requests_on(memory.groups, g))


@inner
def route_prefill(state: State, r: int, event: Record, memory: AegaeonMemory) -> None:
    """The first group of its model with room, on any instance; else a group on the least loaded."""
    groups, m = memory.groups, state.requests[r].model
    for i in range(groups.counters[0]):
        group = groups.groups[i]
        if group.model != m or group.phase != Phases.PREFILL:
            continue
        if not can_route(state, r, group.instance):
            continue
        if memory.rules[0].is_artifact != 0:
            more = context_tokens(state, r) * state.models[m].kv_token_bytes
            has_room = kv_bytes_of(state, group) + more <= capacity_bytes(state, m)
        else:
            has_room = group.size < memory.rules[0].max_group
        if has_room:
            event.instance, event.tag = group.instance, group.tag
            return
    best, least = event.instance, np.inf
    for g in range(state.instances.shape[0]):
        if can_route(state, r, g):
            load = prefill_load(state, g, memory)
            if load < least:
                best, least = g, load
    event.instance = best
    event.tag = open_group(groups, m, best, Phases.PREFILL)


@inner
def first_idle(state: State, r: int, groups: Groups) -> int:
    """The first instance that may decode r and has no batch, or NONE."""
    for g in range(state.instances.shape[0]):
        if can_route(state, r, g) and groups_on(groups, g) == 0:
            return g
    return NONE


@inner
def route_decode(state: State, r: int, event: Record, memory: AegaeonMemory) -> None:
    """The first batch of its model that fits; else a batch on the instance with the fewest."""
    groups, m = memory.groups, state.requests[r].model
    idle = first_idle(state, r, groups) if memory.rules[0].idle_takes != 0 else NONE
    need = bytes_for(state, m, context_tokens(state, r) + state.pool[0].lookahead_tokens)
    for i in range(groups.counters[0]):
        group = groups.groups[i]
        if group.model != m or group.phase != Phases.DECODE:
            continue
        if idle != NONE and groups_on(groups, group.instance) > 1:
            continue
        if can_route(state, r, group.instance):
            if kv_bytes_of(state, group) + need <= capacity_bytes(state, m):
                event.instance, event.tag = group.instance, group.tag
                return
    best, least = event.instance, 1 << 60
    for g in range(state.instances.shape[0]):
        if can_route(state, r, g):
            load = groups_on(groups, g)
            if load < least:
                best, least = g, load
    event.instance = best
    event.tag = open_group(groups, m, best, Phases.DECODE)


@inner
def prefill_turn(state: State, g: int, event: Record, memory: AegaeonMemory) -> None:
    """The oldest group on g that has work."""
    groups = memory.groups
    for i in range(groups.counters[0]):
        group = groups.groups[i]
        if group.instance == g:
            if has_turn_work(state, g, group.model, Phases.PREFILL, group.tag):
                event.kind, event.phases = EventKind.TURN, Phases.PREFILL
                event.model, event.tag = group.model, group.tag
                return


@inner
def step_time_s(state: State, g: int, group: Record) -> float:
    cost = state.costs[state.instances[g].gpu_type, group.model]
    return step_s(cost, group.context_tokens, group.size)


@inner
def switch_sum_s(state: State, g: int, groups: Groups) -> float:
    """c: the switch times of the distinct models batched on g."""
    total = 0.0
    for i in range(groups.counters[0]):
        group = groups.groups[i]
        if group.instance != g:
            continue
        is_first = True
        for j in range(i):
            if groups.groups[j].instance == g and groups.groups[j].model == group.model:
                is_first = False
        if is_first:
            total += load_ns(state, g, group.model) / 1e9
    return total


@inner
def next_in_round(state: State, g: int, memory: AegaeonMemory) -> int:
    """The batch on g that is next in this round and has work, or NONE."""
    groups, best = memory.groups, NONE
    for i in range(groups.counters[0]):
        group = groups.groups[i]
        if group.instance != g or group.quota_ns == 0:
            continue
        if best != NONE and (
            memory.rules[0].is_artifact == 0 or group.model >= groups.groups[best].model
        ):
            continue
        if has_turn_work(state, g, group.model, Phases.DECODE, group.tag):
            best = i
    return best


@inner
def start_round(state: State, g: int, memory: AegaeonMemory) -> None:
    """Set every batch's quota q_i = c / (n_i (a - S)), n_i = d / t_i."""
    groups = memory.groups
    forget_empty(groups, g)
    c, inverse_sum, least_n = switch_sum_s(state, g, groups), 0.0, 1e30
    for i in range(groups.counters[0]):
        group = groups.groups[i]
        if group.instance == g:
            n = state.models[group.model].tbt_ns / 1e9 / step_time_s(state, g, group)
            inverse_sum += 1.0 / n
            least_n = min(least_n, n)
    a = max(c / (least_n * memory.rules[0].qmax_s) + inverse_sum, LEAST_A)
    slack = max(a - inverse_sum, c / (least_n * memory.rules[0].qmax_s), 1e-6)
    for i in range(groups.counters[0]):
        group = groups.groups[i]
        if group.instance == g:
            step = step_time_s(state, g, group)
            quota = c * step / (state.models[group.model].tbt_ns / 1e9) / slack
            if memory.rules[0].is_artifact == 0:
                quota += step  # the paper's clock starts after the first step
            group.quota_ns = max(1, int(quota * 1e9))


@inner
def serve_round(state: State, g: int, event: Record, memory: AegaeonMemory) -> bool:
    """Run the next batch on g that has quota in this round."""
    i = next_in_round(state, g, memory)
    if i == NONE:
        return False
    group = memory.groups.groups[i]
    event.kind, event.phases = EventKind.TURN, Phases.DECODE
    event.model, event.tag, event.quota_ns = group.model, group.tag, group.quota_ns
    group.quota_ns = 0
    return True


@inner
def prefetch(state: State, g: int, event: Record, groups: Groups) -> None:
    """The model that comes next on g: the next group, or the next batch of the round."""
    m, has_passed = state.instances[g].model, False
    for i in range(groups.counters[0]):
        group = groups.groups[i]
        if group.instance != g:
            continue
        if group.tag == state.instances[g].turn_tag:
            has_passed = True
        elif has_passed and group.model != m:
            event.model = group.model
            return
    event.model = next_model_on(groups, g, m)


@kernel
def decide(state: State, kind: int, index: int, event: Record, memory: AegaeonMemory) -> None:
    refresh(state, memory.groups, memory.rules[0].is_artifact != 0)
    if kind == DecisionKind.ROUTE:
        if needs_prefill(state, index):
            route_prefill(state, index, event, memory)
        else:
            route_decode(state, index, event, memory)
    elif kind == DecisionKind.PREFETCH:
        prefetch(state, index, event, memory.groups)
    elif kind == DecisionKind.INTERRUPT:
        return
    elif state.instances[index].role & Phases.DECODE:
        if not serve_round(state, index, event, memory):
            start_round(state, index, memory)
            serve_round(state, index, event, memory)
    else:
        prefill_turn(state, index, event, memory)


@kernel
def drive(sim: Sim, memory: AegaeonMemory) -> int:
    while True:
        signal = advance(sim)
        if signal != Signal.DECISION:
            return signal
        control = sim.control[0]
        decide(sim.state, control.decision_kind, control.decision_index, sim.event[0], memory)
        answer(sim)


def split_roles(pool: PoolSpec, share: float = PREFILL_SHARE) -> tuple[Phases, ...]:
    """`share` of the instances prefill (6 of 16), spread over the nodes; every node keeps one of
    each if it can."""
    if pool.instances_per_node == 1:
        return one_node_roles(pool.nodes, share)
    return one_node_roles(pool.instances_per_node, share) * pool.nodes


def one_node_roles(instances: int, share: float) -> tuple[Phases, ...]:
    prefills = min(max(1, round(share * instances)), instances - 1)
    return (Phases.PREFILL,) * prefills + (Phases.DECODE,) * (instances - prefills)


def check_roles(pool: PoolSpec) -> None:
    """Raises UserError unless each instance either prefills or decodes, and there are both."""
    if pool.instances < 2:
        raise UserError(f"policy aegaeon: pool {pool.name} has 1 instance, expected 2 or more")
    if pool.roles and set(pool.roles) != {Phases.PREFILL, Phases.DECODE}:
        found = ", ".join(role.name for role in pool.roles)
        raise UserError(f"policy aegaeon: pool.roles is {found}: expected PREFILL and DECODE ones")


@dataclass(frozen=True, slots=True, kw_only=True)
class AegaeonParameters:
    """What `aegaeon` fixes and `aegaeon_tuned` may choose. In a pool with `sosp25_rules` groups are
    bounded by KV and load is counted in groups unless `prefill_by_time` asks for seconds."""

    prefill_share: float = PREFILL_SHARE  # of the instances, where the pool states no roles
    max_group: int = MAX_GROUP
    qmax_s: float = QMAX_S
    prefill_by_time: bool = False
    idle_takes: bool = False

    def __post_init__(self) -> None:
        check_within("prefill_share", self.prefill_share, 0.01, 0.99)
        check_within("max_group", self.max_group, 1, 1024)
        check_within("qmax_s", self.qmax_s, 0.01, 100)


@dataclass(frozen=True, slots=True, kw_only=True)
class Aegaeon:
    """Needs two instances or more, to split the roles."""

    name: str = "aegaeon"
    parameters: AegaeonParameters = AegaeonParameters()

    def configure(self, pool: PoolSpec) -> PoolSpec:
        check_roles(pool)
        artifact = pool.sosp25_rules
        return replace(
            pool,
            roles=pool.roles or split_roles(pool, self.parameters.prefill_share),
            dispatch=Dispatch.PUSH,
            prefetch=PrefetchMode.RETROACTIVE if artifact else PrefetchMode.CAUSAL,
            kv_reload_every_turn=artifact,
            weight_slots=1 if artifact else pool.weight_slots,
        )

    def memory(self, state: State) -> AegaeonMemory:
        chosen, rules = self.parameters, np.zeros(1, RULES)
        rules["is_artifact"] = state.pool["credits_compute"]
        for name in ("max_group", "qmax_s", "prefill_by_time", "idle_takes"):
            rules[name] = getattr(chosen, name)
        return AegaeonMemory(groups=new_groups(), rules=rules)

    def decide(self, state: State, kind: int, index: int, event: Record, memory: Any) -> None:
        decide(state, kind, index, event, memory)

    def drive(self, sim: Any, memory: Any) -> int:
        return int(drive(sim, memory))
