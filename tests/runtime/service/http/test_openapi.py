"""The OpenAPI document is true: its answers are as it says, and nothing it could send is a 5xx."""

from __future__ import annotations

from typing import Any

import httpx2
import pytest
import schemathesis
from http_rig import CARDS, Served
from hypothesis import HealthCheck, given, settings
from schemathesis import GenerationMode
from schemathesis.checks import load_all_checks, not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    negative_data_rejection,
    response_schema_conformance,
    status_code_conformance,
)

load_all_checks()
CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
]
PATHS = {
    "/v1/completions": 20,
    "/v1/chat/completions": 20,
    "/v1/models": 3,
    "/v1/models/{model}": 10,
    "/admin/models/pin": 10,
    "/admin/policy": 10,
    "/metrics": 3,
}


@pytest.fixture(scope="module")
def document(server: Served) -> dict[str, Any]:
    """As served, but for models: those that are there, so that requests come through."""
    found: dict[str, Any] = httpx2.get(f"{server.url}/openapi.json").json()
    for name in ("CompletionBody", "ChatBody"):
        properties = found["components"]["schemas"][name]["properties"]
        properties["model"] = {"enum": list(CARDS)}
    return found


@pytest.mark.parametrize("mode", [GenerationMode.POSITIVE, GenerationMode.NEGATIVE])
@pytest.mark.parametrize("path", PATHS)
def test_answers_are_as_the_document_says(
    server: Served, document: dict[str, Any], path: str, mode: GenerationMode
) -> None:
    schema = schemathesis.openapi.from_dict(document)
    schema.config.update(base_url=server.url)
    method = "POST" if "post" in document["paths"][path] else "GET"
    is_negative = mode is GenerationMode.NEGATIVE
    if is_negative and method == "GET":
        pytest.skip("nothing in it can be wrong")
    seen: set[int] = set()
    checks = [*CHECKS, negative_data_rejection] if is_negative else CHECKS

    @settings(max_examples=PATHS[path], deadline=None, suppress_health_check=list(HealthCheck))
    @given(case=schema[path][method].as_strategy(generation_mode=mode))
    def check(case: schemathesis.Case) -> None:
        response = case.call_and_validate(checks=checks, timeout=20)
        seen.add(response.status_code)

    check()
    assert (min(seen) >= 400) if is_negative else (200 in seen or path == "/v1/models/{model}")


def test_every_route_but_the_page_is_documented_with_its_errors(document: dict[str, Any]) -> None:
    operations = [
        operation for routes in document["paths"].values() for operation in routes.values()
    ]
    assert len(operations) == 15
    for operation in operations:
        assert {"200", "400", "401", "404", "429", "503"} <= set(operation["responses"])
        assert "422" not in operation["responses"]
