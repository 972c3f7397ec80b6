"""Splits of known traces into train, validation and test: fixed in conf/splits/*.yaml.

A split states files, and either the parts of clients and of days, or the `only` part that the files
are in. A part takes the requests of its clients on its days, so two parts share neither.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from importlib.resources import files as resources
from typing import Any

import yaml

from traces import steps
from traces.errors import UserError, nearest
from traces.stream import TraceStream
from traces.warp import DAY_S

CLIENT = re.compile(r"-c(\d+)$")  # a model that is a client of ServeGen: POOL-cNUMBER


class Part(StrEnum):
    TRAIN = "train"
    VALIDATION = "validation"
    TEST = "test"


@dataclass(frozen=True, slots=True, kw_only=True)
class Split:
    """`files` maps a file's name, without ending, to the day of the source it starts at. `days` and
    `clients` give each part its days and its remainders of client numbers by `modulo`."""

    name: str
    about: str
    files: Mapping[str, int]
    only: Part | None = None
    modulo: int = 1
    clients: Mapping[Part, Sequence[int]] | None = None
    days: Mapping[Part, Sequence[int]] | None = None

    def __post_init__(self) -> None:
        """Raises UserError for parts that overlap or leave a client without one."""
        if (self.only is None) != (self.clients is not None and self.days is not None):
            raise UserError(f"split {self.name}: expected either only, or clients and days")
        for key, parts in (("clients", self.clients), ("days", self.days)):
            seen: dict[int, Part] = {}
            for part, numbers in (parts or {}).items():
                for number in numbers:
                    if number in seen:
                        raise UserError(
                            f"split {self.name}: {key}: {number} is in {seen[number]} and {part}:"
                            " expected in one part"
                        )
                    seen[number] = part
        left = sorted(n for n in range(self.modulo) if self.clients and self._part_of(n) is None)
        if left:
            raise UserError(f"split {self.name}: clients: {left[0]} is in no part")

    def _part_of(self, remainder: int) -> Part | None:
        parts = (self.clients or {}).items()
        return next((part for part, numbers in parts if remainder in numbers), None)

    def part_of_model(self, model: str) -> Part:
        """Raises UserError for a name that is no client."""
        if self.only is not None:
            return self.only
        found = CLIENT.search(model)
        if found is None:
            raise UserError(
                f"split {self.name}: model {model!r}: expected a client, as m-large-c007"
            )
        part = self._part_of(int(found[1]) % self.modulo)
        assert part is not None
        return part

    def select(self, stream: TraceStream, part: Part, file: str) -> list[TraceStream]:
        """The part's requests of a trace that is `file`: a stream for each run of days in a row.
        Empty where the file has no day or client of the part. Raises UserError for a file that the
        split does not know."""
        first = self.first_day(file)
        models = [name for name in stream.models if self.part_of_model(name) is part]
        if not models:
            return []
        if self.days is None:
            return [stream]
        chosen = replace(steps.keep(stream, *models), lineage=stream.lineage)
        last = first + int(steps.extent(stream)[1] // DAY_S)
        return [
            replace(
                steps.days(chosen, low - first, high - first),
                lineage=(*stream.lineage, f"split {self.name} {part} days {low} {high}"),
            )
            for low, high in runs([day for day in self.days[part] if first <= day <= last])
        ]

    def first_day(self, file: str) -> int:
        if file not in self.files:
            raise UserError(f"split {self.name}: no file {file!r}; {nearest(file, self.files)}")
        return self.files[file]


def runs(days: Sequence[int]) -> list[tuple[int, int]]:
    """Days in a row as (first, last)."""
    found: list[tuple[int, int]] = []
    for day in sorted(days):
        if found and day == found[-1][1] + 1:
            found[-1] = (found[-1][0], day)
        else:
            found.append((day, day))
    return found


def split_names() -> list[str]:
    folder = resources("conf") / "splits"
    return sorted(file.name.removesuffix(".yaml") for file in folder.iterdir())


def load_split(name: str) -> Split:
    """Raises UserError for a name that there is not, or a file that is no split."""
    if name not in split_names():
        raise UserError(f"split={name}: {nearest(name, split_names())}")
    content = yaml.safe_load((resources("conf") / "splits" / f"{name}.yaml").read_text("utf-8"))
    return parsed(name, content)


def parsed(name: str, content: Mapping[str, Any]) -> Split:
    """A split from its YAML. Raises UserError naming the key that is not right."""
    known = {"about", "files", "only", "clients", "days"}
    for key in content:
        if key not in known:
            raise UserError(f"split {name}: {key}: unknown key; {nearest(key, known)}")
    clients = dict(content.get("clients") or {})
    modulo = clients.pop("modulo", 1)
    return Split(
        name=name,
        about=str(content.get("about", "")),
        files=dict(content.get("files") or {}),
        only=None if content.get("only") is None else _part(name, content["only"]),
        modulo=modulo,
        clients=_parts(name, clients),
        days=_parts(name, content.get("days") or {}),
    )


def _parts(name: str, stated: Mapping[str, Sequence[int]]) -> dict[Part, tuple[int, ...]] | None:
    if not stated:
        return None
    found = {_part(name, part): tuple(numbers) for part, numbers in stated.items()}
    return {part: found.get(part, ()) for part in Part}


def _part(name: str, text: str) -> Part:
    if text not in list(Part):
        raise UserError(f"split {name}: part {text!r}; {nearest(text, [p.value for p in Part])}")
    return Part(text)


def split_of(file: str) -> Split | None:
    """The split that knows a file, by its name without ending; None for a user's own."""
    found = [split for split in map(load_split, split_names()) if file in split.files]
    return found[0] if found else None
