"""Cells outlive a run that was killed."""

from pathlib import Path

import pytest

from aegaeon_rl.frontier.cells import FILE, Cell, CellStore
from runtime.errors import UserError

CELL = Cell(90, 100, {"ttft_p99_s": float("inf")})


def test_store_goes_on_after_a_line_that_was_cut(tmp_path: Path) -> None:
    CellStore(tmp_path).put("a|1|0", CELL)
    with (tmp_path / FILE).open("a") as file:
        file.write('["b|1|0", 3')
    again = CellStore(tmp_path, resume=True)
    assert again.known == {"a|1|0": CELL}
    again.put("c|1|0", CELL)
    assert set(CellStore(tmp_path, resume=True).known) == {"a|1|0", "c|1|0"}


def test_store_does_not_mix_two_runs(tmp_path: Path) -> None:
    CellStore(tmp_path).put("a|1|0", CELL)
    with pytest.raises(UserError, match="holds cells of a frontier: resume=true, or another"):
        CellStore(tmp_path)
