"""The user's mistakes are one printable line."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from traces.errors import Origin, TraceError, UserError, nearest, shown


@given(message=st.text(st.characters()))
def test_error_is_one_printable_line(message: str) -> None:
    assert str(TraceError(message)).isprintable()


@given(message=st.text(st.characters(exclude_categories=["C", "Z"])))
def test_error_keeps_what_is_printable(message: str) -> None:
    assert str(UserError(message)) == message


def test_origin_names_the_row_of_the_file() -> None:
    assert str(Origin("f").error(0, "c", 1.5, "2")) == "f: row 1, column c is 1.5: expected 2"
    assert str(Origin("f", [4, 9]).error(1, "c", None, "2")).startswith("f: row 10, column c is e")


@pytest.mark.parametrize(
    ("value", "expected"),
    [(3.0, "3"), (0.1, "0.1"), (float("nan"), "nan"), ("a", "'a'"), (True, "True"), (7, "7")],
)
def test_shown_value_is_as_the_user_wrote_it(value: object, expected: str) -> None:
    assert shown(value) == expected


def test_shown_value_is_cut_when_long() -> None:
    assert len(shown("x" * 10_000)) < 80


def test_nearest_lists_a_dozen_and_counts_the_rest() -> None:
    hint = nearest("model-093x", [f"model-{i:03d}" for i in range(100)])
    assert hint.startswith("did you mean 'model-093'? known: model-000, ")
    assert hint.endswith("model-010, model-011 and 88 more")
    assert nearest("x", []) == "known: "
