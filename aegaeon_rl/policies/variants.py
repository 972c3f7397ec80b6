"""A policy on a pool that differs: other systems' physics, and bounds from knowledge or free links.

`autoscaled` and `vllm_sleep` serve the oldest request first and keep a model until its batch is
done. They differ in how fast weights come: a cold start of an unchanged vLLM takes 26.9 s for 13B
(SOSP'25), about 1 GB/s; a sleeping vLLM wakes at about 21 GB/s. Both lose the KV of a model that
leaves. What an autoscaler does besides (its own delay, a least number of replicas, whole nodes) is
left out, which flatters it.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from runtime.core import PoolSpec, PrefetchMode
from runtime.pool.state import Record, State
from runtime.protocol import Policy

COLD_BYTES_S = 26.0e9 / 26.9
WAKE_BYTES_S = 21.0e9
FREE = 1e18  # bytes a second
WHOLE_BATCHES: dict[str, Any] = {
    "token_preempt": False,
    "kv_survives_switch": False,
    "weight_slots": 1,
    "slots_reserved": False,
    "prefetch": PrefetchMode.NONE,
    "host_kv_bytes": 0,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """`policy` on the pool it configures, with `changes` made after it."""

    name: str
    policy: Policy
    changes: Mapping[str, Any] = field(hash=False)

    def configure(self, pool: PoolSpec) -> PoolSpec:
        return replace(self.policy.configure(pool), **self.changes)

    def memory(self, state: State) -> Any:
        return self.policy.memory(state)

    def decide(self, state: State, kind: int, index: int, event: Record, memory: Any) -> None:
        self.policy.decide(state, kind, index, event, memory)

    def drive(self, sim: Any, memory: Any) -> int:
        return self.policy.drive(sim, memory)


@dataclass(frozen=True, slots=True, kw_only=True)
class Clairvoyant(Variant):
    """A bound: what no live pool can do. It needs no lengths, but counts as an oracle."""

    def foresee(self, memory: Any, output_tokens: npt.NDArray[np.int32]) -> None:
        pass


def autoscaled(policy: Policy) -> Variant:
    return Variant(
        name="autoscaled", policy=policy, changes={**WHOLE_BATCHES, "h2d_bytes_s": COLD_BYTES_S}
    )


def vllm_sleep(policy: Policy) -> Variant:
    return Variant(
        name="vllm_sleep", policy=policy, changes={**WHOLE_BATCHES, "h2d_bytes_s": WAKE_BYTES_S}
    )


def free_switches(policy: Policy) -> Clairvoyant:
    """Weights and KV move in no time, from host memory without end."""
    links = dict.fromkeys(("h2d_bytes_s", "d2h_bytes_s", "disk_bytes_s", "network_bytes_s"), FREE)
    return Clairvoyant(
        name=f"{policy.name}_free_switches",
        policy=policy,
        changes={
            **links,
            "kv_out_free": True,
            "host_weight_bytes": 10**15,
            "host_kv_bytes": 10**15,
        },
    )


def known_switches(policy: Policy) -> Clairvoyant:
    """Each switch was prefetched since the last one, as if the next model were known."""
    return Clairvoyant(
        name=f"{policy.name}_known_switches",
        policy=policy,
        changes={"prefetch": PrefetchMode.RETROACTIVE},
    )
