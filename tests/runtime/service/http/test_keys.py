"""Meters hold to their limit in every minute; key files say what is wrong in them."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.errors import UserError
from runtime.service.http.keys import WINDOW_S, Meter, read_keys

WISHES = st.lists(st.tuples(st.floats(0, 40), st.integers(1, 12)), max_size=40)


@settings(max_examples=100, deadline=None)
@given(WISHES, st.integers(1, 30))
def test_a_meter_holds_in_every_window_and_says_how_long_to_wait(
    wishes: list[tuple[float, int]], limit: int
) -> None:
    meter, now_s, granted = Meter(limit), 0.0, []
    for pause_s, amount in wishes:
        now_s += pause_s
        wait_s = meter.wait_s(amount, now_s)
        if math.isinf(wait_s):
            assert amount > limit
            continue
        assert 0 <= wait_s <= WINDOW_S + 1
        now_s += wait_s
        assert meter.wait_s(amount, now_s) == 0
        meter.add(amount, now_s)
        granted.append((now_s, amount))
        assert sum(used for at_s, used in granted if at_s > now_s - WINDOW_S) <= limit


def test_a_meter_without_a_limit_never_waits() -> None:
    meter = Meter(None)
    meter.add(10**9, 0)
    assert meter.wait_s(10**9, 0) == 0


WRONG = [
    ("", "expected NAME"),
    ("[1]", "expected NAME"),
    ("a: {key: [", "cannot be read"),
    ("a: 5", r"a: expected \{key"),
    ("a: {key: short}", r"a\.key: expected 8 characters"),
    ("a: {key: 123456789}", r"a\.key: expected 8 characters"),
    ("a: {kee: sk-12345678}", "did you mean 'key'"),
    ("a: {key: sk-12345678, requests_per_minute: 0}", r"requests_per_minute=0: expected a whole"),
    ("a: {key: sk-12345678, is_admin: 1}", "is_admin=1: expected true or false"),
    ("a: {key: sk-12345678}\nb: {key: sk-12345678}", r"b\.key: another name has it too"),
]


@pytest.mark.parametrize(("content", "reason"), WRONG, ids=range(len(WRONG)))
def test_what_is_wrong_in_a_key_file_is_named_without_the_key(
    tmp_path: Path, content: str, reason: str
) -> None:
    path = tmp_path / "keys.yaml"
    path.write_text(content)
    with pytest.raises(UserError, match=reason) as caught:
        read_keys(str(path))
    assert "sk-12345678" not in str(caught.value)


def test_a_missing_key_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be read"):
        read_keys(str(tmp_path / "none.yaml"))
