"""The command line, run in this process, in a folder of its own."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from aegaeon_rl import cli as command_line


class Ended(NamedTuple):
    """What a command left."""

    code: int
    out: str
    err: str


@pytest.fixture
def cli(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., Ended]:
    """`cli("evaluate", "seed=1")` as `aegaeon-rl evaluate seed=1` would run in tmp_path."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str) -> Ended:
        monkeypatch.setattr(sys, "argv", ["aegaeon-rl"])
        capsys.readouterr()
        try:
            code = command_line.run(list(arguments))
        except SystemExit as left:
            code = int(left.code or 0)
        return Ended(code, *capsys.readouterr())

    return run
