"""What a workload is: schema, readers, generators, statistics. Imports nothing of ours."""

from traces.errors import TraceError, UserError
from traces.read import read
from traces.statistics import TraceFacts, describe
from traces.trace import Trace, TraceKind
from traces.write import write

__all__ = [
    "Trace",
    "TraceError",
    "TraceFacts",
    "TraceKind",
    "UserError",
    "describe",
    "read",
    "write",
]
