"""`Format`: how a known kind of file says what a trace says."""

from collections.abc import Callable
from dataclasses import dataclass, field

import pyarrow as pa

from traces.mapping import ColumnMap
from traces.schema import REQUIRED
from traces.trace import TraceKind

Derive = Callable[[pa.Table], pa.Table]


@dataclass(frozen=True, slots=True, kw_only=True)
class Format:
    """A file is of this format when it has all columns of `needs` (by default: those that the map
    names for a trace's required columns). `failed` names rows that no engine served: by column,
    the values that say so."""

    name: str
    columns: ColumnMap
    needs: tuple[str, ...] = ()
    kind: TraceKind = TraceKind.LOG
    failed: dict[str, frozenset[str]] = field(default_factory=dict)
    keeps_zero: bool = False  # arrivals count from the trace's start, not from the first request
    block_tokens: int | None = None
    # makes the columns that the file has only indirectly, chunk by chunk in the file's order, from
    # texts; their names start with a colon
    derive: Callable[[], Derive] | None = None
    derived: dict[str, tuple[str, ...]] = field(default_factory=dict)  # column: made from these

    def fits(self, names: list[str]) -> bool:
        named = self.columns.named
        needs = self.needs or tuple(named[c] for c in REQUIRED.names if c in named)
        return set(needs) <= set(names)
