"""ServeGen's data as published: two files a client in data/CATEGORY/POOL of its repository.

chunk-N-trace.csv has a line for each 10 minutes: seconds, requests/s, CV, distribution, its shape
and scale; without a distribution nobody came. chunk-N-dataset.json has a histogram of tokens,
written as a Python dict, for each 6 hours and field. The pool is the folder's name.
"""

import ast
import csv
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from traces.errors import Origin, TraceError

WINDOW_S = 600
LEVELS = (0.0, 0.005, 0.01, 0.025, *(k / 20 for k in range(1, 20)), 0.975, 0.99, 0.995, 1.0)
NAME = re.compile(r"chunk-(\d{1,9})-")
PROMPT_FIELDS = ("input_tokens", "text_tokens")  # the latter of multimodal pools
FAULTS = (  # of json, of a literal, of what either holds
    *(ValueError, SyntaxError, RecursionError, MemoryError),
    *(TypeError, AttributeError, LookupError, StopIteration),
)
Row = tuple[Any, ...]
EXPECTED = "seconds,requests/s,CV,distribution,shape,scale"


def rate_table(folder: Path, names: tuple[str, ...]) -> pa.Table:
    """Windows with a request of all clients in the folder and those below it."""
    return _table(folder, "trace.csv", names, _rates)


def length_table(folder: Path, names: tuple[str, ...]) -> pa.Table:
    """Quantiles at LEVELS of all clients; histograms that are empty are left out."""
    return _table(folder, "dataset.json", names, _lengths)


def _table(
    folder: Path, ending: str, names: tuple[str, ...], read: Callable[[Path], Iterator[Row]]
) -> pa.Table:
    """Raises TraceError for a folder without such files, or a file that is not as stated above."""
    files = [p for p in folder.rglob(f"chunk-*-{ending}") if NAME.match(p.name)]
    rows: list[Row] = []
    for path in sorted(files, key=lambda p: (p.parent, _client(p))):
        try:
            rows += [(path.parent.name, _client(path), *row) for row in read(path)]
        except (OSError, UnicodeDecodeError, csv.Error) as error:
            raise TraceError(f"{path}: cannot be read: {error}") from None
    if not rows:
        raise TraceError(f"{folder}: no requests: expected files chunk-N-{ending} of ServeGen")
    columns = zip(*rows, strict=True)
    return pa.table(dict(zip(names, map(pa.array, map(list, columns)), strict=True)))


def _client(path: Path) -> int:
    found = NAME.match(path.name)
    assert found is not None
    return int(found[1])


def _rates(path: Path) -> Iterator[Row]:
    """(start, requests, CV, distribution, shape, scale) of each window with a request."""
    with path.open(encoding="utf-8", newline="") as file:
        for number, row in enumerate(csv.reader(file)):
            try:
                start_s, rate, cv, kind, shape, scale = row
                if kind and (requests := round(float(rate) * WINDOW_S)) > 0:
                    yield float(start_s), requests, float(cv), kind, float(shape), float(scale)
            except (ValueError, OverflowError):
                raise Origin(str(path)).error(number, EXPECTED, ",".join(row), "these") from None


def _lengths(path: Path) -> Iterator[Row]:
    """(start, quantiles of prompt, of output) of each 6 hours with both histograms."""
    try:
        stated = json.loads(path.read_text(encoding="utf-8"))
        for start_s, fields in stated.items():
            prompt = next(fields[name] for name in PROMPT_FIELDS if name in fields)
            both = [_quantiles(text) for text in (prompt, fields["output_tokens"])]
            if all(both):
                yield (float(start_s), *both)
    except UnicodeDecodeError:
        raise
    except FAULTS as error:
        raise TraceError(
            f"{path}: expected histograms by start: input_tokens, output_tokens as '{{12: 0.5}}'"
            f" ({type(error).__name__}: {error})"
        ) from None


def _quantiles(text: str) -> list[float]:
    """Tokens at LEVELS of a histogram; none of an empty one."""
    histogram = ast.literal_eval(text)
    tokens = np.array(sorted(histogram), np.float64)
    if not len(tokens):
        return []
    ends = np.cumsum([float(histogram[token]) for token in sorted(histogram)])
    if not 0 < ends[-1] < np.inf or np.any(np.diff(ends, prepend=0.0) < 0):
        raise ValueError("shares: expected 0 or more, and one over 0")
    at = np.searchsorted(ends / ends[-1], np.array(LEVELS) - 1e-12)
    return tokens[np.maximum(at, np.searchsorted(ends, 0.0, side="right"))].tolist()
