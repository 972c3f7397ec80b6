"""Conversations: contexts that grow, turns that follow each other, pieces that do not matter."""

import numpy as np
import pytest

from traces.arrivals import ArrivalProcess, Arrivals
from traces.lengths import LengthModel, Lengths, Marginal
from traces.sessions import READING_S, Conversations, Requests
from traces.warp import ticks

FIXED = LengthModel(Marginal((0, 1), (10, 10)), Marginal((0, 1), (20, 20)))
END = ticks(50_000.0)


def talks(turns: float = 4.0, context_tokens: int = 10**6, rate: float = 0.05) -> Conversations:
    gaps, prompt, output, count, think = (
        np.random.Generator(np.random.PCG64(seed)) for seed in range(5)
    )
    lead = ticks(1000.0)
    arrivals = Arrivals(ArrivalProcess.POISSON, rate, 1.0, gaps, END, lead=lead)
    lengths = Lengths(FIXED, (prompt, output))
    return Conversations(arrivals, lengths, turns, 30.0, context_tokens, count, think)


def by_session(requests: Requests) -> list[tuple[list[int], list[int]]]:
    """Times and prompts of each session that began after 0."""
    assert requests.session is not None
    found = []
    for number in np.unique(requests.session):
        mine = requests.session == number
        if requests.prompt[mine][0] == 10:
            found.append((requests.time[mine].tolist(), requests.prompt[mine].tolist()))
    return found


def test_prompt_holds_all_that_was_said_before() -> None:
    sessions = by_session(talks().until(END))
    assert len(sessions) > 2000
    for _, prompts in sessions:
        assert prompts == [10 + 30 * turn for turn in range(len(prompts))]


def test_turns_follow_reply_and_thought() -> None:
    steps = np.concatenate([np.diff(times) for times, _ in by_session(talks().until(END))])
    assert steps.min() >= ticks(20 * READING_S)
    assert steps.mean() == pytest.approx(ticks(30.0 + 20 * READING_S), rel=0.05)


def test_sessions_have_their_mean_number_of_turns() -> None:
    turns = [
        len(prompts) for times, prompts in by_session(talks().until(END)) if times[0] < END / 2
    ]
    assert np.mean(turns) == pytest.approx(4.0, rel=0.08)
    assert max(turns) > 10


def test_requests_are_as_many_from_the_start() -> None:
    """Sessions begin before 0: there is no run-up while they fill."""
    talk = talks(rate=1.0)
    assert len(talk.until(ticks(500.0)).time) == pytest.approx(4.0 * 500, rel=0.15)


def test_session_ends_with_its_context() -> None:
    for _, prompts in by_session(talks(context_tokens=100).until(END)):
        assert prompts == [10, 40, 70, 100][: len(prompts)]


@pytest.mark.parametrize("pieces", [2, 7, 501])
def test_conversations_are_the_same_in_any_pieces(pieces: int) -> None:
    at_once, slowly = talks().until(END), talks()
    parts = [slowly.until(END * (i + 1) // pieces) for i in range(pieces)]
    for column in range(4):
        joined = np.concatenate([part[column] for part in parts])
        assert joined.tolist() == at_once[column].tolist()


def test_request_at_the_stop_is_left_for_the_next_piece() -> None:
    times = talks().until(END).time
    stop = int(times[100])
    slowly = talks()
    assert slowly.until(stop).time[-1] < stop
    assert slowly.until(stop + 1).time.tolist() == [stop]
