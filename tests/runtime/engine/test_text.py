"""Text comes whole characters at a time and stops before a stop string."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.engine.text import HALF, TextStream


class Bytes:
    """A tokenizer whose tokens are bytes: the hardest case for characters."""

    def decode(self, token_ids, *, skip_special_tokens=False):
        return bytes(t for t in token_ids if t < 256).decode("utf-8", errors="replace")


class Words:
    """A tokenizer like SentencePiece: a space before each word but the first of a decode."""

    def decode(self, token_ids, *, skip_special_tokens=False):
        return " ".join(f"w{t}" for t in token_ids)


def pieces(text: str, stop=()):
    stream = TextStream(Bytes(), stop)
    return [*(stream.push(b) for b in text.encode()), stream.finish()], stream


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=40))
def test_text_is_complete_and_no_piece_ends_in_half_a_character(text):
    out, _ = pieces(text)
    assert "".join(out) == text.encode().decode(errors="replace")
    if HALF not in text:
        assert not any(HALF in piece for piece in out)


@settings(max_examples=200, deadline=None)
@given(st.text("abä", max_size=30), st.lists(st.text("abä", min_size=1, max_size=4), max_size=3))
def test_text_ends_before_the_earliest_stop_string(text, stop):
    out, stream = pieces(text, stop)
    ends = [text.find(s) + len(s) for s in stop if s in text]
    if not ends:
        assert "".join(out) == text
        assert stream.stopped is None
        return
    assert stream.stopped in stop
    assert text.startswith("".join(out) + stream.stopped)
    assert len("".join(out)) + len(stream.stopped) == min(ends) or len("".join(out)) == min(
        text.find(s) for s in stop if s in text
    )


def test_text_before_a_stop_string_is_not_held_longer_than_needed():
    stream = TextStream(Bytes(), ["END"])
    assert [stream.push(*b"xE"), stream.push(*b"N"), stream.push(*b"!")] == ["x", "", "EN!"]


def test_spaces_between_tokens_are_kept_over_any_number_of_pushes():
    stream = TextStream(Words())
    assert "".join(stream.push(t) for t in range(30)) == Words().decode(range(30))


def test_half_a_character_at_the_end_is_shown_as_the_decoder_shows_it():
    stream = TextStream(Bytes())
    assert [stream.push(0xE2), stream.push(0x82), stream.finish()] == ["", "", HALF]


def test_invalid_bytes_do_not_hold_text_back_for_ever():
    stream = TextStream(Bytes())
    assert [stream.push(0xFF), stream.push(ord("a"))] == ["", HALF + "a"]


@pytest.mark.parametrize("stop", [[], [""]])
def test_no_stop_string_stops_nothing(stop):
    out, stream = pieces("abc", stop)
    assert ("".join(out), stream.stopped) == ("abc", None)
