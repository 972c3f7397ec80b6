"""`TraceChoice`: a trace that episodes may play, and which part of it."""

from dataclasses import dataclass
from functools import lru_cache
from math import inf

from runtime.errors import UserError
from traces import Trace
from traces.market import MarketSpec, generate
from traces.parts import SHARES, cut_parts, open_part
from traces.source import TraceSource
from traces.splits import Part


@dataclass(frozen=True, slots=True, kw_only=True)
class TraceChoice(TraceSource):
    """A file, a named trace, or a `market` to generate; and of it one `part`: what its split says
    where conf/splits knows it, else cut by time at `shares` (train, validation). `weight`: how
    often it is drawn beside the others."""

    market: MarketSpec | None = None
    part: Part = Part.TRAIN
    shares: tuple[float, float] = SHARES
    weight: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.weight < inf:
            raise UserError(f"traces: weight={self.weight}: expected more than 0")
        if self.market is not None and self.path is not None:
            raise UserError(f"traces: path={self.path}: expected no market beside it")


@lru_cache(maxsize=16)
def opened(choice: TraceChoice) -> Trace:
    """The part of the trace, in memory. Raises UserError where there is none of it."""
    if choice.market is None:
        fields = TraceSource.__dataclass_fields__
        source = TraceSource(**{name: getattr(choice, name) for name in fields})
        return open_part(source, choice.part, choice.shares)
    trace = generate(choice.market).scale_rate(choice.rate_scale)
    return cut_parts(trace, choice.shares).of(choice.part)
