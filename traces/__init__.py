"""What a workload is: schema, readers, generators, statistics. Imports nothing of ours.

Names are imported when first used: who only reports a mistake (`traces.errors`) needs no Parquet.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from traces.errors import TraceError, UserError
    from traces.reading import read
    from traces.statistics import TraceFacts, describe
    from traces.trace import Trace, TraceKind
    from traces.writing import write

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

HOMES = {
    "Trace": "trace",
    "TraceError": "errors",
    "TraceFacts": "statistics",
    "TraceKind": "trace",
    "UserError": "errors",
    "describe": "statistics",
    "read": "reading",
    "write": "writing",
}


def __getattr__(name: str) -> Any:
    if name not in HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{HOMES[name]}"), name)
