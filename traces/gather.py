"""`Gathered`: a file's chunks of rows become the columns of one trace. N rows.

Memory: 20 bytes a request, and as much again while the chunks are joined; a list of block ids 8
bytes a block; a session or client a pointer each, and its text once. Sorting needs the rows in
memory: a trace that does not fit cannot be read.
"""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from traces import columns
from traces.clock import Clock
from traces.errors import Origin
from traces.mapping import ColumnMap
from traces.prefix import joined


@dataclass(slots=True)
class Names:
    """Numbers of names, in order of first appearance over all chunks."""

    number: dict[str, int] = field(default_factory=dict)

    def codes(self, local: npt.NDArray[np.int32], names: list[str]) -> npt.NDArray[np.int32]:
        """The same codes in terms of all names; -1 stays."""
        table = [self.number.setdefault(name, len(self.number)) for name in names]
        return np.array([*table, -1], np.int32)[local]

    def of(self, codes: npt.NDArray[np.int32]) -> npt.NDArray[np.object_]:
        """The names themselves, None for -1."""
        return np.array([*self.number, None], object)[codes]


class Gathered:
    """`add` every chunk, then ask for `columns`."""

    def __init__(self, names: ColumnMap, clock: Clock, *, is_text_file: bool) -> None:
        self.names, self.clock, self.is_text_file = names, clock, is_text_file
        self.parts: dict[str, list[Any]] = {name: [] for name in names.named}
        self.models, self.labels = Names(), {"session": Names(), "client": Names()}
        self.requests = 0

    def add(self, table: pa.Table, origin: Origin) -> None:
        """Raises TraceError at the first value that is not valid."""
        for name, column in self.names.named.items():
            self.parts[name].append(self._read(name, table[column], column, origin))
        self.requests += len(table)

    def _read(self, name: str, values: pa.ChunkedArray, column: str, origin: Origin) -> Any:
        text = self.is_text_file
        match name:
            case "arrival_s":
                return self.clock.seconds(values, column, origin)
            case "model":
                return self.models.codes(*columns.models(values, column, origin))
            case "prompt_tokens" | "output_tokens":
                return columns.tokens(values, column, origin, is_text_file=text)
            case "priority":
                return columns.priorities(values, column, origin, is_text_file=text)
            case "prefix_blocks":
                return columns.blocks(values, column, origin, is_text_file=text)
            case _:
                return self.labels[name].codes(*columns.labels(values, column, origin))

    def columns(self, model_name: str) -> dict[str, Any]:
        """The columns of a trace, still in the file's order. `model_name` if no column tells."""
        made: dict[str, Any] = {}
        for name in list(self.parts):
            parts = self.parts.pop(name)
            made[name] = joined(parts) if name == "prefix_blocks" else np.concatenate(parts)
        for name in ("session", "client"):
            if name in made:
                made[name] = self.labels[name].of(made[name])
        if "model" not in made:
            made["model"] = self.models.codes(np.zeros(self.requests, np.int32), [model_name])
        return made | {"models": tuple(self.models.number)}
