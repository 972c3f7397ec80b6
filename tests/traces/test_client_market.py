"""Markets from client tables: every counted request is placed, lengths are drawn apart."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from traces import Trace, TraceError, TraceKind, read
from traces.client_market import ClientMarket, client_stream, within
from traces.compose import compose
from traces.stream import collect

DATA = (Path(__file__).parents[2] / "../shared/data/traces").resolve()
needs_data = pytest.mark.skipif(not DATA.exists(), reason=f"development data not at {DATA}")
WINDOWS = [  # pool, client, window, requests, distribution, shape
    ("big", 0, 0, 400, "Gamma", 0.25),
    ("big", 0, 1, 10, "Weibull", 0.5),
    ("big", 1, 0, 300, "Weibull", 2.0),
    ("small", 0, 150, 200, "Gamma", 1.0),
]


@pytest.fixture
def tables(tmp_path: Path) -> dict[str, str]:
    """Three clients, one of them without lengths, on days 0 and 1."""
    pool, client, window, n, dist, shape = zip(*WINDOWS, strict=True)
    rates = {
        "pool": pool, "client": pa.array(client, pa.int16()),
        "t0_s": pa.array([w * 600 for w in window], pa.int32()), "n_requests": n,
        "iat_cv": [1.0] * 4, "dist": dist, "shape": shape, "scale": [1.0] * 4,
    }  # fmt: skip
    quantiles = pa.list_(pa.int32(), 3)
    lengths = {
        "pool": ["big", "big"], "client": pa.array([0, 1], pa.int16()),
        "t0_s": pa.array([0, 0], pa.int32()),
        "q_prompt_tokens": pa.array([[100, 200, 300], [1, 2, 3]], quantiles),
        "q_output_tokens": pa.array([[10, 20, 30], [7, 7, 7]], quantiles),
    }  # fmt: skip
    stated = {"license": "Apache-2.0", "quantile_levels": "[0, 0.5, 1]"}
    for name, columns in (("rates", rates), ("lengths", lengths)):
        table = pa.table(columns).replace_schema_metadata(stated)
        pq.write_table(table, tmp_path / f"{name}.parquet")
    return {name: str(tmp_path / f"{name}.parquet") for name in ("rates", "lengths")}


def made(tables: dict[str, str], **keys: Any) -> Trace:
    return collect(client_stream(ClientMarket(**tables, **keys)))


def counts(trace: Trace) -> dict[tuple[str, int], int]:
    """Requests by model and window of 600 s."""
    window = (trace.arrival_s // 600).astype(int)
    names = [trace.models[m] for m in trace.model]
    pairs = list(zip(names, window.tolist(), strict=True))
    return {pair: pairs.count(pair) for pair in dict.fromkeys(pairs)}


def test_every_counted_request_is_placed_in_its_window(tables: dict[str, str]) -> None:
    trace = made(tables, days=2)
    assert counts(trace) == {(f"{p}-c{c:03d}", w): n for p, c, w, n, _, _ in WINDOWS}
    assert (trace.kind, trace.licence) == (TraceKind.SEMI_SYNTHETIC, "Apache-2.0")
    assert trace.lineage == (
        "servegen rates.parquet lengths.parquet first_day=0 days=2 correlation=0 seed=0",
    )


def test_days_and_pools_choose_rows_without_changing_them(tables: dict[str, str]) -> None:
    whole = made(tables, days=2)
    second = made(tables, first_day=1)
    assert counts(second) == {("small-c000", 6): 200}
    assert second.arrival_s == pytest.approx(whole.arrival_s[-200:] - 86_400)
    assert second.prompt_tokens.tolist() == whole.prompt_tokens[-200:].tolist()
    one = made(tables, days=2, models=("big-c001",))
    assert one.sha256 == whole.select_models(["big-c001"]).sha256
    big = made(tables, days=2, pools=("big",))
    assert big.sha256 == whole.head(710).sha256


def test_gaps_have_the_windows_coefficient_of_variation() -> None:
    for dist, shape, cv in (("Gamma", 0.25, 2.0), ("Weibull", 2.0, 0.523), ("Gamma", 1.0, 1.0)):
        rng = np.random.Generator(np.random.PCG64(1))
        gaps = np.diff(within(dist, shape, 50_000, 600_000_000, rng))
        assert gaps.std() / gaps.mean() == pytest.approx(cv, rel=0.05)


@pytest.mark.parametrize("shape", [1e-9, 1e-3, 50.0])
@pytest.mark.parametrize("dist", ["Gamma", "Weibull"])
@pytest.mark.parametrize("n", [1, 2, 1000])
def test_any_shape_keeps_its_requests_inside(dist: str, shape: float, n: int) -> None:
    times = within(dist, shape, n, 600, np.random.Generator(np.random.PCG64(2)))
    assert len(times) == n
    assert np.all(np.diff(times) >= 0)
    assert 0 <= times[0] <= times[-1] < 600


def test_prompt_and_output_are_drawn_apart(tables: dict[str, str]) -> None:
    trace = made(tables, days=2, pools=("big",)).select_models(["big-c000"])
    assert np.median(trace.prompt_tokens) == pytest.approx(200, rel=0.1)
    assert np.median(trace.output_tokens) == pytest.approx(20, rel=0.1)
    assert abs(np.corrcoef(trace.prompt_tokens, trace.output_tokens)[0, 1]) < 0.15
    together = made(tables, days=2, correlation=1.0).select_models(["big-c000"])
    assert np.corrcoef(together.prompt_tokens, together.output_tokens)[0, 1] > 0.99


def test_client_without_lengths_has_the_median_of_its_pool(tables: dict[str, str]) -> None:
    small = made(tables, first_day=1)
    assert 50 <= small.prompt_tokens.min() <= small.prompt_tokens.max() <= 152
    assert 8 <= small.output_tokens.min() <= small.output_tokens.max() <= 19


def test_seed_changes_the_instants_and_not_the_counts(tables: dict[str, str]) -> None:
    first, second = made(tables, days=2), made(tables, days=2, seed=1)
    assert counts(first) == counts(second)
    assert first.sha256 != second.sha256
    assert first.sha256 == made(tables, days=2).sha256


def test_composition_starts_from_tables(tables: dict[str, str]) -> None:
    line = f"servegen {tables['rates']} {tables['lengths']} days=2 pools=big"
    assert collect(compose([line, "keep big-c001"])).requests == 300


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"pools": ("bg",)}, "rates.parquet: pools=bg: not there; did you mean 'big'?"),
        ({"models": ("big-c002",)}, "rates.parquet: models=big-c002: not there; did you mean"),
        ({"first_day": 7}, "rates.parquet: first_day=7: no request in 1 days from there; the"),
        ({"days": 0}, "days=0: expected 1 or more"),
        ({"correlation": 2.0}, "correlation=2.0: expected -1 to 1"),
    ],
)
def test_mistakes_are_named(tables: dict[str, str], keys: dict[str, Any], message: str) -> None:
    with pytest.raises(TraceError) as caught:
        made(tables, **keys)
    assert message in str(caught.value)


@needs_data
def test_day_of_the_tables_has_the_counts_of_the_published_composition() -> None:
    """servegen_mid80_24h is day 6 of 80 clients: the same counts, each client for one model."""
    published = read(DATA / "servegen_mid80_24h.parquet")
    tables = {name: str(DATA / f"servegen_client_{name}.parquet") for name in ("rates", "lengths")}
    models = ",".join(published.models)
    stream = compose(
        [f"servegen {tables['rates']} {tables['lengths']} first_day=6 models={models}"]
    )
    ours = np.zeros(len(stream.models), np.int64)
    for chunk in stream.chunks():
        ours += np.bincount(chunk.model, minlength=len(ours))
    theirs = dict(zip(published.models, np.bincount(published.model).tolist(), strict=True))
    assert dict(zip(stream.models, ours.tolist(), strict=True)) == theirs
