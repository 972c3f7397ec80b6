"""docs/traces.md: its examples run, and its tables say what the code knows."""

import re
import shlex
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from traces import read
from traces.compose import SOURCES, STEPS, usage
from traces.formats.registry import FORMATS
from traces.formats.service import IS_SERVED, SCHEMA
from traces.mapping import TimeUnit
from traces.market import MarketSpec
from traces.public import PUBLIC
from traces.schema import COLUMNS
from traces.splits import split_names

PAGE = (Path(__file__).parents[2] / "docs" / "traces.md").read_text()
FILES = dict(re.findall(r"```(?:csv|jsonl) (\S+)\n(.*?)```", PAGE, re.DOTALL))
COMMANDS = re.findall(r"```run\n(.*?)\n```", PAGE, re.DOTALL)
EXPECTED = {
    "calls.parquet": ([0, 0.75], ["llama-70b", "qwen-8b"], [812, 90]),
    "engine.parquet": ([0, 0.3], ["llama-8b"], [30, 10]),
    "local.parquet": ([0, 1], ["a"], [5, 7]),
    "chat.parquet": ([0, 2], ["eu", "us"], [38, 11]),
}


@pytest.mark.parametrize("command", COMMANDS)
def test_example_of_the_page_runs(cli: Callable[..., Any], tmp_path: Path, command: str) -> None:
    for name, text in FILES.items():
        (tmp_path / name).write_text(text)
    program, *arguments = shlex.split(command)
    ended = cli(*arguments)
    assert (program, ended.code) == ("aegaeon-rl", 0), ended.err
    out = arguments[-1].removeprefix("out=")
    trace = read(tmp_path / out)
    arrival_s, models, prompt = EXPECTED[out]
    assert trace.arrival_s.tolist() == pytest.approx(arrival_s)
    assert (list(trace.models), trace.prompt_tokens.tolist()) == (models, prompt)


def test_every_example_is_tested() -> None:
    assert {command.rpartition("out=")[2] for command in COMMANDS} == set(EXPECTED)
    assert all(any(f"trace.path={name}" in c for c in COMMANDS) for name in FILES)


@pytest.mark.parametrize("name", [*FORMATS, *COLUMNS, *SCHEMA.names, *PUBLIC, *TimeUnit])
def test_page_names_everything_that_a_user_may_write(name: str) -> None:
    assert f"`{name}`" in PAGE or f"`.{name}`" in PAGE


def test_page_says_which_hashes_are_known() -> None:
    rows = re.findall(r"^\| (`.*?`) \| (CC BY 4.0|Apache-2.0) \| (.*?) \|$", PAGE, re.MULTILINE)
    said = {n: (lic, h) for names, lic, h in rows for n in re.findall(r"`(\w+)`", names)}
    stated = {True: "stated by the publisher", False: "on first use"}
    known = {n: (p.licence, stated[p.sha256 is not None]) for n, p in PUBLIC.items()}
    assert said == known


def test_page_names_every_status_of_the_service() -> None:
    for status in IS_SERVED:
        assert f"`{status}`" in PAGE


@pytest.mark.parametrize("name", [field.name for field in fields(MarketSpec)])
def test_page_names_every_key_of_a_market(name: str) -> None:
    assert f"`{name}`" in PAGE


@pytest.mark.parametrize("name", [*STEPS, *SOURCES])
def test_page_names_every_step_with_its_options(name: str) -> None:
    rows = [line for line in PAGE.splitlines() if line.startswith("|") and f"`{name}" in line]
    options = re.findall(r"\[(\w+)=", usage(name, (STEPS | SOURCES)[name]))
    assert any(all(f"[{option}=" in row for option in options) for row in rows)


@pytest.mark.parametrize("name", split_names())
def test_page_names_every_split(name: str) -> None:
    assert f"`{name}`" in PAGE


def test_pictures_of_the_page_are_there() -> None:
    pictures = re.findall(r"\]\((images/\S+)\)", PAGE)
    assert len(pictures) == 2
    assert all((Path(__file__).parents[2] / "docs" / name).exists() for name in pictures)
