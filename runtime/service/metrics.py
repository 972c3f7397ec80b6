"""What Prometheus reads: counted by the controller as it happens, levels read off the pool.

Every name begins with `aegaeon_` and ends in its unit. docs/grafana/aegaeon-rl.json draws them.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from runtime.core import NONE, NS, SlotState
from runtime.pool.state import State

TTFT_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 40.0, 80.0, 160.0)
TBT_S = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1.0, 2.5, 10.0)
ANSWER_S = (0.0001, 0.00025, 0.0005, 0.001, 0.002, 0.003, 0.005, 0.01, 0.025, 0.1, 1.0)

Levels = Callable[[], State]


class Metrics:
    """`state` gives the pool when it is read; `names` are its models'."""

    def __init__(self, names: Sequence[str], state: Levels | None = None) -> None:
        self.names, self.registry = names, CollectorRegistry()
        own: dict[str, Any] = {"registry": self.registry}
        model = ("model",)
        self.ttft_s = Histogram(
            *("aegaeon_ttft_seconds", "Arrival to first token", model), buckets=TTFT_S, **own
        )
        self.tbt_s = Histogram(
            *("aegaeon_tbt_seconds", "Between two tokens", model), buckets=TBT_S, **own
        )
        self.due = Counter("aegaeon_tokens_due", "Tokens sent, each with a deadline", model, **own)
        self.on_time = Counter("aegaeon_tokens_on_time", "Of these: in time", model, **own)
        self.prompts = Counter("aegaeon_prompt_tokens", "Of requests that arrived", model, **own)
        self.requests = Counter("aegaeon_requests", "Ended", ("model", "status"), **own)
        self.decisions = Counter("aegaeon_decisions", "By who answered", ("source",), **own)
        self.answer_s = Histogram(
            *("aegaeon_decision_seconds", "To answer a decision"), buckets=ANSWER_S, **own
        )
        self.policy_restarts = Counter("aegaeon_policy_restarts", "Of its process", **own)
        self.worker_restarts = Counter("aegaeon_worker_restarts", "", ("instance",), **own)
        self.http = Counter("aegaeon_http_responses", "By status", ("code",), **own)
        self.log_lost = Counter("aegaeon_log_rows_lost", "Rows no disk took", **own)
        self.policy = Gauge("aegaeon_policy_info", "1: it is in charge", ("policy",), **own)
        if state is not None:
            self.registry.register(PoolLevels(names, state))

    def arrived(self, model: str, prompt_tokens: int) -> None:
        self.prompts.labels(model).inc(prompt_tokens)

    def token(self, model: str, seconds: float, *, is_first: bool, is_on_time: bool) -> None:
        """One token was sent, `seconds` after the arrival or the token before it."""
        (self.ttft_s if is_first else self.tbt_s).labels(model).observe(seconds)
        self.due.labels(model).inc()
        if is_on_time:
            self.on_time.labels(model).inc()

    def ended(self, model: str, status: str) -> None:
        self.requests.labels(model, status).inc()

    def decided(self, source: str, seconds: float) -> None:
        self.decisions.labels(source).inc()
        self.answer_s.observe(seconds)

    def in_charge(self, policy: str) -> None:
        self.policy.clear()
        self.policy.labels(policy).set(1)

    def text(self) -> str:
        """Prometheus' exposition format, 0.0.4."""
        return generate_latest(self.registry).decode()


class PoolLevels(Collector):
    """Read off the tables at each scrape."""

    def __init__(self, names: Sequence[str], state: Levels) -> None:
        self.names, self.state = names, state

    def describe(self) -> Iterator[Metric]:
        return iter(())  # named only when collected: the pool may not be there yet

    def collect(self) -> Iterator[Metric]:
        state = self.state()
        yield from of_pool(state)
        yield from of_models(state, self.names)
        yield from of_instances(state)
        yield from of_nodes(state)


def of_pool(state: State) -> Iterator[Metric]:
    pool = state.pool[0]
    flying = GaugeMetricFamily("aegaeon_requests_in_flight", "Neither ended nor refused")
    flying.add_metric([], float(pool["in_flight"]))
    yield flying
    again = CounterMetricFamily("aegaeon_kv_recomputed", "Times KV was dropped and made again")
    again.add_metric([], float(pool["recomputed"]))
    yield again


def of_models(state: State, names: Sequence[str]) -> Iterator[Metric]:
    waiting = GaugeMetricFamily("aegaeon_queue_requests", "That no turn owns", labels=["model"])
    running = GaugeMetricFamily("aegaeon_running_instances", "Whose turn it is", labels=["model"])
    n_models, counts = len(state.models), state.lists["count"]
    for m, name in enumerate(names):
        waiting.add_metric([name], float(counts[m] + counts[n_models + m]))
        running.add_metric([name], float(state.models["running_on"][m]))
    yield waiting
    yield running


COUNTED = (  # column of INSTANCE, name, help, per unit
    ("switches", "aegaeon_switches", "Turns that changed the model", 1.0),
    ("prefetched_switches", "aegaeon_prefetched_switches", "To weights loaded ahead", 1.0),
    ("busy_ns", "aegaeon_busy_seconds", "In prefill and decode", 1.0 / NS),
    ("switch_ns", "aegaeon_switch_seconds", "From order to weights in place", 1.0 / NS),
)


def of_instances(state: State) -> Iterator[Metric]:
    instances, label = state.instances, ["instance"]
    for column, name, text, unit in COUNTED:
        counted = CounterMetricFamily(name, text, labels=label)
        for g, value in enumerate(instances[column].tolist()):
            counted.add_metric([str(g)], value * unit)
        yield counted
    kv = GaugeMetricFamily("aegaeon_kv_bytes", "KV on the device", labels=label)
    weights = GaugeMetricFamily("aegaeon_weight_bytes", "Weights on the device", labels=label)
    up = GaugeMetricFamily("aegaeon_instance_up", "0: it has failed", labels=label)
    sizes, slots = state.models["weight_bytes"], state.slots
    is_held = (slots["model"] != NONE) & (slots["state"] == SlotState.READY)
    for g, used in enumerate(instances["kv_used_bytes"].tolist()):
        kv.add_metric([str(g)], used)
        weights.add_metric([str(g)], float(sizes[slots["model"][g][is_held[g]]].sum()))
        up.add_metric([str(g)], float(instances["stage"][g] != 0))
    yield from (kv, weights, up)


def of_nodes(state: State) -> Iterator[Metric]:
    for column, name, text in (
        ("host_kv_used_bytes", "aegaeon_host_kv_bytes", "KV in host memory"),
        ("host_kv_bytes", "aegaeon_host_kv_limit_bytes", "Host memory for KV"),
        ("host_weight_used_bytes", "aegaeon_host_weight_bytes", "Weights in host memory"),
    ):
        level = GaugeMetricFamily(name, text, labels=["node"])
        for d, value in enumerate(state.nodes[column].tolist()):
            level.add_metric([str(d)], value)
        yield level
