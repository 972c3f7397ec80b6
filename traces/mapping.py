"""`ColumnMap`: which columns of a file are a trace's, and how its times are written."""

from dataclasses import dataclass, fields, replace
from enum import StrEnum

from traces.errors import TraceError
from traces.schema import COLUMNS


class TimeUnit(StrEnum):
    AUTO = "auto"  # texts are ISO 8601, numbers s, ms, us or ns by their size
    S = "s"
    MS = "ms"
    US = "us"
    NS = "ns"
    ISO = "iso"  # 2024-05-10T08:30:00.25+02:00; without an offset: in `timezone`
    CLOCK = "clock"  # hours:minutes:seconds since the start


@dataclass(frozen=True, slots=True, kw_only=True)
class ColumnMap:
    """Names of a file's columns, by the column of a trace that each is. A dot goes into an object:
    usage.prompt_tokens. What is None goes by the file's known format, or by the trace's own name.
    """

    arrival_s: str | None = None
    model: str | None = None
    prompt_tokens: str | None = None
    output_tokens: str | None = None
    session: str | None = None
    client: str | None = None
    priority: str | None = None
    prefix_blocks: str | None = None
    unit: TimeUnit = TimeUnit.AUTO
    timezone: str = "UTC"  # of times that state no offset
    model_name: str | None = None  # of every request, where no column tells it
    drop_empty: bool = False  # leave out requests without prompt or output tokens

    def __post_init__(self) -> None:
        if self.model is not None and self.model_name is not None:
            raise TraceError(
                f"trace.map.model_name={self.model_name}: expected no trace.map.model as well"
            )

    @property
    def named(self) -> dict[str, str]:
        """The columns that are named, by the column of a trace."""
        names = {column: getattr(self, column) for column in COLUMNS}
        return {column: name for column, name in names.items() if name is not None}

    def over(self, below: "ColumnMap") -> "ColumnMap":
        """This map where it says something, else `below`."""
        said = {f.name: getattr(self, f.name) for f in fields(self)}
        changed = {k: v for k, v in said.items() if v != getattr(NOTHING, k)}
        if "model_name" in changed:
            changed["model"] = None
        if "model" in changed and changed["model"] is not None:
            changed["model_name"] = None
        return replace(below, **changed)


NOTHING = ColumnMap()
OWN = ColumnMap(**{column: column for column in COLUMNS}, unit=TimeUnit.S)
