"""`policy.json`: a policy whose parameters `aegaeon-rl tune` found, with where they come from.

Two kinds: `index` (weights by feature name, quotas) and `aegaeon_tuned` (its parameters). The
shipped ones lie in `data`.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.resources import files
from math import isfinite
from pathlib import Path
from typing import Any

from aegaeon_rl.policies.aegaeon import Aegaeon, AegaeonParameters
from aegaeon_rl.policies.index import NAMES, Index
from aegaeon_rl.policies.learned import check_spec
from runtime.core import check_within
from runtime.errors import UserError, nearest
from runtime.plain import from_plain
from runtime.protocol import Policy

SCHEMA = "aegaeon-rl/policy/1"


@dataclass(frozen=True, slots=True, kw_only=True)
class IndexParameters:
    """Weights by feature name; see `Index`."""

    turn: dict[str, float] = field(default_factory=dict)
    prefetch: dict[str, float] = field(default_factory=dict)
    quota_s: float = 0.1
    longest_s: float = 0.5

    def __post_init__(self) -> None:
        for part in ("turn", "prefetch"):
            for name, weight in getattr(self, part).items():
                if name not in NAMES:
                    raise UserError(f"{part}.{name}: no such feature; {nearest(name, NAMES)}")
                if not isfinite(weight):
                    raise UserError(f"{part}.{name}={weight}: expected a finite weight")
        check_within("quota_s", self.quota_s, 1e-6, 1e6)
        check_within("longest_s", self.longest_s, 0, 1e6)


Parameters = IndexParameters | AegaeonParameters
KINDS: dict[str, type[IndexParameters] | type[AegaeonParameters]] = {
    "index": IndexParameters,
    "aegaeon_tuned": AegaeonParameters,
}


def policy_of(parameters: Parameters, name: str) -> Index | Aegaeon:
    if isinstance(parameters, AegaeonParameters):
        return Aegaeon(name=name, parameters=parameters)
    return Index(
        name=name,
        turn=parameters.turn,
        prefetch=parameters.prefetch,
        quota_s=parameters.quota_s,
        longest_s=parameters.longest_s,
    )


def load_policy(path: Path, name: str) -> Policy:
    """Raises UserError for a file that is no policy, or was tuned on another feature spec."""
    return policy_of(load_parameters(path)[1], name)


def load_parameters(path: Path) -> tuple[str, Parameters]:
    """The kind of policy in a policy.json, and its parameters. Raises UserError."""
    try:
        return read_parameters(json.loads(path.read_text(encoding="utf-8")))
    except OSError as error:
        raise UserError(f"{path}: not a policy: {error.strerror}") from None
    except ValueError as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{path}: not a policy: {reason}") from None


def read_parameters(content: Any) -> tuple[str, Parameters]:
    """Raises UserError or ValueError for what is no policy."""
    if not isinstance(content, Mapping) or content.get("schema") != SCHEMA:
        raise ValueError(f"expected a JSON object with schema {SCHEMA!r}")
    kind = str(content.get("policy"))
    if kind not in KINDS:
        raise ValueError(f"policy={kind}: {nearest(kind, KINDS)}")
    if kind == "index":
        check_spec(str(content.get("spec")), "policy.json")
    return kind, from_plain(KINDS[kind], content.get("parameters"), "parameters")


def shipped(name: str) -> Policy:
    """The parameters that come with the package, under the name of their kind."""
    text = (files("aegaeon_rl.policies") / "data" / f"{name}.json").read_text(encoding="utf-8")
    return policy_of(read_parameters(json.loads(text))[1], name)
