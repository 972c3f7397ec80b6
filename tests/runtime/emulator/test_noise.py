"""Noise factors: mean 1, the asked spread, and a value that depends on its counter alone."""

import numpy as np
import pytest

from runtime.emulator.noise import factor, uniform


@pytest.mark.parametrize("noise", [0.05, 0.5])
def test_factors_have_mean_one_and_the_asked_relative_deviation(noise: float) -> None:
    drawn = np.array([factor(noise, 3, g, i) for g in range(4) for i in range(5000)])
    assert drawn.min() > 0
    assert drawn.mean() == pytest.approx(1.0, abs=0.02 * noise * 2)
    assert drawn.std() == pytest.approx(noise, rel=0.05)


def test_factor_without_noise_is_one() -> None:
    assert factor(0.0, 3, 1, 9) == 1.0


def test_uniforms_fill_the_interval_and_differ_with_each_argument() -> None:
    drawn = np.array([uniform(5, 2, i) for i in range(10_000)])
    counts, _ = np.histogram(drawn, 10, (0.0, 1.0))
    assert counts.sum() == 10_000
    assert abs(counts - 1000).max() < 150
    assert len({uniform(5, 2, 1), uniform(6, 2, 1), uniform(5, 3, 1), uniform(5, 2, 2)}) == 4
    assert abs(np.corrcoef(drawn[:-1], drawn[1:])[0, 1]) < 0.05
