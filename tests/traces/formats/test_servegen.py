"""ServeGen's client tables: read whole and checked, and never taken for a trace."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from traces import TraceError, UserError, read
from traces.formats.servegen import LENGTHS, RATES, read_client_lengths, read_client_rates

DATA = Path(__file__).parents[4] / "shared" / "data" / "traces"
RATE_ROWS: dict[str, Any] = {
    "pool": pa.array(["m-large", "m-small"]).dictionary_encode(),
    "client": pa.array([0, 7], pa.int16()),
    "t0_s": pa.array([0, 600], pa.int32()),
    "n_requests": pa.array([799, 10], pa.int32()),
    "iat_cv": pa.array([8.6, 0.5], pa.float32()),
    "dist": pa.array(["Weibull", "Gamma"]).dictionary_encode(),
    "shape": [0.375, 2.0],
    "scale": [0.4, 30.0],
}
LENGTH_ROWS: dict[str, Any] = {
    "pool": ["m-large"],
    "client": [3],
    "t0_s": [21600],
    "q_prompt_tokens": pa.array([[1, 5, 9]], pa.list_(pa.int32(), 3)),
    "q_output_tokens": pa.array([[2, 2, 40]], pa.list_(pa.int32(), 3)),
}
LEVELS = {"quantile_levels": "[0.0, 0.5, 1.0]"}


def stored(folder: Path, columns: dict[str, Any], metadata: dict[str, str] | None = None) -> Path:
    path = folder / "clients.parquet"
    pq.write_table(pa.table(columns).replace_schema_metadata(metadata), path)
    return path


def test_rates_are_read_by_client_and_window(tmp_path: Path) -> None:
    rates = read_client_rates(stored(tmp_path, RATE_ROWS, {"window_s": "300"}))
    assert rates.pool.tolist() == ["m-large", "m-small"]
    assert rates.client.tolist() == [0, 7]
    assert rates.t0_s.tolist() == [0, 600]
    assert rates.requests.tolist() == [799, 10]
    assert rates.cv == pytest.approx([8.6, 0.5])
    assert rates.dist.tolist() == ["Weibull", "Gamma"]
    assert (rates.shape.tolist(), rates.scale.tolist()) == ([0.375, 2.0], [0.4, 30.0])
    assert rates.window_s == 300
    assert read_client_rates(stored(tmp_path, RATE_ROWS)).window_s == 600


def test_lengths_are_read_as_a_table_of_quantiles(tmp_path: Path) -> None:
    lengths = read_client_lengths(stored(tmp_path, LENGTH_ROWS, LEVELS))
    assert lengths.prompt.tolist() == [[1, 5, 9]]
    assert lengths.output.tolist() == [[2, 2, 40]]
    assert lengths.levels.tolist() == [0.0, 0.5, 1.0]
    assert (lengths.pool[0], lengths.client[0], lengths.t0_s[0]) == ("m-large", 3, 21600)


BAD_RATES = [
    ({"n_requests": [1, 0]}, "row 2, column n_requests is 0: expected a number of 1 or more"),
    ({"shape": [0.0, 1.0]}, "row 1, column shape is 0: expected a number of 1e-09 or more"),
    ({"scale": [1.0, float("nan")]}, "row 2, column scale is nan: expected"),
    ({"iat_cv": [None, 1.0]}, "row 1, column iat_cv is empty: expected a value"),
    ({"dist": ["Gamma", "Pareto"]}, "row 2, column dist is 'Pareto': expected Gamma or Weibull"),
    ({"pool": [1, 2]}, "row 1, column pool is 1: expected text"),
    ({"client": ["a", "b"]}, "row 1, column client is 'a': expected a number"),
]


@pytest.mark.parametrize(("columns", "expected"), BAD_RATES)
def test_bad_rate_is_named(tmp_path: Path, columns: dict[str, Any], expected: str) -> None:
    path = stored(tmp_path, RATE_ROWS | columns)
    with pytest.raises(TraceError) as caught:
        read_client_rates(path)
    assert str(caught.value).startswith(f"{path}: {expected}")


BAD_LENGTHS: list[tuple[dict[str, Any], dict[str, str], str]] = [
    ({"q_prompt_tokens": [[1, 5]]}, LEVELS, "is [1, 5]: expected a list of 3 numbers"),
    ({"q_prompt_tokens": [[5, 1, 9]]}, LEVELS, "expected rising numbers of tokens"),
    ({"q_prompt_tokens": [[-5, 1, 9]]}, LEVELS, "expected rising numbers of tokens"),
    ({"q_output_tokens": [[1, None, 9]]}, LEVELS, "expected a list of 3 numbers"),
    ({"q_output_tokens": [7]}, LEVELS, "is 7: expected a list of 3 numbers, not int64"),
    ({}, {}, "metadata quantile_levels: expected rising numbers from 0 to 1"),
    ({}, {"quantile_levels": "[0, 2]"}, "metadata quantile_levels: expected rising"),
    ({}, {"quantile_levels": "{}"}, "metadata quantile_levels is '{}': expected numbers"),
    ({}, {"quantile_levels": "[0, NaN]"}, "metadata quantile_levels: expected rising"),
    ({}, {"quantile_levels": "often"}, "metadata quantile_levels is 'often'"),
]


@pytest.mark.parametrize(("columns", "metadata", "expected"), BAD_LENGTHS)
def test_bad_length_is_named(
    tmp_path: Path, columns: dict[str, Any], metadata: dict[str, str], expected: str
) -> None:
    with pytest.raises(TraceError) as caught:
        read_client_lengths(stored(tmp_path, LENGTH_ROWS | columns, metadata))
    assert expected in str(caught.value)


@pytest.mark.parametrize("window_s", ["[600]", "0", "NaN", '"x"', "Infinity"])
def test_bad_window_is_named(tmp_path: Path, window_s: str) -> None:
    with pytest.raises(TraceError, match="metadata window_s"):
        read_client_rates(stored(tmp_path, RATE_ROWS, {"window_s": window_s}))


def test_missing_column_and_empty_table_are_named(tmp_path: Path) -> None:
    columns = {f"{name}s" if name == "dist" else name: v for name, v in RATE_ROWS.items()}
    with pytest.raises(TraceError, match=r"no column 'dist'; did you mean 'dists'\?"):
        read_client_rates(stored(tmp_path, columns))
    with pytest.raises(TraceError, match="no requests: expected at least one row"):
        read_client_rates(stored(tmp_path, {n: pa.array([], pa.float64()) for n in RATES}))


@pytest.mark.parametrize("columns", [RATE_ROWS, LENGTH_ROWS])
def test_client_table_is_no_trace(tmp_path: Path, columns: dict[str, Any]) -> None:
    with pytest.raises(TraceError, match="a ServeGen client table, not a trace: expected rows of"):
        read(stored(tmp_path, columns))


@given(data=st.data())
@settings(max_examples=80, deadline=None)
def test_any_table_is_read_or_refused_in_one_line(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    names, reader = data.draw(
        st.sampled_from([(RATES, read_client_rates), (LENGTHS, read_client_lengths)])
    )
    values = [[1, 2], [0.5, None], ["a", "Gamma"], [[1, 2, 3], [4, 5, 6]], [None, None]]
    columns = {name: data.draw(st.sampled_from(values)) for name in names}
    metadata = data.draw(st.sampled_from([LEVELS, {"quantile_levels": "{}"}, {"window_s": "[]"}]))
    path = stored(tmp_path_factory.getbasetemp(), columns, metadata)
    try:
        rows = len(reader(path).client)
    except UserError as error:
        message = str(error)
        rows = 2
        assert message.isprintable()
    assert rows == 2


@pytest.mark.skipif(not DATA.is_dir(), reason="the development data are not on this machine")
def test_development_tables_are_read_whole() -> None:
    rates = read_client_rates(DATA / "servegen_client_rates.parquet")
    assert len(rates.requests) == 161_432
    assert set(rates.pool) == {"m-large", "m-mid", "m-small", "mm-image"}
    days = np.unique(rates.t0_s // 86_400)
    assert (days.min(), days.max(), rates.window_s) == (0, 8, 600)
    lengths = read_client_lengths(DATA / "servegen_client_lengths.parquet")
    assert lengths.prompt.shape == lengths.output.shape == (4751, 29)
    assert len(lengths.levels) == 29
