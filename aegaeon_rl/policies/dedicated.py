"""`dedicated`: one instance per model, the cloud's default. More models than instances: the rest
is refused."""

from dataclasses import dataclass, replace

from aegaeon_rl.policies.static import Static
from runtime.core import Dispatch, PoolSpec, PrefetchMode
from runtime.pool.state import State
from runtime.protocol import Workload


@dataclass(frozen=True, slots=True, kw_only=True)
class Dedicated(Static):
    """Instances go to models by their mean rate, which is known in advance; ties: first appearance.

    What an instance's own model leaves of its memory is KV.
    """

    name: str = "dedicated"

    def configure(self, pool: PoolSpec) -> PoolSpec:
        return replace(
            pool,
            roles=(),
            dispatch=Dispatch.PUSH,
            prefetch=PrefetchMode.NONE,
            weight_slots=1,
            slots_reserved=False,
            weight_budget_bytes=0,
        )

    def placement(self, state: State, workload: Workload) -> tuple[tuple[int, int], ...]:
        models = sorted(range(len(state.models)), key=lambda m: (-workload.rates_rps[m], m))
        return tuple(enumerate(models[: len(state.instances)]))
