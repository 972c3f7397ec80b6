"""Cells: one policy at one size on one unit (a seed, or a window), kept so that a run can go on."""

import json
from pathlib import Path
from threading import Lock
from typing import Any, NamedTuple

from runtime.errors import UserError

FILE = "cells.jsonl"


class Cell(NamedTuple):
    """Tokens on time and due, and the metrics of the unit's counted requests."""

    on_time: int
    due: int
    metrics: dict[str, float]


class CellStore:
    """Cells by key; with a folder, each is appended to its `cells.jsonl` once it is known."""

    def __init__(self, folder: Path | None = None, *, resume: bool = False) -> None:
        self.path = None if folder is None else folder / FILE
        self.known: dict[str, Cell] = {}
        self.lock = Lock()
        if self.path is not None and self.path.exists():
            if not resume:
                raise UserError(
                    f"run.dir={folder} holds cells of a frontier: resume=true, or another run.dir"
                )
            self.known = dict(map(_parsed, _whole_lines(self.path)))

    def get(self, key: str) -> Cell | None:
        return self.known.get(key)

    def put(self, key: str, cell: Cell) -> None:
        with self.lock:
            self.known[key] = cell
            if self.path is not None:
                with self.path.open("a", encoding="utf-8") as file:
                    file.write(json.dumps([key, *cell]) + "\n")


def _whole_lines(path: Path) -> list[Any]:
    """A run that was killed may leave the start of a line as the last one: it is dropped."""
    lines = path.read_text(encoding="utf-8").split("\n")
    path.write_text("".join(f"{line}\n" for line in lines[:-1]), encoding="utf-8")
    return [json.loads(line) for line in lines[:-1]]


def _parsed(entry: Any) -> tuple[str, Cell]:
    key, on_time, due, metrics = entry
    return key, Cell(on_time, due, metrics)
