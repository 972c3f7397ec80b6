"""policy.json: what is written is what runs; what is no policy is one line."""

import json
from pathlib import Path
from typing import Any

import pytest

from aegaeon_rl.frontier.steady import Steady, steady_trace
from aegaeon_rl.policies.aegaeon import Aegaeon, AegaeonParameters
from aegaeon_rl.policies.index import Index
from aegaeon_rl.policies.learned import SPEC
from aegaeon_rl.policies.registry import make_policy
from aegaeon_rl.policies.tuned import SCHEMA, load_parameters
from runtime.core import Phases, SloSpec
from runtime.emulator.run import run
from runtime.errors import UserError

INDEX = {"turn": {"slack_min": -3.0}, "prefetch": {}, "quota_s": 0.2, "longest_s": 0.4}


def written(tmp_path: Path, **changes: Any) -> Path:
    content = {"schema": SCHEMA, "policy": "index", "spec": SPEC, "parameters": INDEX, **changes}
    path = tmp_path / "policy.json"
    path.write_text(json.dumps(content))
    return path


def test_a_policy_file_goes_by_its_path(tmp_path: Path) -> None:
    path = written(tmp_path)
    policy = make_policy(str(path))
    assert isinstance(policy, Index)
    assert (policy.name, policy.turn, policy.quota_s) == (str(path), INDEX["turn"], 0.2)


def test_aegaeon_takes_its_parameters_from_a_file(tmp_path: Path, flat_pool: Any) -> None:
    path = written(tmp_path, policy="aegaeon_tuned", parameters={"prefill_share": 0.7})
    policy = make_policy(str(path))
    assert isinstance(policy, Aegaeon)
    roles = policy.configure(flat_pool(4)).roles
    assert roles.count(Phases.PREFILL) == 3


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"schema": "other"}, "expected a JSON object with schema"),
        ({"policy": "indx"}, "policy=indx: did you mean 'index'"),
        ({"spec": "0-0"}, "trained on feature spec 0-0"),
        ({"parameters": {"turn": {"slack": 1.0}}}, r"turn\.slack: no such feature"),
        ({"parameters": {"quota_s": -1.0}}, r"quota_s=-1\.0: expected at least"),
        ({"parameters": {"quotas": 1.0}}, r"parameters\.quotas: unknown key"),
        ({"policy": "aegaeon_tuned", "parameters": {"max_group": 0}}, "max_group=0: expected"),
        ({"policy": "aegaeon_tuned", "parameters": None}, "parameters=None: expected keys"),
    ],
)
def test_what_is_no_policy_is_refused_in_a_line(
    changes: dict[str, Any], said: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=said) as caught:
        load_parameters(written(tmp_path, **changes))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["{", "[]", "null"])
def test_what_is_no_json_object_is_refused(text: str, tmp_path: Path) -> None:
    path = tmp_path / "policy.json"
    path.write_text(text)
    with pytest.raises(UserError, match="not a policy"):
        make_policy(str(path))


def test_a_missing_file_is_named() -> None:
    with pytest.raises(UserError, match=r"^nowhere\.json: not a policy: No such file"):
        make_policy("nowhere.json")


def test_aegaeons_own_parameters_are_its_defaults() -> None:
    chosen = make_policy("aegaeon_tuned")
    assert isinstance(chosen, Aegaeon)
    assert chosen.name == "aegaeon_tuned"
    assert Aegaeon().parameters == AegaeonParameters()


@pytest.mark.parametrize(
    "changed", [{"max_group": 1}, {"qmax_s": 0.3}, {"prefill_by_time": True}, {"idle_takes": True}]
)
def test_every_parameter_of_aegaeon_changes_its_decisions(
    changed: dict[str, Any], flat_pool: Any
) -> None:
    trace = steady_trace(Steady(rate=0.2, duration_s=120.0, warm_s=0.0), 12, 0)

    def journal(policy: Aegaeon) -> bytes:
        return run(trace, flat_pool(6), policy, SloSpec(), journal=True).journal.tobytes()

    assert journal(Aegaeon(parameters=AegaeonParameters(**changed))) != journal(Aegaeon())
