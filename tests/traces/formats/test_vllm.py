"""vLLM's request logs: every version's lines, and what a log has to say."""

from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from traces import TraceError, UserError, read
from traces.formats.vllm import FLAGS

Save = Callable[[str, bytes | str], Path]


def received(stamp: str, name: str = "r", ids: str | None = "[1, 2]") -> str:
    told = "" if ids is None else f"prompt_token_ids: {ids}, "
    return f"INFO {stamp} [logger.py:43] Received request {name}: {told}lora_request: None.\n"


def generated(name: str = "r", ids: str = "[1, 2, 3]") -> str:
    return (
        f"INFO 01-01 00:00:00 Generated response {name}: output: 'x', output_token_ids: {ids}, f\n"
    )


@pytest.mark.parametrize(
    ("stamps", "seconds"),
    [
        (("08-19 12:00:00", "08-19 12:00:09"), 9),
        (("02-28 23:59:59", "03-01 00:00:00"), 1),
        (("02-29 23:59:59", "03-01 00:00:00"), 1),
        (("02-28 00:00:00", "02-29 00:00:00"), 86_400),
        (("12-31 23:59:59", "01-01 00:00:01"), 2),
        (("2025-12-31 23:59:59", "2026-01-01 00:00:01"), 2),
        (("2025-08-19T12:00:00.250Z 08-19 12:00:00", "08-19 12:00:01"), 1),
        (("2025-08-19 12:00:00,250", "2025-08-19 12:00:01,500"), 1.25),
    ],
)
def test_stamps_without_a_year_go_on_over_its_end(
    save: Save, stamps: tuple[str, str], seconds: float
) -> None:
    lines = [received(stamp, f"r{i}") + generated(f"r{i}") for i, stamp in enumerate(stamps)]
    assert read(save("t.log", "".join(lines))).span_s == pytest.approx(seconds)


def test_several_choices_count_together(save: Save) -> None:
    text = received("01-01 00:00:00") + generated() + generated()
    assert read(save("t.log", text)).output_tokens.tolist() == [6]


BAD = [
    ("INFO: Started server process\n", "no line says 'Received request': expected a log of vLLM w"),
    ("", "no line says 'Received request'"),
    (received("01-01 00:00:00"), "no line says 'Generated response' with output_token_ids: exp"),
    (
        "x\n" + received("01-01 00:00:00", ids="None") + generated(),
        f"row 2, column prompt_token_ids is empty: expected a list of numbers for r; use {FLAGS}",
    ),
    (
        received("01-01 00:00:00") + generated(ids="[]"),
        "no requests among 1 rows: 0 failed, 1 w",
    ),
    (received("13-01 00:00:00") + generated(), "row 1, column time is empty: expected a stamp"),
    (
        received("") + generated(),
        "row 1, column time is empty: expected a stamp like 08-19",
    ),
]


@pytest.mark.parametrize(("text", "expected"), BAD)
def test_log_that_does_not_tell_lengths_says_how_to_get_them(
    save: Save, text: str, expected: str
) -> None:
    path = save("t.log", text)
    with pytest.raises(TraceError) as caught:
        read(path)
    assert str(caught.value).startswith(f"{path}: {expected}")


PARTS = st.sampled_from(
    [
        *("Received request ", "Generated response ", "Request ", " details: ", "a", ": ", "\n"),
        *("INFO 01-02 03:04:05 ", "99-99 99:99:99 ", "output: ", "prompt_token_ids: [", "]", "1, "),
        *("output_token_ids: (", ")", "(streaming delta)", "\x00", "é", "0000-01-01 00:00:00 "),
    ]
)


@given(text=st.lists(PARTS, max_size=40).map("".join))
@settings(max_examples=300, deadline=None)
def test_any_log_is_a_trace_or_one_line(
    tmp_path_factory: pytest.TempPathFactory, text: str
) -> None:
    path = tmp_path_factory.getbasetemp() / "any.log"
    path.write_text(received("01-01 00:00:00", "a") + text, encoding="utf-8")
    try:
        message = f"{read(path).requests}"
    except UserError as error:
        message = str(error)
    assert message.isprintable()
