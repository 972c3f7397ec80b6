"""OpenTelemetry spans of each request: queue, prefill, decode, switch.

Made only where the extra `telemetry` is installed and OTEL_EXPORTER_OTLP_ENDPOINT (or the traces
endpoint of its own) is set. A span is written once it is over, from the times that are known then.
"""

import os
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from runtime.errors import UserError

ENDPOINTS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
SERVICE = "aegaeon-rl"


class Part(NamedTuple):
    """Of a request: "queue", "switch", "prefill" or "decode"; seconds of the pool's clock."""

    name: str
    start_s: float
    end_s: float
    instance: int | None = None
    tokens: int | None = None


class Telemetry:
    """`tracer`: of opentelemetry.trace; `start_ns`: the moment of the pool's zero, since 1970."""

    def __init__(self, tracer: Any, start_ns: int, close: Callable[[], None]) -> None:
        self.tracer, self.start_ns, self.close = tracer, start_ns, close

    def request(self, request_id: str, model: str, status: str, parts: Iterable[Part]) -> None:
        """A request that has ended, as a span that holds one for each of its parts."""
        from opentelemetry.trace import set_span_in_context

        parts = list(parts)
        if not parts:
            return
        facts = {"request.id": request_id, "gen_ai.request.model": model, "status": status}
        whole = self.tracer.start_span(
            "request", start_time=self._at(parts[0].start_s), attributes=facts
        )
        inside = set_span_in_context(whole)
        for part in parts:
            known = {"instance": part.instance, "tokens": part.tokens}
            span = self.tracer.start_span(
                part.name,
                context=inside,
                start_time=self._at(part.start_s),
                attributes={k: v for k, v in known.items() if v is not None},
            )
            span.end(self._at(part.end_s))
        whole.end(self._at(max(part.end_s for part in parts)))

    def _at(self, seconds: float) -> int:
        return self.start_ns + round(seconds * 1e9)


def telemetry(start_ns: int) -> Telemetry | None:
    """None where no endpoint is set. Raises UserError where one is and the extra is missing."""
    endpoint = next((name for name in ENDPOINTS if os.environ.get(name)), None)
    if endpoint is None:
        return None
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError:
        raise UserError(
            f"{endpoint} is set: expected the extra: pip install 'aegaeon-rl[telemetry]'"
        ) from None
    provider = TracerProvider(resource=Resource.create({"service.name": SERVICE}))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return Telemetry(provider.get_tracer(SERVICE), start_ns, provider.shutdown)
