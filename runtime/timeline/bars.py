"""Which model each GPU ran when: the spans of a timeline as bars to draw."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from runtime.core import NONE, NS
from runtime.pool.state import Table
from runtime.timeline.spans import SpanKind, Timeline

LOOKS = {  # what a part of a turn is drawn as
    SpanKind.SWITCH: "weights",
    SpanKind.BLOCKED: "KV",
    SpanKind.KV_IN: "KV",
    SpanKind.PREFILL: "work",
    SpanKind.DECODE: "work",
    SpanKind.DOWN: "down",
}


class Bar(NamedTuple):
    """A stretch of one look on one GPU. `model` is NONE where it is down."""

    instance: int
    model: int
    look: str
    start_s: float
    end_s: float


def bars(timeline: Timeline) -> list[Bar]:
    """By GPU and time, cut to the timeline; what touches and looks alike is one bar."""
    return bars_of(timeline.spans, timeline.start_ns, timeline.end_ns)


def bars_of(spans: Table, from_ns: int, to_ns: int) -> list[Bar]:
    """The same of spans, cut to [from_ns, to_ns)."""
    spans = spans[np.isin(spans["kind"], list(LOOKS))]
    spans = spans[np.lexsort((spans["end_ns"], spans["start_ns"], spans["instance"]))]
    start_ns = np.clip(spans["start_ns"], from_ns, to_ns).tolist()
    end_ns = np.clip(spans["end_ns"], from_ns, to_ns).tolist()
    drawn: list[Bar] = []
    for i, (since_ns, until_ns) in enumerate(zip(start_ns, end_ns, strict=True)):
        if since_ns == until_ns:
            continue
        look = LOOKS[SpanKind(int(spans["kind"][i]))]
        model = int(spans["model"][i]) if look != "down" else NONE
        bar = Bar(int(spans["instance"][i]), model, look, since_ns / NS, until_ns / NS)
        if drawn and drawn[-1][:3] == bar[:3] and drawn[-1].end_s == bar.start_s:
            drawn[-1] = drawn[-1]._replace(end_s=bar.end_s)
        else:
            drawn.append(bar)
    return drawn


def share_of(drawn: Sequence[Bar], look: str, gpu_s: float) -> float:
    """Share of GPU time drawn with a look."""
    return sum(bar.end_s - bar.start_s for bar in drawn if bar.look == look) / gpu_s
