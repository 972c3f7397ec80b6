"""Prompt and output lengths of one model: quantiles or log-normal, correlated if asked."""

from dataclasses import dataclass
from math import erf, inf, sqrt
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from traces.errors import UserError

# Rounded quantiles (0, 10, ... 90, 99, 100 %) of ShareGPT conversation lengths.
LEVELS = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.99, 1.0)
PROMPT_QUANTILES = (4, 12, 18, 26, 42, 78, 140, 230, 370, 640, 1500, 2000)
OUTPUT_QUANTILES = (4, 14, 40, 84, 140, 190, 240, 300, 370, 470, 830, 1000)
Tokens = npt.NDArray[np.int32]
NORMAL = np.linspace(-8, 8, 4097)
NORMAL_CDF = np.array([0.5 * (1 + erf(z / sqrt(2))) for z in NORMAL])


class Marginal(NamedTuple):
    """One length: rising quantiles at `levels`, or log-normal (median, sigma)."""

    levels: tuple[float, ...] = ()
    quantiles: tuple[float, ...] = ()
    lognormal: tuple[float, float] | None = None


@dataclass(frozen=True, slots=True)
class LengthModel:
    """`correlation` is that of a Gaussian copula: 0 draws both lengths independently. `scale`
    multiplies each; lengths are whole and from 1 to `most_tokens`."""

    prompt: Marginal
    output: Marginal
    correlation: float = 0.0
    scale: tuple[float, float] = (1.0, 1.0)
    most_tokens: int = 1 << 20


class Lengths:
    """Draws in the order of requests: in how many pieces makes no difference."""

    def __init__(self, model: LengthModel, seeds: tuple[np.random.Generator, ...]) -> None:
        self.model = model
        self.prompt_rng, self.output_rng = seeds

    def draw(self, n: int) -> tuple[Tokens, Tokens]:
        """Prompt and output tokens [n]."""
        model = self.model
        marginals = (model.prompt, model.output)
        if model.correlation == 0 and not any(m.lognormal for m in marginals):
            rngs = (self.prompt_rng, self.output_rng)
            raw = [at_level(m, rng.random(n)) for m, rng in zip(marginals, rngs, strict=True)]
        else:
            first = self.prompt_rng.standard_normal(n)
            own = self.output_rng.standard_normal(n)
            r = model.correlation
            raw = [at_normal(model.prompt, first)]
            raw.append(at_normal(model.output, r * first + sqrt(1 - r * r) * own))
        prompt, output = (
            np.clip(np.rint(values * scale), 1, model.most_tokens).astype(np.int32)
            for values, scale in zip(raw, model.scale, strict=True)
        )
        return prompt, output


def at_level(marginal: Marginal, u: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    return np.interp(u, marginal.levels, marginal.quantiles)


def at_normal(marginal: Marginal, z: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    if marginal.lognormal is not None:
        median, sigma = marginal.lognormal
        return median * np.exp(sigma * z)
    return at_level(marginal, np.interp(z, NORMAL, NORMAL_CDF))


def check_quantiles(key: str, levels: tuple[float, ...], quantiles: tuple[float, ...]) -> None:
    """Raises UserError naming the key."""
    rises = list(quantiles) == sorted(quantiles)
    if len(quantiles) != len(levels) or not rises or not 1 <= quantiles[0] <= quantiles[-1] < inf:
        raise UserError(f"{key}: expected {len(levels)} rising values of 1 or more, at {levels}")


def check_lognormal(key: str, value: tuple[float, float] | None) -> None:
    if value is not None and not (1 <= value[0] < inf and 0 <= value[1] < inf):
        raise UserError(f"{key}={value}: expected (median of 1 or more, sigma of 0 or more)")
