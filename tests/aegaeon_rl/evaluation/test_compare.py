"""`compare`: the same requests for every policy, the same result whatever the threads."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from aegaeon_rl.evaluation import compare as module
from aegaeon_rl.evaluation.compare import (
    Comparison,
    Plan,
    check,
    compare,
    deal_sizes,
    last_deadline_s,
    token_blocks,
    window_trace,
)
from aegaeon_rl.evaluation.metrics import sample_of
from aegaeon_rl.evaluation.spec import Window
from aegaeon_rl.policies.registry import make_policy
from runtime.core import NS, ModelSlo, PoolSpec, SloSpec
from runtime.emulator.run import run
from runtime.errors import UserError
from traces import Trace

NAMES = ("aegaeon", "serverlessllm", "fcfs", "least_slack", "collate", "index", "learned")


class Named:
    """A policy with another name, which must never run."""

    def __init__(self, name: str) -> None:
        self.name = name

    def configure(self, pool: PoolSpec) -> PoolSpec:
        return pool


def test_policies_meet_the_same_requests(comparison: Comparison) -> None:
    for load in (1.0, 2.0):
        cells = [cell for cell in comparison.cells if cell.load == load]
        assert [cell.policy for cell in cells] == ["aegaeon", "serverlessllm", "index"]
        for column in ("arrival_ns", "model", "due_tokens", "prompt_tokens"):
            first, *others = (cell.sample.results[column] for cell in cells)
            assert all(np.array_equal(first, other) for other in others)
        assert all(np.array_equal(cells[0].units.due, cell.units.due) for cell in cells)


def test_rows_are_the_cells_at_the_own_load(comparison: Comparison) -> None:
    assert comparison.baseline == "aegaeon"
    base, *others = comparison.rows
    assert base.difference is None
    for row in others:
        assert row.cell in comparison.cells
        assert row.cell.load == 1.0
        shares = [r.cell.metrics["token_attainment"] for r in (row, base)]
        assert row.difference is not None
        assert row.difference.value == pytest.approx(shares[0] - shares[1])
        assert row.difference.low <= row.difference.value <= row.difference.high
    assert comparison.row("index").cell.policy == "index"
    shares_by_name = {r.cell.policy: r.cell.metrics["token_attainment"] for r in others}
    assert comparison.best.cell.policy == max(shares_by_name, key=lambda n: shares_by_name[n])


def test_units_hold_every_token_that_counts(comparison: Comparison) -> None:
    for cell in comparison.cells:
        results = cell.sample.results
        assert cell.units.due.sum() == results["due_tokens"].sum()
        assert cell.units.on_time.sum() == results["on_time_tokens"].sum()
        assert cell.units.share == cell.metrics["token_attainment"] == cell.attainment.value


def test_comparison_is_the_same_whatever_the_threads(
    plan_of: Any, policies: Any, comparison: Comparison, monkeypatch: pytest.MonkeyPatch
) -> None:
    for threads in (1, 7):
        monkeypatch.setattr(module, "cpu_count", lambda threads=threads: threads)
        again = compare(plan_of(loads=(2.0,)), policies)
        for cell, before in zip(again.cells, comparison.cells, strict=True):
            assert (cell.policy, cell.load) == (before.policy, before.load)
            assert np.array_equal(cell.sample.results, before.sample.results)
            assert np.array_equal(cell.sample.gaps, before.sample.gaps)
            np.testing.assert_equal(cell.metrics, before.metrics)
            assert cell.attainment == before.attainment
        assert [r.difference for r in again.rows] == [r.difference for r in comparison.rows]


def test_progress_hears_of_every_cell(plan_of: Any) -> None:
    heard: list[tuple[str, float]] = []
    plan = plan_of(loads=(0.5,))
    compare(
        plan, [make_policy("fcfs")], progress=lambda cell: heard.append((cell.policy, cell.load))
    )
    assert sorted(heard) == [("fcfs", 0.5), ("fcfs", 1.0)]


@pytest.mark.parametrize(
    ("stated", "names", "baseline"),
    [
        (None, ["index", "aegaeon"], "aegaeon"),
        (None, ["index", "fcfs"], "index"),
        ("fcfs", ["aegaeon", "fcfs"], "fcfs"),
    ],
)
def test_baseline_is_aegaeon_unless_stated_or_absent(
    plan_of: Any, stated: str | None, names: list[str], baseline: str
) -> None:
    policies: list[Any] = [Named(name) for name in names]
    assert check(plan_of(baseline=stated), policies) == baseline


@pytest.mark.parametrize(
    ("names", "spec", "message"),
    [
        ([], {}, "policies=[]: expected at least one policy"),
        (["a", "b", "a"], {}, "policies: 'a' is listed twice: expected different policies"),
        (
            ["index"],
            {"baseline": "indx"},
            "evaluate.baseline=indx: not among policies; did you mean 'index'? known: index",
        ),
    ],
)
def test_what_cannot_be_compared_is_said_before_anything_runs(
    plan_of: Any, names: list[str], spec: dict[str, Any], message: str
) -> None:
    policies: list[Any] = [Named(name) for name in names]
    with pytest.raises(UserError) as caught:
        compare(plan_of(**spec), policies)
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"vram_bytes": 30_000_000_000}, "weight slots"),
        ({"profile": "h10"}, r"profile=h10: did you mean 'h100'\?"),
        ({"checkpoints": ("sosp25/Yi-1.5-9B",)}, "profile h100: no checkpoint"),
    ],
)
def test_a_pool_that_cannot_serve_is_said_before_anything_runs(
    plan_of: Any, pool: PoolSpec, changes: dict[str, Any], message: str
) -> None:
    policies: list[Any] = [Named("a")]
    with pytest.raises(UserError, match=message):
        compare(plan_of(on=replace(pool, **changes)), policies)


def test_deadlines_beyond_the_pools_clock_are_said_before_anything_runs(
    plan_of: Any, trace_of: Any
) -> None:
    trace, policies = trace_of([(0.0, 0, 9, 9)]), [Named("a")]
    plan = replace(plan_of(trace, windows=0), slo=SloSpec(ttft_s=1.0, tbt_s=1e9))
    with pytest.raises(UserError) as caught:
        compare(plan, policies)  # type: ignore[arg-type]
    assert str(caught.value) == (
        "slo.ttft_s=1, slo.tbt_s=1e+09 (or slo.models): the last token of rows is due after 9e+09"
        " s: expected less than 4.61e+09"
    )


def test_windows_without_a_request_are_said_before_anything_runs(
    plan_of: Any, trace_of: Any
) -> None:
    late = trace_of([(100.0 + i, 0, 9, 9) for i in range(3)])
    policies: list[Any] = [Named("a")]
    with pytest.raises(UserError) as caught:
        compare(plan_of(late, windows=0, loads=(0.5, 1.0)), policies)
    assert str(caught.value) == (
        "trace rows: no request counts in the window at 0 s at load 0.5; requests arrive from 100"
        " to 102 s: raise evaluate.window_s, set trace.start_s, or evaluate.windows=0 for the whole"
        " trace"
    )


@pytest.mark.parametrize(
    ("start_s", "load", "until_s"),
    [
        (0.0, 1.0, 30.0),
        (20.0, 2.0, 80.0),
        (20.0, 0.5, 35.0),
        (60.0, 3.0, 150.0),  # the trace ends before
    ],
)
def test_load_takes_more_of_the_trace_in_the_same_time(
    market: Trace, start_s: float, load: float, until_s: float
) -> None:
    part, span_s = window_trace(market, Window(start_s, 30.0, 5.0), load)
    reach_s = min(until_s, market.span_s + 1e-6) - start_s
    expected = market.window(start_s, reach_s, keep_models=True)
    assert span_s == pytest.approx(reach_s / load)
    assert part.arrival_s == pytest.approx(expected.arrival_s / load)
    assert part.models == market.models
    assert np.array_equal(part.model, expected.model)


def test_the_whole_trace_holds_its_last_request(market: Trace, plan_of: Any) -> None:
    (window,) = plan_of(windows=0).windows
    assert window_trace(market, window, 1.0)[0].requests == market.requests
    assert window_trace(market, window, 2.0)[0].requests == market.requests


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("load", [1.0, 3.0])
def test_stopping_at_the_last_deadline_loses_no_token_on_time(
    market: Trace, pool: PoolSpec, name: str, load: float
) -> None:
    slo = SloSpec(ttft_s=2.0, tbt_s=0.02)
    part = market.window(0.0, 40.0).scale_rate(load)
    policy, horizon_s = make_policy(name), last_deadline_s(part, slo)
    drained = run(part, pool, policy, slo)
    stopped = run(part, pool, policy, slo, horizon_s=horizon_s)
    for column in ("on_time_tokens", "due_tokens"):
        assert np.array_equal(stopped.results[column], drained.results[column])
    assert stopped.end_s <= horizon_s
    assert drained.end_s > stopped.end_s or load < 2


def test_last_deadline_is_that_of_the_longest_wait(trace_of: Any) -> None:
    trace = trace_of([(0.0, 0, 9, 500), (1.0, 0, 9, 3)])
    assert last_deadline_s(trace, SloSpec(ttft_s=2.0, tbt_s=0.1)) == pytest.approx(52.0)
    patient = SloSpec(ttft_s=2.0, tbt_s=0.1, models={"m0": ModelSlo(ttft_s=100.0)})
    assert last_deadline_s(trace, patient) == pytest.approx(150.0)
    assert last_deadline_s(trace.rows(slice(1, 2)), SloSpec(ttft_s=2.0, tbt_s=0.1)) == (
        pytest.approx(3.3)
    )


def test_sizes_are_dealt_anew_for_every_seed(pool: PoolSpec) -> None:
    dealt = replace(pool, checkpoints=tuple("aaaaaabbcc"))
    assert deal_sizes(dealt, 0) is dealt
    deals = {deal_sizes(dealt, seed).checkpoints for seed in range(6)}
    assert len(deals) > 3
    assert {tuple(sorted(deal)) for deal in deals} == {dealt.checkpoints}
    assert deal_sizes(dealt, 4) == deal_sizes(dealt, 4)
    fixed = replace(dealt, sosp25_rules=True)
    assert deal_sizes(fixed, 5) is fixed


def test_each_seed_is_a_row_of_units(plan_of: Any) -> None:
    plan = plan_of(seeds=3)
    (row,) = compare(plan, [make_policy("fcfs")]).rows
    units = row.cell.units
    assert units.due.shape[0] == 3
    assert (units.due == units.due[0]).all()
    assert len({tuple(on_time) for on_time in units.on_time}) > 1
    (first,) = compare(plan_of(seeds=1), [make_policy("fcfs")]).rows
    assert np.array_equal(first.cell.units.on_time[0], units.on_time[0])


@pytest.mark.parametrize(
    ("windows", "block_s"),
    [
        (5, None),  # enough windows: each is a unit
        (3, 3 * 15 / 20),
        (1, 2.0),  # never under 2 s
    ],
)
def test_few_windows_are_cut_into_blocks(plan_of: Any, windows: int, block_s: float | None) -> None:
    plan: Plan = plan_of(windows=windows, window_s=20.0)
    assert len(plan.windows) == windows
    assert plan.block_s == block_s
    assert plan.covered == pytest.approx(windows * 20 / plan.trace.span_s, rel=1e-6)


def test_blocks_hold_their_own_arrivals(results_of: Any, market: Trace, pool: PoolSpec) -> None:
    """A window of 13 s with 3 s of warm-up, blocks of 2 s; nothing arrives in the third."""
    rows = [
        {"arrival_s": 3.0, "due": 10, "on_time": 1},
        {"arrival_s": 4.9, "due": 10, "on_time": 2},
        {"arrival_s": 5.0, "due": 10, "on_time": 4},
        {"arrival_s": 9.0, "due": 10, "on_time": 8},
        {"arrival_s": 13.0, "due": 10, "on_time": 9},  # the very end belongs to the last block
    ]
    blank = sample_of(run(market.head(3), pool, make_policy("fcfs"), SloSpec()), 3.0, 13.0)
    sample = blank._replace(results=results_of(*rows))
    on_time, due = token_blocks(sample, Window(0.0, 13.0, 3.0), 2.0)
    assert on_time.tolist() == [3, 4, 8, 9]
    assert due.tolist() == [20, 10, 10, 10]
    whole = token_blocks(sample, Window(0.0, 13.0, 3.0), None)
    assert [part.tolist() for part in whole] == [[24], [50]]


def test_requests_of_the_warm_up_do_not_count(plan_of: Any, market: Trace) -> None:
    plan = plan_of(windows=2, window_s=40.0, warm_s=15.0)
    (row,) = compare(plan, [make_policy("index")]).rows
    arrival_s = row.cell.sample.results["arrival_ns"] / NS
    assert arrival_s.min() >= 15.0
    expected = 0
    for window in plan.windows:
        since_s = market.arrival_s - window.start_s
        expected += int(((since_s >= 15.0) & (since_s < 40.0)).sum())
    assert len(arrival_s) == expected
    assert row.cell.sample.span_s == pytest.approx(50.0)
