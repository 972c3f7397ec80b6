"""Parts of a trace: what splits allow, cuts by time, and nothing in two parts."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from traces import Trace, TraceKind, UserError
from traces.compose import compose
from traces.market import MarketSpec, generate
from traces.parts import Parts, check_part, cut_parts, held, open_part, open_parts
from traces.source import TraceSource
from traces.splits import Part
from traces.stream import collect
from traces.writing import write

DAY_S = 86_400.0
NAMES = tuple(f"m-c{number:03d}" for number in range(5))
DATA = (Path(__file__).parents[2] / "../shared/data/traces").resolve()
needs_data = pytest.mark.skipif(not DATA.exists(), reason=f"development data not at {DATA}")


def market(days: float) -> Trace:
    """Five clients for some days."""
    spec = MarketSpec(models=5, duration_s=days * DAY_S, rate_rps=0.02, zipf=0.0, seed=1)
    return replace(generate(spec), models=NAMES)


@pytest.fixture(scope="module")
def tail(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file by the name of one that split servegen knows: its days 0 to 8."""
    path = tmp_path_factory.mktemp("traces") / "servegen_tail98_days0-8.parquet"
    write(market(9.0), path)
    return path


def trace_at(*arrival_s: float) -> Trace:
    """Requests at these times, each of a model of its own."""
    n = len(arrival_s)
    return Trace(
        name="rows",
        kind=TraceKind.SYNTHETIC,
        models=tuple(f"m{i}" for i in range(n)),
        model=np.arange(n, dtype=np.int32),
        arrival_s=np.array(arrival_s, np.float64),
        prompt_tokens=np.full(n, 10, np.int32),
        output_tokens=np.full(n, 5, np.int32),
    )


def requests(trace: Trace, start_s: float = 0.0) -> set[tuple[str, float]]:
    """(model, arrival) of each request, in the source's time."""
    names = [trace.models[m] for m in trace.model]
    return set(zip(names, (trace.arrival_s + start_s).round(3).tolist(), strict=True))


def overlap(parts: Parts) -> set[object]:
    """Clients, and arrivals of the source, that are in two parts."""
    models = [{parts[i].models[m] for m in parts[i].model} for i in range(3)]
    return (models[0] & models[1]) | (models[0] & models[2]) | (models[1] & models[2])


def test_parts_of_a_known_file_share_no_client_and_no_day(tail: Path) -> None:
    parts = open_parts(TraceSource(path=str(tail)))
    assert not overlap(parts)
    whole = requests(market(9.0))
    found = [requests(t, s * DAY_S) for t, s in zip(parts[:3], (0, 6, 7), strict=True)]
    assert all(found)
    assert set().union(*found) <= whole
    for part, days in zip(found, ((0, 6), (6, 7), (7, 9)), strict=True):
        assert {days[0] <= at_s / DAY_S < days[1] for _, at_s in part} == {True}
    assert parts.rule == "split servegen: by client and day, days 0-5 for train"


def test_window_and_rate_apply_within_the_part(tail: Path) -> None:
    source = TraceSource(path=str(tail), start_s=2 * DAY_S, duration_s=DAY_S, rate_scale=2.0)
    trace = open_part(source)
    mine = {(n, t) for n, t in requests(market(9.0)) if n in NAMES[:3] and 2 <= t / DAY_S < 3}
    names = [trace.models[m] for m in trace.model]
    times = (2 * DAY_S + 2.0 * trace.arrival_s).round(3).tolist()
    assert set(zip(names, times, strict=True)) == mine
    over = replace(source, start_s=5.5 * DAY_S, rate_scale=1.0)  # half a day of train is left
    assert open_part(over).span_s < 0.5 * DAY_S


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        (
            {"path": "x/aegaeon_sosp25_workloads.parquet", "where": "workload=n64_r0.1_i1_o1"},
            "trace.path=x/aegaeon_sosp25_workloads.parquet: split sosp25 allows"
            " aegaeon_sosp25_workloads for test only: expected no use for train",
        ),
        (
            {"name": "azure_2023_conv"},
            "trace.name=azure_2023_conv: split transfer allows azure_2023_conv for test only",
        ),
    ],
)
def test_file_for_tests_alone_is_refused_before_it_is_read(
    source: dict[str, str], expected: str
) -> None:
    with pytest.raises(UserError) as caught:
        open_parts(TraceSource(**source))  # type: ignore[arg-type]
    assert str(caught.value).startswith(expected)


def test_test_day_is_refused_for_training(tail: Path) -> None:
    source = TraceSource(path=str(tail), start_s=7 * DAY_S, duration_s=3600.0)
    with pytest.raises(UserError) as caught:
        open_part(source)
    assert str(caught.value) == (
        f"trace.path={tail} trace.start_s=604800 trace.duration_s=3600: split servegen allows days"
        " 0-5 for train, 6 for validation, 7-13 for test (servegen_tail98_days0-8 starts at day 0):"
        " expected days and clients for train"
    )
    assert open_part(source, Part.TEST).requests > 0


def test_composed_file_is_held_to_the_split_of_its_source(tail: Path, tmp_path: Path) -> None:
    def composed(*steps: str) -> Trace:
        return collect(compose([f"read {tail}", *steps]))

    assert held(composed("thin 0.5")) == set(Part)
    assert held(composed("split servegen train servegen_tail98_days0-8", "thin 0.5")) == {
        Part.TRAIN
    }
    with pytest.raises(UserError, match="holds test and validation of servegen_tail98"):
        cut_parts(replace(composed("thin 0.5"), name="mine"))
    own = composed("split servegen train servegen_tail98_days0-8")
    check_part(own, Part.TRAIN)
    assert not requests(cut_parts(own).train) & requests(cut_parts(own).test)
    judged = replace(composed("split servegen test servegen_tail98_days0-8"), name="mine")
    with pytest.raises(UserError, match=r"^trace mine holds test of servegen_tail98_days0-8: "):
        check_part(judged, Part.TRAIN)
    write(judged, tmp_path / "mine.parquet")
    source = TraceSource(path=str(tmp_path / "mine.parquet"))
    with pytest.raises(UserError, match="holds test of servegen_tail98_days0-8"):
        open_parts(source)
    assert requests(open_part(source, Part.TEST)) == requests(judged)


def test_merge_with_a_file_for_tests_is_one_for_tests(tail: Path) -> None:
    own = market(1.0)
    mixed = replace(own, lineage=("read own.csv", "merge a (read mooncake_synthetic.parquet)"))
    with pytest.raises(UserError, match="split transfer allows mooncake_synthetic for test only"):
        cut_parts(mixed)
    assert held(replace(own, lineage=("read my_mooncake_synthetic.csv",))) == set()


def test_own_trace_is_cut_by_time() -> None:
    trace = market(1.0)
    parts = cut_parts(trace, (0.5, 0.3))
    assert sum(part.requests for part in parts[:3]) == trace.requests
    assert parts.train.span_s == pytest.approx(0.5 * trace.span_s, rel=0.05)
    assert parts.validation.span_s == pytest.approx(0.3 * trace.span_s, rel=0.05)
    assert all(part.models == trace.models for part in parts[:3])
    assert parts.rule == "by time: the first 50% for train, the next 30% for validation"


@pytest.mark.parametrize("shares", [(0.0, 0.5), (0.5, 0.5), (0.5, 0.0), (float("nan"), 0.1)])
def test_shares_that_leave_no_test_are_refused(shares: tuple[float, float]) -> None:
    with pytest.raises(UserError, match=r"^shares=\[.*expected positive ones that leave time"):
        cut_parts(market(1.0), shares)


@settings(max_examples=100, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    train_share=st.floats(0.1, 0.8),
    rest_share=st.floats(0.1, 0.9),
)
def test_parts_follow_each_other_and_hold_every_request_once(
    seed: int, train_share: float, rest_share: float
) -> None:
    arrival_s = np.sort(np.random.default_rng(seed).uniform(0, 1000, 200)).round(6)
    trace = trace_at(*arrival_s)
    validation_share = (1 - train_share) * rest_share
    parts = cut_parts(trace, (train_share, validation_share))[:3]
    order = np.concatenate([part.model for part in parts])
    assert order.tolist() == trace.model.tolist()  # a model per request: none lost, none twice
    assert all(part.models == trace.models for part in parts)
    ends_s = arrival_s[np.cumsum([part.requests for part in parts]) - 1] / trace.span_s
    assert ends_s[0] <= train_share + 1e-6
    assert ends_s[1] <= train_share + validation_share + 1e-6


def test_parts_are_cut_at_the_shares_of_the_span() -> None:
    trace = trace_at(0.0, 59.9, 60.1, 79.9, 80.1, 100.0)
    assert [part.model.tolist() for part in cut_parts(trace)[:3]] == [[0, 1], [2, 3], [4, 5]]


@pytest.mark.parametrize(
    ("arrival_s", "part"),
    [((70.0, 90.0, 100.0), "train"), ((0.0, 90.0, 100.0), "validation")],
)
def test_an_empty_part_is_named(arrival_s: tuple[float, ...], part: str) -> None:
    with pytest.raises(UserError, match=f"trace rows: no request in the {part} part"):
        cut_parts(trace_at(*arrival_s))


@needs_data
def test_servegen_day_of_validation_cannot_be_trained_on() -> None:
    with pytest.raises(UserError, match=r"servegen_mid80_24h starts at day 6"):
        open_part(TraceSource(path=str(DATA / "servegen_mid80_24h.parquet")))
