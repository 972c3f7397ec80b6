"""ServeGen's files as it publishes them: read as the tables made of them, or refused in a line."""

from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from traces import UserError
from traces.client_market import ClientMarket, client_stream
from traces.formats.servegen import read_client_lengths, read_client_rates
from traces.stream import collect

RATES = "0,0.5,1.2,Gamma,0.7,2.8\n600,0.5,0,,0,0\n1200,0.015,0.9,Weibull,1.1,60\n"
LENGTHS = (
    '{"0": {"input_tokens": "{10: 0.25, 30: 0.75}", "output_tokens": "{5: 1.0}"},'
    ' "21600": {"input_tokens": "{}", "output_tokens": "{}"}}'
)


def published(folder: Path, rates: str = RATES, lengths: str = LENGTHS) -> str:
    """Clients 0 and 10 of a pool, as in data/language/m-large."""
    pool = folder / "language" / "m-large"
    pool.mkdir(parents=True)
    for client in (10, 0):
        (pool / f"chunk-{client}-trace.csv").write_text(rates)
        (pool / f"chunk-{client}-dataset.json").write_text(lengths)
    return str(folder)


def test_windows_with_requests_are_the_rates(tmp_path: Path) -> None:
    rates = read_client_rates(published(tmp_path))
    assert rates.pool.tolist() == ["m-large"] * 4
    assert rates.client.tolist() == [0, 0, 10, 10]
    assert rates.t0_s.tolist() == [0, 1200] * 2
    assert rates.requests.tolist() == [300, 9] * 2
    assert rates.dist.tolist() == ["Gamma", "Weibull"] * 2
    assert (rates.shape[0], rates.scale[1], rates.cv[0]) == (0.7, 60, 1.2)
    assert (rates.window_s, rates.licence) == (600, "Apache-2.0")


def test_histograms_are_quantiles_at_levels(tmp_path: Path) -> None:
    lengths = read_client_lengths(published(tmp_path))
    assert lengths.client.tolist() == [0, 10]  # 6 hours without a histogram have no row
    at = dict(zip(lengths.levels, lengths.prompt[0], strict=True))
    assert (at[0.0], at[0.25], at[0.3], at[1.0]) == (10, 10, 30, 30)
    assert set(lengths.output[0]) == {5}


def test_multimodal_prompts_are_texts(tmp_path: Path) -> None:
    folder = published(tmp_path, lengths=LENGTHS.replace("input_tokens", "text_tokens"))
    assert read_client_lengths(folder).prompt.max() == 30


def test_market_has_the_counted_requests(tmp_path: Path) -> None:
    folder = published(tmp_path)
    trace = collect(client_stream(ClientMarket(rates=folder, lengths=folder)))
    assert sorted(trace.models) == ["m-large-c000", "m-large-c010"]
    assert np.bincount(trace.model).tolist() == [309, 309]
    assert not ((trace.arrival_s >= 600) & (trace.arrival_s < 1200)).any()
    assert (trace.licence, trace.kind, trace.prompt_tokens.max()) == (
        "Apache-2.0",
        "semi-synthetic",
        30,
    )


@pytest.mark.parametrize(
    ("rates", "expected"),
    [
        ("0,1,1,Gamma,1\n", "chunk-0-trace.csv: row 1, column seconds,requests/s,CV,"),
        ("0,1,1,Gamma,1,1\n600,x,1,Gamma,1,1\n", "row 2, column seconds,"),
        ("0,1,1,Pareto,1,1\n", "row 1, column dist is 'Pareto': expected Gamma or Weibull"),
        ("0,0,0,,0,0\n", "no requests: expected files chunk-N-trace.csv of ServeGen"),
        ("x" * 140_000, "chunk-0-trace.csv: cannot be read: field larger than field limit"),
        ("0,inf,1,Gamma,1,1\n", "row 1, column seconds,"),
    ],
)
def test_bad_rates_are_named(tmp_path: Path, rates: str, expected: str) -> None:
    with pytest.raises(UserError) as caught:
        read_client_rates(published(tmp_path, rates=rates))
    assert expected in str(caught.value)


@pytest.mark.parametrize(
    "lengths",
    [
        *("", "[]", '{"0": 1}', '{"x": {"input_tokens": "{1: 1}", "output_tokens": "{1: 1}"}}'),
        *(
            f'{{"0": {{"input_tokens": "{text}", "output_tokens": "{{1: 1}}"}}}}'
            for text in ("{1: -1, 2: 3}", "{1: 0}", "{", "{'a': 1}", "import os", "{1: [2]}")
        ),
    ],
)
def test_bad_lengths_name_the_file(tmp_path: Path, lengths: str) -> None:
    with pytest.raises(UserError, match=r"chunk-0-dataset\.json: expected histograms by start: "):
        read_client_lengths(published(tmp_path, lengths=lengths))


@given(rates=st.text(max_size=30) | st.just(RATES), lengths=st.text(max_size=30))
@settings(max_examples=60, deadline=None)
def test_any_text_is_read_or_refused_in_a_line(rates: str, lengths: str) -> None:
    with TemporaryDirectory() as folder:
        pool = Path(folder) / "pool"
        pool.mkdir()
        (pool / "chunk-0-trace.csv").write_text(rates, "utf-8")
        (pool / "chunk-0-dataset.json").write_text(lengths, "utf-8")
        assert len(refusal(read_client_rates, folder)) <= 1
        assert len(refusal(read_client_lengths, folder)) <= 1


def refusal(read: Callable[[str], Any], folder: str) -> list[str]:
    """The lines of the message; none where the folder is fine."""
    try:
        read(folder)
    except UserError as error:
        return str(error).splitlines()
    return []
