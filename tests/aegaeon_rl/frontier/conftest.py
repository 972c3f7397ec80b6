"""What the tests of the frontier share."""

from collections.abc import Callable

import pytest

from aegaeon_rl.frontier.axis import cell_of
from aegaeon_rl.policies.registry import make_policy
from runtime.core import PoolSpec, SloSpec
from traces import Trace


@pytest.fixture
def run_share() -> Callable[[Trace, PoolSpec], float]:
    """Token attainment of `index`."""

    def share(trace: Trace, pool: PoolSpec) -> float:
        cell = cell_of(trace, pool, make_policy("index"), SloSpec(), 0.0, trace.span_s)
        return cell.on_time / cell.due

    return share
