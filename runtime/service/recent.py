"""The last minute of a pool: spans of turns and once-a-second levels, read off its tables.

Letters: G instances, M models.
"""

from collections import deque
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from runtime.core import NS, RequestPhase, Stage
from runtime.pool import lists
from runtime.pool.state import LISTS_PER_INSTANCE, Record, State, Table
from runtime.service.book import Entry
from runtime.service.messages import End
from runtime.service.observer import Observer
from runtime.slo import gap_quantile_s
from runtime.timeline.spans import SpanKind

KEPT_S = 60  # of levels
SHOWN_S = 30  # of spans
MOST_SPANS = 3000
OVER_S = 10  # quantiles are of the requests and gaps of so many seconds
OPEN = (RequestPhase.WAITING, RequestPhase.READY, RequestPhase.RUNNING)
KIND_OF: dict[int, int] = {
    Stage.DOWN: SpanKind.DOWN,
    Stage.COMMANDED: SpanKind.SWITCH,
    Stage.BLOCKED: SpanKind.BLOCKED,
    Stage.KV_IN: SpanKind.KV_IN,
    Stage.PREFILL: SpanKind.PREFILL,
    Stage.DECODE: SpanKind.DECODE,
}


class Span(NamedTuple):
    instance: int
    kind: int  # SpanKind
    model: int
    start_ns: int
    end_ns: int
    n: int  # requests of its batch when it ended


class Level(NamedTuple):
    """Of one second, at its end."""

    time_ns: int
    in_flight: int
    waiting: int  # owned by no turn
    emitted: npt.NDArray[np.int64]  # [M] tokens so far
    on_time: npt.NDArray[np.int64]  # [M]
    missed: npt.NDArray[np.int64]  # [M] that came late so far, or are overdue now
    first_s: list[float]  # TTFT of the requests that had their first token within it
    gaps: npt.NDArray[np.int64]  # histogram so far (slo.py)


class Recent(Observer):
    """Hears of each event after it was applied, and of each end before its slot is released."""

    def __init__(self, state: State) -> None:
        self.state = state
        self.spans: deque[Span] = deque(maxlen=MOST_SPANS)
        self.levels: deque[Level] = deque(maxlen=KEPT_S + 1)
        self.stage = state.instances["stage"]
        self.seen = self.stage.copy()
        self.model = state.instances["model"]
        self.seen_model = self.model.copy()
        self.since_ns = np.zeros(len(self.seen), np.int64)
        self.gone_emitted = np.zeros(len(state.models), np.int64)
        self.gone_on_time = np.zeros(len(state.models), np.int64)
        self.gone = np.zeros(len(state.models), np.int64)
        self.first_s: list[float] = []
        self.sampled_ns = 0
        self.ended = dict.fromkeys(RequestPhase, 0)
        self._sample(0)

    @property
    def now_ns(self) -> int:
        return int(self.state.pool["now_ns"][0])

    def on_event(self, event: Record, source: str) -> None:
        now_ns = int(event["time_ns"])
        if (self.stage != self.seen).any() or (self.model != self.seen_model).any():
            self._note_stages(now_ns)
        self.advance(now_ns)

    def advance(self, now_ns: int) -> None:
        """Time has passed, perhaps without an event."""
        if now_ns >= self.sampled_ns + NS:
            self._sample(now_ns)

    def on_refusal(self, request_id: str, model: str, end: End, time_ns: int) -> None:
        is_shed = end in (End.SHED, End.DRAINING)
        self.ended[RequestPhase.SHED if is_shed else RequestPhase.FAILED] += 1

    def on_end(self, entry: Entry | None, request: Record, end: End, time_ns: int) -> None:
        model = int(request["model"])
        self.gone[model] += 1
        self.gone_emitted[model] += request["emitted_tokens"]
        self.gone_on_time[model] += request["on_time_tokens"]
        self.ended[RequestPhase(int(request["phase"]))] += 1
        first_ns = int(request["first_token_ns"])
        if first_ns > self.sampled_ns:
            self.first_s.append((first_ns - int(request["arrival_ns"])) / NS)

    def open_spans(self, now_ns: int) -> list[Span]:
        """What is under way, as if it ended now."""
        instances = range(len(self.seen))
        found = [self._span(g, int(self.stage[g]), now_ns) for g in instances]
        return [span for span in found if span is not None]

    def _note_stages(self, now_ns: int) -> None:
        changed = (self.stage != self.seen) | (self.model != self.seen_model)
        for g in np.flatnonzero(changed).tolist():
            span = self._span(g, int(self.seen[g]), now_ns)
            if span is not None:
                self._add(span)
            self.since_ns[g] = now_ns
            self.seen[g], self.seen_model[g] = self.stage[g], self.model[g]

    def _span(self, g: int, stage: int, now_ns: int) -> Span | None:
        kind, since_ns = KIND_OF.get(stage), int(self.since_ns[g])
        if kind is None or since_ns >= now_ns:
            return None
        return Span(g, kind, int(self.seen_model[g]), since_ns, now_ns, self._batch(g))

    def _overdue(self, live: Table, now_ns: int) -> npt.NDArray[np.int64]:
        """Tokens that each request should have by now and has not; as if its answer were as long as
        those of its model before it, for nobody knows."""
        model = live["model"]
        rows = self.state.models[model]
        waited_ns = now_ns - live["arrival_ns"] - rows["ttft_ns"]
        due = np.where(waited_ns < 0, 0, waited_ns // rows["tbt_ns"] + 1)
        usual = self.gone_emitted[model] // np.maximum(1, self.gone[model])
        due = np.minimum(due, np.maximum(usual, live["emitted_tokens"] + 1))
        is_open = np.isin(live["phase"], OPEN)
        return np.where(is_open, np.maximum(0, due - live["emitted_tokens"]), 0)

    def _batch(self, g: int) -> int:
        first = 2 * len(self.state.models) + LISTS_PER_INSTANCE * g
        return int(self.state.lists["count"][first + lists.BATCH])

    def _add(self, span: Span) -> None:
        """Prefills and decodes of a turn that follow each other are kept apart, equals joined."""
        last = self.spans[-1] if self.spans else None
        if last is not None and last[:3] == span[:3] and last.end_ns == span.start_ns:
            self.spans[-1] = last._replace(end_ns=span.end_ns, n=span.n)
        else:
            self.spans.append(span)

    def _sample(self, now_ns: int) -> None:
        state = self.state
        requests, models = state.requests, len(state.models)
        live = requests[requests["phase"] != RequestPhase.FREE]
        new = live[live["first_token_ns"] > self.sampled_ns]
        waits_s = (new["first_token_ns"] - new["arrival_ns"]) / NS
        model = live["model"]
        emitted = np.bincount(model, live["emitted_tokens"], models).astype(np.int64)
        on_time = np.bincount(model, live["on_time_tokens"], models).astype(np.int64)
        overdue = np.bincount(model, self._overdue(live, now_ns), models).astype(np.int64)
        self.levels.append(
            Level(
                time_ns=now_ns,
                in_flight=int(state.pool["in_flight"][0]),
                waiting=int(state.pool["claimable"][0]),
                emitted=self.gone_emitted + emitted,
                on_time=self.gone_on_time + on_time,
                missed=self.gone_emitted - self.gone_on_time + emitted - on_time + overdue,
                first_s=[*self.first_s, *waits_s.tolist()],
                gaps=state.gaps.copy(),
            )
        )
        self.first_s = []
        self.sampled_ns = now_ns


CURVES = (
    *("time_s", "in_flight", "waiting", "tokens_s", "attainment"),
    *("ttft_p50_s", "ttft_p99_s", "tbt_p50_s", "tbt_p99_s"),
)


def attainment(then: Level, now: Level) -> npt.NDArray[np.float64]:
    """[M + 1] of each model, and of all: tokens on time of those that fell due meanwhile, a missed
    one counted once, when it is overdue; NaN where none did."""
    on_time = now.on_time - then.on_time
    missed = np.maximum(0, now.missed - then.missed)  # who leaves owes nothing more
    on_time, missed = np.append(on_time, on_time.sum()), np.append(missed, missed.sum())
    due = on_time + missed
    return np.where(due > 0, on_time / np.maximum(due, 1), np.nan)


def curves(recent: Recent) -> dict[str, Any]:
    """Columns of equal length, a row a second: what was so in the second before `time_s`.

    `attainment` (of the tokens that fell due) and the quantiles are over OVER_S seconds; null where
    there was none.
    """
    levels = list(recent.levels)
    rows = []
    for i in range(1, len(levels)):
        level, before, then = levels[i], levels[i - 1], levels[max(0, i - OVER_S)]
        first_s = [s for past in levels[max(1, i - OVER_S + 1) : i + 1] for s in past.first_s]
        gaps = level.gaps - then.gaps
        seconds = max(1e-9, (level.time_ns - before.time_ns) / NS)
        rows.append(
            {
                "time_s": level.time_ns / NS,
                "in_flight": level.in_flight,
                "waiting": level.waiting,
                "tokens_s": float((level.emitted - before.emitted).sum()) / seconds,
                "attainment": known(attainment(then, level)[-1]),
                "ttft_p50_s": quantile(first_s, 0.5),
                "ttft_p99_s": quantile(first_s, 0.99),
                "tbt_p50_s": gap_quantile_s(gaps, 0.5) if gaps.any() else None,
                "tbt_p99_s": gap_quantile_s(gaps, 0.99) if gaps.any() else None,
            }
        )
    return {name: [rounded(row[name]) for row in rows] for name in CURVES}


def known(value: float) -> float | None:
    """NaN is not."""
    return None if value != value else float(value)


def share(part: int, whole: int) -> float | None:
    return part / whole if whole > 0 else None


def quantile(values: list[float], q: float) -> float | None:
    ranked = sorted(values)
    return ranked[min(len(ranked) - 1, int(q * len(ranked)))] if ranked else None


def rounded(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.6g}")
