"""Set-up compiles what the common commands run."""

from typing import Any

import pytest

from aegaeon_rl.policies.registry import POLICIES
from aegaeon_rl.verbs import warm
from envs import stepping


def test_warm_runs_every_policy_and_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    ran, run = [], warm.run

    def spy(trace: Any, pool: Any, policy: Any, slo: Any) -> Any:
        ran.append(policy.name)
        assert trace.requests > 0
        return run(trace, pool, policy, slo)

    monkeypatch.setattr(warm, "run", spy)
    warm.main()
    assert ran == list(POLICIES)
    for kernel in (stepping.step_pools, stepping.serve_oldest, stepping.start):
        assert kernel.signatures
