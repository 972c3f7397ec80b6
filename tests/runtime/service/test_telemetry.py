"""Spans of a request lie within it, at the times that were measured."""

import json
import logging
import sys

import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from runtime.errors import UserError
from runtime.service.structured import AsJson
from runtime.service.telemetry import ENDPOINTS, Part, Telemetry, telemetry


def test_spans_of_a_request_lie_within_it() -> None:
    kept = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(kept))
    made = Telemetry(provider.get_tracer("t"), 1_000, provider.shutdown)
    parts = [Part("queue", 1.0, 2.0), Part("decode", 2.0, 4.5, instance=1, tokens=9)]
    made.request("r1", "a", "done", parts)
    spans = {span.name: span for span in kept.get_finished_spans()}
    assert set(spans) == {"request", "queue", "decode"}
    whole = spans["request"]
    assert (whole.start_time, whole.end_time) == (1_000_001_000, 4_500_001_000)
    assert dict(whole.attributes or {})["request.id"] == "r1"
    for name in ("queue", "decode"):
        assert spans[name].parent == whole.get_span_context()
    assert dict(spans["decode"].attributes or {}) == {"instance": 1, "tokens": 9}
    made.close()


def test_without_an_endpoint_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ENDPOINTS:
        monkeypatch.delenv(name, raising=False)
    assert telemetry(0) is None


def test_endpoint_without_the_extra_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ENDPOINTS[0], "http://127.0.0.1:1")
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace", None)
    with pytest.raises(UserError, match=r"expected the extra: pip install"):
        telemetry(0)


def test_log_line_is_json_with_the_requests_id() -> None:
    record = logging.LogRecord("aegaeon_rl.x", logging.WARNING, "f", 1, "said\n%s", ("ä",), None)
    record.request_id = "r7"
    text = AsJson().format(record)
    assert "\n" not in text
    line = json.loads(text)
    assert (line["message"], line["request_id"], line["level"]) == ("said\nä", "r7", "warning")
