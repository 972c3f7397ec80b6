"""An answer from its events, and its tokens through the pool's accounting."""

import json
from array import array

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aegaeon_rl.replay.accounting import fill
from aegaeon_rl.replay.answer import Answer
from aegaeon_rl.replay.dialect import WordCount, fitted
from runtime.core import NS, RequestPhase
from runtime.emulator.tables import RESULT


def fed(*events: object) -> Answer:
    answer = Answer()
    for event in events:
        answer.feed(event if isinstance(event, bytes) else json.dumps(event).encode())
    return answer


@pytest.mark.parametrize(
    ("event", "tokens"),
    [
        ({"choices": [{"text": "x"}]}, 1),
        ({"choices": [{"text": ""}]}, 1),  # half a character: no text yet
        ({"choices": [{"text": "", "finish_reason": "length"}]}, 0),
        ({"choices": [{"text": "x", "finish_reason": "length"}]}, 1),
        ({"choices": [{"delta": {"role": "assistant", "content": ""}}]}, 0),
        ({"choices": [{"delta": {"content": "x"}}]}, 1),
        ({"choices": [{"delta": {"reasoning_content": "x"}}]}, 1),
        ({"choices": [], "usage": {"completion_tokens": 0, "prompt_tokens": 3}}, 0),
    ],
)
def test_event_brings_a_token_or_none(event: object, tokens: int) -> None:
    assert len(fed(event).at_s) == tokens


@pytest.mark.parametrize("broken", [b"", b"{", b'{"choices": 3}', b"\xff\xfe", b"[]"])
def test_event_that_is_no_chunk_is_an_error(broken: bytes) -> None:
    answer = fed({"choices": [{"text": "x"}]}, broken)
    assert answer.error is not None
    assert answer.tokens == 1


def test_last_token_without_text_came_with_the_end() -> None:
    events = [{"choices": [{"text": "x"}]}, {"choices": [{"text": "", "finish_reason": "length"}]}]
    usage = {"choices": [], "usage": {"completion_tokens": 2}}
    answer = fed(*events, usage)
    assert answer.is_exact
    assert answer.token_s().tolist() == [answer.at_s[0], answer.end_s]


@settings(max_examples=100, deadline=None)
@given(
    at_s=st.lists(st.floats(0, 100), min_size=1, max_size=40).map(sorted), tokens=st.integers(0, 90)
)
def test_token_times_are_times_of_events_in_order(at_s: list[float], tokens: int) -> None:
    answer = Answer()
    answer.at_s, answer.counted = array("d", at_s), array("q", [-1] * len(at_s))
    answer.usage.completion_tokens, answer.finish = tokens, "length"
    times = answer.token_s()
    assert len(times) == tokens
    assert set(times) <= set(at_s)
    assert (np.diff(times) >= 0).all()
    if tokens:
        assert times[-1] == at_s[-1]


@settings(max_examples=50, deadline=None)
@given(
    gaps_ms=st.lists(st.integers(0, 3000), min_size=1, max_size=60), arrival_s=st.integers(0, 50)
)
def test_tokens_on_time_are_those_by_their_deadline(gaps_ms: list[int], arrival_s: int) -> None:
    result = np.zeros(1, RESULT)[0]
    result["arrival_ns"], result["due_tokens"] = arrival_s * NS, len(gaps_ms)
    result["phase"] = RequestPhase.DONE
    times_ns = arrival_s * NS + np.cumsum(gaps_ms).astype(np.int64) * 1_000_000
    fill(result, times_ns, NS, NS // 10)
    due_ns = arrival_s * NS + NS + np.arange(len(gaps_ms)) * (NS // 10)
    assert result["on_time_tokens"] == (times_ns <= due_ns).sum()
    assert result["first_token_ns"] == times_ns[0]
    assert result["stall_ns"] == np.diff(times_ns).max(initial=0)
    assert 0 <= result["qos"] <= 1


@given(fixed=st.integers(0, 50), per_word=st.integers(1, 5), tokens=st.integers(100, 5000))
def test_two_probes_tell_how_many_words_make_a_prompt(
    fixed: int, per_word: int, tokens: int
) -> None:
    count = fitted((20, 220), (fixed + 20 * per_word, fixed + 220 * per_word))
    assert count == pytest.approx(WordCount(fixed, per_word))
    assert abs(fixed + per_word * count.words(tokens) - tokens) <= per_word
