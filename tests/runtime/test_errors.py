"""The nearest-choice hint of the user's errors."""

import pytest

from runtime.errors import UserError, nearest


@pytest.mark.parametrize(
    ("name", "choices", "expected"),
    [
        ("aegeon", ["index", "aegaeon"], "did you mean 'aegaeon'? known: aegaeon, index"),
        ("zzz", ["index", "aegaeon"], "known: aegaeon, index"),
        ("x", [], "known: "),
    ],
)
def test_nearest_lists_choices_sorted(name: str, choices: list[str], expected: str) -> None:
    assert nearest(name, choices) == expected


def test_nearest_counts_what_it_does_not_list() -> None:
    hint = nearest("m", [f"name{i:02}" for i in range(15)])
    assert hint.endswith("name11 and 3 more")
    assert "name12" not in hint


def test_user_error_is_a_value_error() -> None:
    assert issubclass(UserError, ValueError)
