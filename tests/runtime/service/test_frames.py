"""Frames come through however the stream is cut; what is no message is an error."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.service.frames import MOST_BYTES, FrameError, Frames, frame
from runtime.service.messages import Ask, Drop, FromHttp

MESSAGES = st.one_of(
    st.builds(lambda id: Drop(id=id), st.integers(0, 1 << 60)),
    st.builds(
        lambda id, text, prompt: Ask(
            id=id, request_id=text, model=text, prompt=tuple(prompt), max_tokens=1
        ),
        st.integers(0, 1 << 60),
        st.text(max_size=300),
        st.lists(st.integers(0, 1 << 30), max_size=50),
    ),
)


@settings(max_examples=100, deadline=None)
@given(st.lists(MESSAGES, max_size=8), st.lists(st.integers(1, 40), min_size=1, max_size=20))
def test_messages_come_through_however_the_bytes_are_cut(
    messages: list[FromHttp], cuts: list[int]
) -> None:
    frames: Frames[FromHttp] = Frames(FromHttp)
    sent, received, at = b"".join(map(frame, messages)), [], 0
    while at < len(sent):
        for cut in cuts:
            received += list(frames.feed(sent[at : at + cut]))
            at += cut
    assert received == messages


@pytest.mark.parametrize(
    "sent",
    [
        (3).to_bytes(4, "little") + b"abc",
        (1).to_bytes(4, "little") + b"\xc0",
        (MOST_BYTES + 1).to_bytes(4, "little"),
    ],
)
def test_what_is_no_message_is_an_error(sent: bytes) -> None:
    with pytest.raises(FrameError):
        list(Frames(FromHttp).feed(sent))
