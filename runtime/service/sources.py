"""A service's policies: made by name through `PolicySource.factory`."""

from collections.abc import Callable
from dataclasses import fields
from importlib import import_module

import numpy as np

from runtime.core import PoolSpec
from runtime.errors import UserError
from runtime.pool.state import State
from runtime.protocol import Oracle, Places, Policy, Workload

ASSUMED_RPS, ASSUMED_PROMPT, ASSUMED_OUTPUT = 0.1, 512.0, 256.0  # of each model, before any came


def make(factory: str, name: str, key: str = "policy.name") -> Policy:
    """Raises UserError for a name, or a factory, that makes no policy a live pool can run."""
    policy = _function(factory)(name)
    if isinstance(policy, Oracle):
        raise UserError(
            f"{key}={name}: it knows output lengths in advance (oracle): expected a policy without"
        )
    return policy


def _function(factory: str) -> Callable[[str], Policy]:
    module, _, name = factory.partition(":")
    try:
        function: Callable[[str], Policy] = getattr(import_module(module), name)
    except (ImportError, AttributeError, ValueError):
        raise UserError(f"policy.factory={factory}: expected module:function") from None
    return function


def opening(policy: Policy, state: State) -> tuple[tuple[int, int], ...]:
    """(instance, model) pairs to load before the first request; nobody knows the load yet, so all
    models count alike."""
    if not isinstance(policy, Places):
        return ()
    ones = np.ones(len(state.models))
    return policy.placement(
        state, Workload(ASSUMED_RPS * ones, ASSUMED_PROMPT * ones, ASSUMED_OUTPUT * ones)
    )


def check_same_pool(policy: Policy, pool: PoolSpec) -> None:
    """Raises UserError where `policy` needs the running pool set up otherwise."""
    wanted = policy.configure(pool)
    differing = [f.name for f in fields(pool) if getattr(wanted, f.name) != getattr(pool, f.name)]
    if differing or isinstance(policy, Places):
        what = ", ".join(differing) or "placement"
        raise UserError(
            f"policy {policy.name}: it needs another pool ({what}): start the service with it"
        )
