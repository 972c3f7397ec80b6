"""What a service's pool is, in the core's terms: from its configuration, its models and measured
costs.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from runtime.core import ModelSpec, PoolSpec
from runtime.pool.state import COST, Table
from runtime.service.messages import ModelCost
from runtime.service.models import ModelFacts
from runtime.service.spec import ServiceSpec

KV_SHARE = 0.9  # of an engine's KV bytes: pages hold blocks of one size only
SLOTS = 64  # the request table is a multiple of this
LOOKAHEAD_BLOCKS = 1
LINK_BYTES_S = {"cpu": 2e9, "cuda": 20e9}  # what the scheduler believes of a load or a move


def model_specs(facts: Sequence[ModelFacts]) -> tuple[ModelSpec, ...]:
    return tuple(
        ModelSpec(
            name=model.name,
            checkpoint=model.name,
            weight_bytes=model.weight_bytes,
            kv_token_bytes=model.kv_token_bytes,
        )
        for model in facts
    )


def pool_spec(spec: ServiceSpec, facts: Sequence[ModelFacts], host_kv_bytes: int) -> PoolSpec:
    """The pool before the policy's `configure`. A slot is as large as the largest model."""
    weights = spec.weight_slots * max(model.weight_bytes for model in facts)
    link = LINK_BYTES_S["cpu" if spec.device == "cpu" else "cuda"]
    return PoolSpec(
        name="service",
        profile="measured",
        checkpoints=tuple(model.name for model in facts),
        nodes=1,
        instances_per_node=spec.instances,
        vram_bytes=weights + int(KV_SHARE * spec.kv_bytes),
        kv_fraction=1.0,
        weight_slots=spec.weight_slots,
        h2d_bytes_s=link,
        d2h_bytes_s=link,
        block_tokens=spec.block_tokens,
        lookahead_tokens=LOOKAHEAD_BLOCKS * spec.block_tokens,
        prefill_budget_tokens=spec.prefill_budget_tokens,
        prefill_chunk_tokens=spec.prefill_chunk_tokens,
        host_weight_bytes=sum(model.weight_bytes for model in facts),
        host_kv_bytes=host_kv_bytes,
        max_wait_s=spec.max_wait_s,
        priorities=True,
        ttft_timeout_s=spec.server.limits.first_token_s,
        max_queue=spec.server.limits.queue,
        seed=spec.seed,
    )


def cost_table(costs: Mapping[str, ModelCost], facts: Sequence[ModelFacts]) -> Table:
    """COST [1, M]."""
    table = np.zeros((1, len(facts)), COST)
    for m, model in enumerate(facts):
        for name in ModelCost.__struct_fields__:
            table[name][0, m] = getattr(costs[model.name], name)
    return table


def request_slots(spec: ServiceSpec) -> int:
    """Of the core's table, which never grows while the service runs."""
    return -(-spec.server.limits.queue // SLOTS) * SLOTS
