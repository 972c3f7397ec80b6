"""Prometheus reads what happened; the dashboard draws what exists."""

import json
import re
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from runtime.core import PoolSpec, SloSpec
from runtime.emulator.profile import load_profile
from runtime.emulator.run import build_state
from runtime.pool.placement import preload
from runtime.pool.state import State
from runtime.service.metrics import Metrics

DASHBOARD = Path(__file__).parents[3] / "docs/grafana/aegaeon-rl.json"
NAMES = ("a", "b")


@pytest.fixture
def state() -> State:
    spec = PoolSpec(name="two", profile="h100", checkpoints=("Qwen2.5-7B",), instances_per_node=2)
    return build_state(spec, NAMES, SloSpec(), load_profile("h100"), capacity=4)


def samples(metrics: Metrics) -> dict[tuple[str, ...], float]:
    """Values by name and labels."""
    return {
        (sample.name, *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(metrics.text())
        for sample in family.samples
    }


def fed(state: State) -> Metrics:
    metrics = Metrics(NAMES, lambda: state)
    metrics.arrived("a", 7)
    metrics.token("a", 0.3, is_first=True, is_on_time=True)
    metrics.token("a", 0.03, is_first=False, is_on_time=False)
    metrics.ended("a", "done")
    metrics.decided("policy", 0.0004)
    metrics.worker_restarts.labels("0").inc()
    metrics.http.labels("200").inc()
    metrics.in_charge("fcfs")
    metrics.in_charge("index")
    return metrics


def test_what_happens_is_counted_by_model(state: State) -> None:
    seen = samples(fed(state))
    assert seen["aegaeon_tokens_due_total", "a"] == 2
    assert seen["aegaeon_tokens_on_time_total", "a"] == 1
    assert seen["aegaeon_ttft_seconds_sum", "a"] == 0.3
    assert seen["aegaeon_tbt_seconds_count", "a"] == 1
    assert seen["aegaeon_prompt_tokens_total", "a"] == 7
    assert seen["aegaeon_requests_total", "a", "done"] == 1
    assert seen["aegaeon_decisions_total", "policy"] == 1
    assert ("aegaeon_policy_info", "fcfs") not in seen


def test_levels_are_those_of_the_pool_when_it_is_read(state: State) -> None:
    metrics = Metrics(NAMES, lambda: state)
    assert samples(metrics)["aegaeon_weight_bytes", "1"] == 0
    preload(state, [(1, 0)])
    state.instances["kv_used_bytes"] = 5, 9
    state.instances["switches"] = 0, 3
    state.instances["busy_ns"] = 0, 2_500_000_000
    seen = samples(metrics)
    assert seen["aegaeon_weight_bytes", "1"] == state.models["weight_bytes"][0]
    assert seen["aegaeon_kv_bytes", "1"] == 9
    assert seen["aegaeon_switches_total", "1"] == 3
    assert seen["aegaeon_busy_seconds_total", "1"] == 2.5


def test_dashboard_draws_metrics_that_exist_and_all_of_them(state: State) -> None:
    text = DASHBOARD.read_text()
    drawn = {
        name
        for panel in json.loads(text)["panels"]
        for target in panel["targets"]
        for name in re.findall(r"aegaeon_\w+", target["expr"])
    }
    known = {name for name, *_ in samples(fed(state)) if not name.endswith("_created")}
    assert drawn <= known
    families = {re.sub("_(bucket|count|sum)$", "", name) for name in known}
    assert {re.sub("_(bucket|count|sum)$", "", name) for name in drawn} == families
    assert "aegaeon_queue_requests" in known
