"""The development traces, read whole: what shared/data/README.md says of them."""

from pathlib import Path

import numpy as np
import pytest

from traces import Trace, TraceError, TraceKind, read

DATA = Path(__file__).parents[3] / "shared" / "data" / "traces"
pytestmark = pytest.mark.skipif(
    not DATA.is_dir(), reason="the development data are not on this machine"
)


def share_active(trace: Trace, window_s: float) -> float:
    """Mean models with an arrival in a window."""
    slot = (trace.arrival_s // window_s).astype(np.int64)
    pairs = np.unique(slot * len(trace.models) + trace.model)
    return len(pairs) / (slot.max() + 1)


@pytest.mark.parametrize(
    ("name", "requests", "models", "span_s", "kind"),
    [
        ("arena_vtc_27models", 1_500, 27, 600, TraceKind.LOG),
        ("azure_llm_2023_conv", 19_366, 1, 3_502, TraceKind.LOG),
        ("mooncake_synthetic", 3_993, 1, 1_022, TraceKind.LOG),
        ("servegen_mid80_24h", 1_630_530, 80, 86_400, TraceKind.SEMI_SYNTHETIC),
        ("servegen_tail98_days0-8", 2_584_716, 79, 777_600, TraceKind.SEMI_SYNTHETIC),
    ],
)
def test_trace_has_the_requests_of_its_description(
    name: str, requests: int, models: int, span_s: float, kind: TraceKind
) -> None:
    trace = read(DATA / f"{name}.parquet")
    assert (trace.requests, len(trace.models), trace.kind) == (requests, models, kind)
    assert trace.span_s == pytest.approx(span_s, rel=1e-3)
    assert trace.lineage == (f"read {name}.parquet",)
    assert trace.licence in ("Apache-2.0", "CC-BY-4.0") or trace.licence.startswith("Apache-2.0")


def test_tail_is_sparse() -> None:
    tail = read(DATA / "servegen_tail98_days0-8.parquet")
    assert share_active(tail, 17.0) == pytest.approx(2.8, abs=0.4)


@pytest.mark.parametrize(("models", "rate"), [(16, 0.1), (80, 0.1), (48, 0.5)])
def test_workloads_of_the_artifact_are_rows_of_one_file(models: int, rate: float) -> None:
    name = f"n{models}_r{rate}_i1_o1"
    trace = read(DATA / "aegaeon_sosp25_workloads.parquet", f"workload={name}")
    assert len(trace.models) == models
    assert trace.requests == models * int(120 * rate) or trace.requests < models * 120 * rate
    assert trace.name.endswith(f"[workload={name}]")
    assert trace.kind is TraceKind.SYNTHETIC


@pytest.mark.parametrize("name", ["lengths_only.parquet", "chutes_model_popularity_head.csv"])
def test_tables_that_are_no_traces_say_what_is_missing(name: str) -> None:
    with pytest.raises(TraceError, match=r"no column for arrival_s, model.*trace.map.arrival_s="):
        read(DATA / name)
