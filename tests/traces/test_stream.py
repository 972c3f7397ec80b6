"""`TraceStream`: chunks of any size are the same trace."""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from traces import Trace, TraceError, TraceKind
from traces.stream import Chunk, TraceStream, collect, joined, of_trace


def chunk(*arrivals_s: float) -> Chunk:
    """Requests of one model."""
    n = len(arrivals_s)
    ones = np.ones(n, np.int32)
    return Chunk(np.array(arrivals_s, float), ones - 1, ones, ones, np.zeros(n, np.int8))


def stream(*chunks: Chunk) -> TraceStream:
    def start() -> Iterator[Chunk]:
        yield from chunks

    return TraceStream(name="t", kind=TraceKind.LOG, models=("a", "b"), start=start)


@given(trace=st.from_type(Trace), rows=st.integers(1, 9))
@settings(max_examples=60, deadline=None)
def test_collect_gives_the_chunked_trace_back(trace: Trace, rows: int) -> None:
    chunked = of_trace(trace, rows)
    assert all(1 <= part.requests <= rows for part in chunked.chunks())
    again = collect(chunked)
    assert again.sha256 == trace.sha256
    assert (again.name, again.kind, again.models) == (trace.name, trace.kind, trace.models)
    assert (again.lineage, again.licence) == (trace.lineage, trace.licence)
    for label in ("session", "client"):
        old, new = getattr(trace, label), getattr(again, label)
        assert (new is None and old is None) or new.tolist() == old.tolist()
    expected = np.zeros(trace.requests) if trace.priority is None else trace.priority
    assert joined(chunked.chunks()).priority.tolist() == expected.tolist()


def test_chunks_start_again_each_time() -> None:
    twice = stream(chunk(0.0, 1.0), chunk(1.0, 2.0))
    first, second = ([c.arrival_s.tolist() for c in twice.chunks()] for _ in range(2))
    assert first == second == [[0.0, 1.0], [1.0, 2.0]]


def test_chunks_leave_out_empty_ones() -> None:
    assert [c.requests for c in stream(chunk(), chunk(1.0), chunk()).chunks()] == [1]


def test_chunks_without_a_request_are_refused() -> None:
    nothing = replace(stream(chunk()), lineage=("read t.csv", "thin 0.1"))
    with pytest.raises(TraceError, match=r"^trace t: no requests after: thin 0\.1: expected"):
        list(nothing.chunks())


def test_chunks_out_of_order_are_refused() -> None:
    with pytest.raises(TraceError, match=r"trace t: arrival_s 1\.0 after 2\.0: expected"):
        list(stream(chunk(0.0, 2.0), chunk(1.0)).chunks())


def test_collect_drops_models_without_a_request() -> None:
    assert collect(stream(chunk(0.5))).models == ("a",)


def test_collect_of_nothing_names_the_trace() -> None:
    with pytest.raises(TraceError, match="trace t: no requests: expected at least one"):
        collect(stream())


def test_joined_fills_labels_that_a_part_lacks() -> None:
    labelled = chunk(1.0)._replace(session=np.array(["s"], object))
    whole = joined([chunk(0.0), labelled])
    assert whole.session is not None
    assert whole.session.tolist() == [None, "s"]
    assert whole.client is None
