"""`dedicated N GPUs -> pooled n`: the fewest GPUs that hold a token attainment, both ways.

Both sides meet the same windows, SLO and target. A dedicated GPU keeps its model for ever (policy
`dedicated`); the GPUs of one model take its requests in turn. Where an instance is a group of
`pool.tp` GPUs, so is each replica. Not modelled here: spare capacity for failures, and autoscaled
replicas.
"""

from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from aegaeon_rl.evaluation.compare import Plan, label_of, last_deadline_s, window_trace
from aegaeon_rl.policies.dedicated import Dedicated
from runtime.core import NS, PoolSpec
from runtime.emulator.run import run
from runtime.errors import UserError
from runtime.protocol import Oracle, Policy
from traces import Trace

NODE = 8
LARGEST = 4096  # GPUs
DEDICATED = Dedicated()


class Tokens(NamedTuple):
    on_time: int
    due: int

    @property
    def missed(self) -> int:
        return self.due - self.on_time

    @property
    def share(self) -> float:
        return self.on_time / max(1, self.due)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizing:
    """`pooled` None: the target is out of reach, with as many GPUs as dedicated serving needs or,
    where `dedicated_share` misses it too, with any number."""

    target: float
    policy: str
    dedicated: int
    dedicated_share: float
    pooled: int | None
    pooled_share: float
    rate_rps: float | None = None  # of the trace that was sized for

    @property
    def saved(self) -> float:
        return 0.0 if self.pooled is None else 1 - self.pooled / self.dedicated


def size(plan: Plan, policy: Policy) -> Sizing:
    """Dedicated serving against a pool under `policy`."""
    target = plan.spec.target
    dedicated, dedicated_share = dedicated_gpus(plan)
    pooled, share = None, float("nan")
    if dedicated_share >= target:
        pooled, share = pooled_gpus(plan, policy, dedicated)
    return Sizing(
        target=target,
        policy=label_of(policy.name, isinstance(policy, Oracle)),
        dedicated=dedicated,
        dedicated_share=dedicated_share,
        pooled=pooled,
        pooled_share=share,
        rate_rps=plan.trace.rate_rps,
    )


def dedicated_gpus(plan: Plan) -> tuple[int, float]:
    """GPUs of `dedicated_replicas`, and their share of tokens on time."""
    replicas, share = dedicated_replicas(plan)
    return plan.pool.tp * sum(replicas), share


def dedicated_replicas(plan: Plan) -> tuple[list[int], float]:
    """Instances of each model [M]. One to begin with; while the target is missed, one more for
    the model that misses most.

    A model that gains nothing by one more, nor by two, keeps what it has: where none gains, the
    share stays below the target.
    """
    parts = [window_trace(plan.trace, window, 1.0)[0] for window in plan.windows]
    models = range(len(plan.trace.models))
    tp = plan.pool.tp
    replicas = [1 for _ in models]
    tokens = [dedicated_tokens(plan, parts, m, 1) for m in models]
    gaining = {m for m in models if tokens[m].missed}
    while gaining and _share(tokens) < plan.spec.target and tp * sum(replicas) < LARGEST:
        worst = max(gaining, key=lambda m: (tokens[m].missed, -m))
        for more in (replicas[worst] + 1, replicas[worst] + 2):
            tried = dedicated_tokens(plan, parts, worst, more)
            if tried.on_time > tokens[worst].on_time:
                replicas[worst], tokens[worst] = more, tried
                break
        else:
            gaining.remove(worst)
    return replicas, _share(tokens)


def _share(tokens: list[Tokens]) -> float:
    return Tokens(sum(t.on_time for t in tokens), sum(t.due for t in tokens)).share


def dedicated_tokens(plan: Plan, parts: list[Trace], model: int, replicas: int) -> Tokens:
    """One model on `replicas` instances of its own, which take its requests in turn."""
    checkpoint = plan.pool.checkpoints[model % len(plan.pool.checkpoints)]
    pool = replace(pool_of_size(plan.pool, plan.pool.tp), checkpoints=(checkpoint,))
    own = [np.flatnonzero(part.model == model) for part in parts]
    shares = []
    for g in range(replicas):
        turn = [part.rows(rows[g::replicas]) for part, rows in zip(parts, own, strict=True)]
        shares.append(tokens_of(plan, turn, pool, DEDICATED))
    return Tokens(sum(s.on_time for s in shares), sum(s.due for s in shares))


def tokens_of(plan: Plan, parts: list[Trace], pool: PoolSpec, policy: Policy) -> Tokens:
    """Tokens that count, over one part of the trace per window."""
    on_time = due = 0
    for part, window in zip(parts, plan.windows, strict=True):
        if part.requests:
            horizon_s = last_deadline_s(part, plan.slo)
            results = run(part, pool, policy, plan.slo, horizon_s=horizon_s).results
            counted = results[results["arrival_ns"] >= round(window.warm_s * NS)]
            on_time += int(counted["on_time_tokens"].sum())
            due += int(counted["due_tokens"].sum())
    return Tokens(on_time, due)


def pooled_gpus(plan: Plan, policy: Policy, most: int) -> tuple[int | None, float]:
    """Bisection over pool sizes up to `most`, taking attainment to rise with GPUs."""
    even = [n for n in range(1, most + 1) if gpus_near(n, plan.pool.tp) == n]
    sizes = [n for n in even if can_run(policy, pool_of_size(plan.pool, n))]
    if not sizes:
        return None, 0.0
    low, high = 0, len(sizes) - 1
    share = pooled_share(plan, policy, sizes[high])
    if share < plan.spec.target:
        return None, share
    while low < high:
        middle = (low + high) // 2
        tried = pooled_share(plan, policy, sizes[middle])
        if tried >= plan.spec.target:
            high, share = middle, tried
        else:
            low = middle + 1
    return sizes[high], share


def pooled_share(plan: Plan, policy: Policy, gpus: int) -> float:
    parts = [window_trace(plan.trace, window, 1.0)[0] for window in plan.windows]
    return tokens_of(plan, parts, pool_of_size(plan.pool, gpus), policy).share


def can_run(policy: Policy, pool: PoolSpec) -> bool:
    """A policy that splits roles needs two instances or more."""
    try:
        policy.configure(pool)
    except UserError:
        return False
    return True


def equal_nodes(gpus: int, tp: int) -> tuple[int, int]:
    """(nodes, instances per node) of the least pool that has `gpus` or more in equal nodes."""
    instances = -(-gpus // tp)
    nodes = -(-instances // max(1, NODE // tp))
    return nodes, -(-instances // nodes)


def gpus_near(n: int, tp: int = 1) -> int:
    """The least pool size of n GPUs or more that splits into equal nodes of at most 8."""
    nodes, per_node = equal_nodes(n, tp)
    return nodes * per_node * tp


def pool_of_size(pool: PoolSpec, gpus: int) -> PoolSpec:
    """The pool with another number of GPUs, in equal nodes of at most 8; roles are dropped."""
    if gpus < 1:
        raise UserError(f"pool of {gpus} GPUs: expected at least 1")
    nodes, per_node = equal_nodes(gpus, pool.tp)
    return replace(
        pool,
        name=f"{pool.name}:{gpus}",
        nodes=nodes,
        instances_per_node=per_node,
        roles=(),
    )
