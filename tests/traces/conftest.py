"""A strategy for traces, and a fixture that saves bytes as a file."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import strategies as st

from traces import Trace, TraceKind
from traces.prefix import PrefixBlocks
from traces.trace import renumbered

TEXT = st.text(st.characters(codec="utf-8"), min_size=1, max_size=8)
SECONDS = st.floats(0, 1e6, allow_subnormal=False)
TOKENS = st.integers(1, 2**31 - 1)


def prefix_of(lists: list[list[int]], block_tokens: int | None) -> PrefixBlocks:
    start = np.cumsum([0, *map(len, lists)])
    ids = np.array([i for blocks in lists for i in blocks], np.int64)
    return PrefixBlocks(ids=ids, start=start, block_tokens=block_tokens)


@st.composite
def small_traces(draw: st.DrawFn) -> Trace:
    """Up to eight requests of up to three models, with or without the optional columns."""
    names = draw(st.lists(TEXT, min_size=1, max_size=3, unique=True))
    row = st.tuples(SECONDS, st.integers(0, len(names) - 1), TOKENS, TOKENS)
    rows = sorted(draw(st.lists(row, min_size=1, max_size=8)))
    n = len(rows)
    labels = st.none() | st.lists(st.none() | TEXT, min_size=n, max_size=n)
    session, client = draw(labels), draw(labels)
    priority = draw(st.none() | st.lists(st.integers(-128, 127), min_size=n, max_size=n))
    ids = st.lists(st.integers(-(2**63), 2**63 - 1), max_size=3)
    blocks = draw(st.none() | st.lists(ids, min_size=n, max_size=n))
    model, models = renumbered(np.array([r[1] for r in rows], np.int32), tuple(names))
    return Trace(
        name=draw(TEXT),
        kind=draw(st.sampled_from(TraceKind)),
        models=models,
        model=model,
        arrival_s=np.array([r[0] for r in rows]),
        prompt_tokens=np.array([r[2] for r in rows], np.int32),
        output_tokens=np.array([r[3] for r in rows], np.int32),
        session=None if session is None else np.array(session, object),
        client=None if client is None else np.array(client, object),
        priority=None if priority is None else np.array(priority, np.int8),
        prefix_blocks=None
        if blocks is None
        else prefix_of(blocks, draw(st.sampled_from([None, 16]))),
        lineage=tuple(draw(st.lists(TEXT, max_size=2))),
        licence=draw(TEXT),
    )


st.register_type_strategy(Trace, small_traces())


@pytest.fixture
def save(tmp_path: Path) -> Callable[[str, bytes | str], Path]:
    """Write `data` to a file of this name and return its path."""

    def write(name: str, data: bytes | str) -> Path:
        path = tmp_path / name
        path.write_bytes(data if isinstance(data, bytes) else data.encode())
        return path

    return write
