"""Hears of all that happens in the pool, and tells metrics, logs and spans."""

from collections import defaultdict
from collections.abc import Callable
from datetime import UTC, datetime
from typing import NamedTuple

from runtime.core import NONE, NS, EventKind
from runtime.pool.state import Record, State
from runtime.service.book import Entry
from runtime.service.logs import Logs, RequestRow
from runtime.service.messages import End
from runtime.service.metrics import Metrics
from runtime.service.observer import Observer
from runtime.service.telemetry import Part, Telemetry

STATUS = {  # of the request log
    End.STOP: "done",
    End.LENGTH: "done",
    End.CANCELLED: "cancelled",
    End.SHED: "shed",
    End.DRAINING: "running",
}  # all others: failed


class Prefill(NamedTuple):
    """The last one of a request; `switch_*`: of the instance, just before it."""

    instance: int
    start_ns: int
    end_ns: int
    switch_start_ns: int
    switch_end_ns: int


class Recorder(Observer):
    """`logs` and `spans` where they are wanted. `state` is the controller's; `policy` names the one
    in charge."""

    def __init__(
        self,
        metrics: Metrics,
        state: State,
        policy: Callable[[], str],
        logs: Logs | None = None,
        spans: Telemetry | None = None,
    ) -> None:
        self.metrics, self.state, self.policy = metrics, state, policy
        self.logs, self.spans = logs, spans
        self.last_ns: dict[int, int] = {}  # of each request: its last token, or its arrival
        self.prefills: dict[int, Prefill] = {}
        self.given: list[int] = []  # requests with a token at the boundary under way
        self.switches: dict[int, tuple[int, int]] = defaultdict(lambda: (NONE, NONE))

    def on_event(self, event: Record, source: str) -> None:
        if self.logs is not None:
            self.logs.event(event, source, self._routed(event))
        if self.spans is not None:
            self._follow(event)

    def on_arrival(self, entry: Entry, time_ns: int) -> None:
        self.last_ns[entry.ask.id] = time_ns
        self.metrics.arrived(entry.ask.model, len(entry.ask.prompt))

    def on_token(self, entry: Entry, time_ns: int) -> None:
        number, count = entry.ask.id, len(entry.output)
        model = self.state.models[entry.model]
        due_ns = entry.arrival_ns + int(model["ttft_ns"]) + (count - 1) * int(model["tbt_ns"])
        self.metrics.token(
            entry.ask.model,
            (time_ns - self.last_ns[number]) / NS,
            is_first=count == 1,
            is_on_time=time_ns <= due_ns,
        )
        self.last_ns[number] = time_ns
        if self.spans is not None:
            self.given.append(number)

    def on_end(self, entry: Entry, request: Record, end: End, time_ns: int) -> None:
        status = STATUS.get(end, "failed")
        self.metrics.ended(entry.ask.model, status)
        self.last_ns.pop(entry.ask.id, None)
        row = row_of(entry, request, status, self.policy())
        if self.logs is not None:
            self.logs.request(row)
        prefill = self.prefills.pop(entry.ask.id, None)
        if self.spans is not None:
            parts = parts_of(row, prefill, time_ns)
            self.spans.request(row.request_id, row.model, status, parts)

    def on_refusal(self, request_id: str, model: str, end: End, time_ns: int) -> None:
        if model not in self.metrics.names:
            return  # names that clients make up are no labels
        status = "shed" if end in (End.SHED, End.DRAINING) else "failed"
        self.metrics.ended(model, status)
        if self.logs is not None:
            nothing = (None, None, 0, request_id, status, None, None, 0, None, 0, self.policy())
            self.logs.request(RequestRow(time_ns / NS, model, 0, 0, *nothing))

    def on_instance(self, instance: int, epoch: int, what: str, reason: str) -> None:
        if what == "down":
            self.metrics.worker_restarts.labels(str(instance)).inc()

    def _routed(self, event: Record) -> int:
        if event["kind"] != EventKind.ROUTE:
            return NONE
        return int(self.state.requests["model"][event["request"]])

    def _follow(self, event: Record) -> None:
        """Switches and prefills, for the spans of the requests that had them."""
        kind, g, now_ns = int(event["kind"]), int(event["instance"]), int(event["time_ns"])
        if kind == EventKind.TURN:
            self.switches[g] = now_ns, NONE
        elif kind == EventKind.SWITCHED:
            self.switches[g] = self.switches[g][0], now_ns
        elif kind == EventKind.PREFILLED:
            start_ns = now_ns - round(float(event["x"]) * NS)
            for number in self.given:
                self.prefills[number] = Prefill(g, start_ns, now_ns, *self.switches[g])
        self.given.clear()


def seconds(time_ns: int) -> float | None:
    return None if time_ns == NONE else time_ns / NS


def row_of(entry: Entry, request: Record, status: str, policy: str) -> RequestRow:
    ask, instance = entry.ask, entry.last_instance
    last_ns = int(request["last_token_ns"]) if entry.output else NONE
    return RequestRow(
        arrival_s=entry.arrival_ns / NS,
        model=ask.model,
        prompt_tokens=len(ask.prompt),
        output_tokens=len(entry.output),
        session=ask.session or None,
        client=ask.client or None,
        priority=max(-128, min(127, ask.priority)),
        request_id=ask.request_id,
        status=status,
        first_token_s=seconds(int(request["first_token_ns"])),
        last_token_s=seconds(last_ns),
        tokens_on_time=int(request["on_time_tokens"]),
        instance=None if instance == NONE else instance,
        turns=entry.turns,
        policy=policy,
    )


def parts_of(row: RequestRow, prefill: Prefill | None, end_ns: int) -> list[Part]:
    """Of its life, in order; a switch is the one that its (last) prefill had to wait for."""
    if prefill is None:
        return [Part("queue", row.arrival_s, end_ns / NS)]
    g, start_s, end_s = prefill.instance, prefill.start_ns / NS, prefill.end_ns / NS
    parts = [Part("queue", row.arrival_s, max(row.arrival_s, start_s))]
    switched_s = prefill.switch_end_ns / NS
    if row.arrival_s < switched_s <= start_s:
        parts.append(Part("switch", prefill.switch_start_ns / NS, switched_s, g))
    parts.append(Part("prefill", start_s, end_s, g))
    if row.last_token_s is not None and row.last_token_s > end_s:
        parts.append(Part("decode", end_s, row.last_token_s, row.instance, row.output_tokens))
    return parts


def moment_of(began_s: float) -> datetime:
    """Seconds since 1970 as the logs' start."""
    return datetime.fromtimestamp(began_s, UTC)
