"""Policies by name, or a trained one by its folder; a miss lists the nearest name."""

from pathlib import Path
from typing import Any

import pytest

from aegaeon_rl.policies.index import Index
from aegaeon_rl.policies.learned import FILE, Learned, initial_weights, save_weights
from aegaeon_rl.policies.registry import POLICIES, make_policy
from runtime.core import SloSpec
from runtime.emulator.run import run
from runtime.errors import UserError

BLANK = Index(name="blank", turn={}, prefetch={})


@pytest.mark.parametrize("name", POLICIES)
def test_policy_goes_by_its_name_and_serves(name: str, burst: Any, flat_pool: Any) -> None:
    policy = make_policy(name)
    assert policy.name == name
    results = run(burst.head(20), flat_pool(6), policy, SloSpec()).results
    assert (results["emitted_tokens"] == results["due_tokens"]).all()


def test_a_miss_names_the_nearest_and_lists_all() -> None:
    with pytest.raises(UserError) as caught:
        make_policy("aegeon")
    assert str(caught.value) == (
        f"policies='aegeon': did you mean 'aegaeon'? known: {', '.join(sorted(POLICIES))};"
        " or a folder with weights.npz, or a policy.json"
    )


def test_a_miss_names_the_key_that_asked() -> None:
    with pytest.raises(UserError, match=r"^train\.start='indx': did you mean 'index'\?"):
        make_policy("indx", "train.start")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_weights(initial_weights(BLANK, (0.1,), 4, 0), tmp_path / FILE)
    return tmp_path


@pytest.mark.parametrize("ending", ["", "/", f"/{FILE}"])
def test_a_trained_policy_goes_by_its_folder_or_file(folder: Path, ending: str) -> None:
    policy = make_policy(f"{folder}{ending}")
    assert isinstance(policy, Learned)
    assert policy.name == f"{folder}{ending}".rstrip("/")
    assert policy.weights.b1.shape == (4,)


def test_a_folder_without_weights_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=rf"{FILE}: not policy weights: No such file or directory$"):
        make_policy(str(tmp_path))
