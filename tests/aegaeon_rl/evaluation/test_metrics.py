"""Metrics against values worked out by hand, failed and unfinished requests among them."""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aegaeon_rl.evaluation.metrics import (
    backlog_slope,
    jain,
    merged,
    metrics,
    model_attainment,
    quantile,
    sample_of,
)
from runtime.core import NS, PoolSpec, RequestPhase
from runtime.emulator.run import Run
from runtime.pool.state import GAP_BINS, INSTANCE
from runtime.slo import gap_edge_s, gap_quantile_s

DESIGNED = (  # design, section 10
    *("token_attainment", "qos", "request_ok", "request_lost", "worst_model", "goodput_tokens_s"),
    *("ttft_p50_s", "ttft_p95_s", "ttft_p99_s", "tbt_p50_s", "tbt_p99_s"),
    *("stall_p50_s", "stall_p99_s", "switches", "switch_share", "gpu_busy"),
    *("offered_requests_s", "backlog_slope", "unfinished", "failed", "fairness_jain"),
)
ROWS = (  # arrival, first token, last token
    {"arrival_s": 0, "first_s": 1, "last_s": 3, "stall_s": 0.5},
    {"arrival_s": 1, "first_s": 5, "last_s": 9, "stall_s": 3, "qos": 0.5, "on_time": 60},
    {
        "arrival_s": 2, "first_s": None, "last_s": 2, "qos": 0.0, "model": 1, "due": 40,
        "on_time": 0, "phase": RequestPhase.FAILED,
    },
    {
        "arrival_s": 3, "first_s": 4, "last_s": 6, "stall_s": 0.2, "qos": 0.0, "model": 3,
        "due": 60, "on_time": 10, "phase": RequestPhase.READY,
    },
)  # fmt: skip


@pytest.fixture
def run_of(results_of: Any, pool: PoolSpec) -> Any:
    """A run of 20 s on two GPUs that left these results."""

    def make(*rows: dict[str, Any]) -> Run:
        instances = np.zeros(2, INSTANCE)
        instances["busy_ns"] = (6 * NS, 2 * NS)
        instances["switch_ns"] = (NS, 3 * NS)
        instances["switches"], instances["prefetched_switches"] = (5, 7), (1, 2)
        gaps = np.zeros(GAP_BINS, np.int64)
        gaps[[10, 200]] = (90, 10)
        return Run(
            pool=pool,
            models=(),
            results=results_of(*rows),
            journal=np.zeros(0),
            gaps=gaps,
            instances=instances,
            end_s=20.0,
            decisions=0,
            events=0,
            refused=3,
            recomputed=4,
            network_bytes=0,
        )

    return make


def test_shares_of_time_are_of_gpus_whatever_an_instance_is(run_of: Any) -> None:
    one = run_of(*ROWS)
    four = replace(one, pool=replace(one.pool, tp=4))
    samples = [sample_of(run, 0.0, 10.0) for run in (one, four)]
    assert [sample.gpu_s for sample in samples] == [40.0, 160.0]
    shares = [[metrics(s)[name] for name in ("gpu_busy", "switch_share")] for s in samples]
    assert shares[0] == shares[1] == [8 / 40, 4 / 40]


def test_metrics_of_four_requests_by_hand(run_of: Any) -> None:
    values = metrics(sample_of(run_of(*ROWS), 0.0, 10.0))
    assert set(DESIGNED) <= set(values)
    by_model = np.array([0.8, 0.0, 1 / 6])  # model 2 has no request: it does not count
    expected = {
        "token_attainment": 170 / 300,
        "qos": 1.5 / 4,
        "request_ok": 1 / 4,
        "request_lost": 2 / 4,
        "worst_model": 0.1 * (1 / 6),  # a tenth of the way from the worst to the next
        "goodput_tokens_s": 17.0,
        "ttft_p50_s": 1.0,
        "ttft_p95_s": math.inf,  # the request without a token
        "ttft_p99_s": math.inf,
        "stall_p50_s": 0.5,
        "stall_p99_s": 3.0,
        "switches": 12,
        "prefetched_switches": 3,
        "switch_share": 4 / 40,
        "gpu_busy": 8 / 40,
        "offered_requests_s": 0.4,
        "unfinished": 1,
        "failed": 1,
        "fairness_jain": by_model.sum() ** 2 / (3 * (by_model**2).sum()),
        "requests": 4,
        "refused": 3,
        "recomputed": 4,
    }
    assert {name: values[name] for name in expected} == pytest.approx(expected)
    assert values["tbt_p50_s"] == pytest.approx(0.5 * (gap_edge_s(10) + gap_edge_s(11)))
    assert values["tbt_p99_s"] == pytest.approx(0.5 * (gap_edge_s(200) + gap_edge_s(201)))


def test_requests_of_the_warm_up_do_not_count(run_of: Any) -> None:
    sample = sample_of(run_of(*ROWS), 1.0, 10.0)
    assert sample.results["arrival_ns"].tolist() == [NS, 2 * NS, 3 * NS]
    values = metrics(sample)
    assert values["token_attainment"] == 70 / 200
    assert values["goodput_tokens_s"] == 70 / 9
    assert values["offered_requests_s"] == 3 / 9


def test_requests_ok_and_lost_turn_at_their_shares(run_of: Any) -> None:
    rows = [{"on_time": n} for n in (99, 98, 50, 49)]
    values = metrics(sample_of(run_of(*rows), 0.0, 1.0))
    assert (values["request_ok"], values["request_lost"]) == (0.25, 0.25)


@pytest.mark.parametrize("phase", ["FAILED", "SHED", "CANCELLED"])
def test_every_way_to_fail_counts_as_failed(run_of: Any, phase: str) -> None:
    rows = [{"phase": RequestPhase[phase]}, {"phase": RequestPhase.FREE}, {}]
    values = metrics(sample_of(run_of(*rows), 0.0, 1.0))
    assert (values["failed"], values["unfinished"]) == (1, 1)


def test_nothing_served_leaves_stalls_without_a_value(run_of: Any) -> None:
    lost = {"first_s": None, "on_time": 0, "qos": 0.0, "phase": RequestPhase.WAITING}
    values = metrics(sample_of(run_of(lost, lost), 0.0, 1.0))
    assert math.isnan(values["stall_p99_s"])
    assert values["ttft_p50_s"] == math.inf
    assert (values["token_attainment"], values["fairness_jain"], values["worst_model"]) == (0, 0, 0)


def test_a_run_that_takes_no_time_has_no_share_of_any(run_of: Any) -> None:
    lost = {"first_s": None, "on_time": 0, "qos": 0.0, "phase": RequestPhase.FAILED}
    instant = sample_of(run_of(lost), 0.0, 20.0)._replace(gpu_s=0.0, busy_s=0.0, switch_s=0.0)
    found = metrics(instant)
    assert (found["switch_share"], found["gpu_busy"]) == (0.0, 0.0)


def test_merged_sums_runs_and_averages_slopes(run_of: Any) -> None:
    one = sample_of(run_of(*ROWS), 0.0, 10.0)
    other = one._replace(results=one.results[:1], backlog_slope=one.backlog_slope + 2.0)
    both = merged([one, other])
    assert len(both.results) == 5
    assert (both.span_s, both.run_s, both.gpu_s) == (20.0, 40.0, 80.0)
    assert (both.switches, both.refused, both.gaps.sum()) == (24, 6, 200)
    assert isinstance(both.switches, int)
    assert both.backlog_slope == pytest.approx(one.backlog_slope + 1.0)
    assert merged([one]).gpu_s == one.gpu_s


@pytest.mark.parametrize(
    ("stays_s", "phase", "slope"),
    [
        (0.0, RequestPhase.DONE, 0.0),
        (3.0, RequestPhase.DONE, 0.0),  # full after 3 s, level from then on
        (100.0, RequestPhase.DONE, 10.0),  # nobody leaves while requests arrive
        (0.0, RequestPhase.RUNNING, 10.0),  # unfinished requests never leave
        (0.0, RequestPhase.SHED, 0.0),
    ],
)
def test_backlog_slope_is_the_growth_of_live_requests(
    results_of: Any, stays_s: float, phase: RequestPhase, slope: float
) -> None:
    """Ten arrivals a second."""
    arrivals = [i / 10 for i in range(300)]
    rows = [{"arrival_s": at, "last_s": at + stays_s, "phase": phase} for at in arrivals]
    assert backlog_slope(results_of(*rows), 5.0, 30.0) == pytest.approx(slope, abs=0.1)
    assert backlog_slope(results_of(*rows), 30.0, 30.0) == 0.0


@given(st.lists(st.floats(0.0, 1.0), min_size=1, max_size=20))
def test_jain_lies_between_one_of_n_and_one(shares: list[float]) -> None:
    index = jain(np.array(shares))
    if max(shares) < 1e-100:  # squares vanish
        return
    assert 1 / len(shares) - 1e-9 <= index <= 1 + 1e-9


def test_jain_of_equals_is_one_and_of_one_owner_one_of_n() -> None:
    assert jain(np.full(5, 0.3)) == pytest.approx(1.0)
    assert jain(np.array([0.0, 0.0, 0.7, 0.0])) == pytest.approx(0.25)
    assert jain(np.zeros(3)) == 0.0


def test_model_attainment_leaves_out_models_without_requests(results_of: Any) -> None:
    results = results_of({"model": 0, "on_time": 50}, {"model": 4}, {"model": 0})
    assert model_attainment(results).tolist() == [0.75, 1.0]


def test_quantile_is_a_value_that_occurs() -> None:
    values = np.array([3.0, 1.0, math.inf, 2.0])
    assert [quantile(values, q) for q in (0.25, 0.5, 0.75, 0.99)] == [1.0, 2.0, 3.0, math.inf]
    assert math.isnan(quantile(np.array([]), 0.5))
    assert math.isnan(gap_quantile_s(np.zeros(GAP_BINS, np.int64), 0.5))
