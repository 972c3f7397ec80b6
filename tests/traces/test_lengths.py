"""Lengths: the quantiles, medians and correlations that were asked for."""

import numpy as np
import numpy.typing as npt
import pytest

from traces.errors import UserError
from traces.lengths import (
    LEVELS,
    OUTPUT_QUANTILES,
    PROMPT_QUANTILES,
    LengthModel,
    Lengths,
    Marginal,
    check_lognormal,
    check_quantiles,
)

PROMPT, OUTPUT = Marginal(LEVELS, PROMPT_QUANTILES), Marginal(LEVELS, OUTPUT_QUANTILES)
N = 100_000


def drawn(model: LengthModel, n: int = N) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int32]]:
    return source(model).draw(n)


def source(model: LengthModel) -> Lengths:
    prompt, output = (np.random.Generator(np.random.PCG64(seed)) for seed in (1, 2))
    return Lengths(model, (prompt, output))


def rank_correlation(a: npt.NDArray[np.int32], b: npt.NDArray[np.int32]) -> float:
    ranks = [np.argsort(np.argsort(values)) for values in (a, b)]
    return float(np.corrcoef(*ranks)[0, 1])


@pytest.mark.parametrize("correlation", [0.0, 0.6])
def test_lengths_follow_the_quantiles(correlation: float) -> None:
    prompt, output = drawn(LengthModel(PROMPT, OUTPUT, correlation))
    for tokens, quantiles in ((prompt, PROMPT_QUANTILES), (output, OUTPUT_QUANTILES)):
        assert np.quantile(tokens, LEVELS[1:-1]) == pytest.approx(quantiles[1:-1], rel=0.05)
        assert quantiles[0] <= tokens.min()
        assert tokens.max() <= quantiles[-1]


def test_lognormal_lengths_have_their_median_and_sigma() -> None:
    prompt, output = drawn(LengthModel(Marginal(lognormal=(800.0, 0.5)), OUTPUT))
    assert np.median(prompt) == pytest.approx(800, rel=0.02)
    assert np.log(prompt).std() == pytest.approx(0.5, rel=0.02)
    assert np.quantile(output, 0.5) == pytest.approx(190, rel=0.05)


@pytest.mark.parametrize("correlation", [-0.8, 0.0, 0.5, 1.0])
@pytest.mark.parametrize("marginal", [PROMPT, Marginal(lognormal=(800.0, 0.5))])
def test_lengths_have_the_rank_correlation_of_the_copula(
    marginal: Marginal, correlation: float
) -> None:
    """Spearman's rho of a Gaussian copula: 6/pi asin(r/2)."""
    prompt, output = drawn(LengthModel(marginal, OUTPUT, correlation))
    expected = 6 / np.pi * np.arcsin(correlation / 2)
    assert rank_correlation(prompt, output) == pytest.approx(expected, abs=0.02)


@pytest.mark.parametrize("correlation", [0.0, 0.5])
def test_lengths_are_the_same_in_any_pieces(correlation: float) -> None:
    model = LengthModel(PROMPT, OUTPUT, correlation)
    at_once, slowly = drawn(model, 100), source(model)
    pieces = [slowly.draw(n) for n in (0, 1, 40, 59)]
    for column in (0, 1):
        joined = np.concatenate([piece[column] for piece in pieces])
        assert joined.tolist() == at_once[column].tolist()


def test_lengths_scale_and_stay_in_bounds() -> None:
    plain, _ = drawn(LengthModel(PROMPT, OUTPUT), 1000)
    double, _ = drawn(LengthModel(PROMPT, OUTPUT, scale=(2.0, 1.0)), 1000)
    assert np.abs(double - 2.0 * plain).max() <= 1
    tiny, capped = drawn(LengthModel(PROMPT, OUTPUT, scale=(1e-9, 1e9), most_tokens=500), 1000)
    assert set(tiny.tolist()) == {1}
    assert set(capped.tolist()) == {500}


@pytest.mark.parametrize("quantiles", [(1, 2), (0, *range(1, 12)), tuple(range(12, 0, -1))])
def test_quantiles_that_cannot_be_name_the_key(quantiles: tuple[float, ...]) -> None:
    with pytest.raises(UserError, match=r"^market\.q: expected 12 rising values of 1 or more"):
        check_quantiles("market.q", LEVELS, quantiles)


@pytest.mark.parametrize("value", [(0.5, 1.0), (100.0, -1.0), (float("nan"), 1.0)])
def test_lognormal_that_cannot_be_names_the_key(value: tuple[float, float]) -> None:
    with pytest.raises(UserError, match=r"^market\.l=\(.*expected \(median of 1 or more"):
        check_lognormal("market.l", value)
