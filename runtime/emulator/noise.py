"""Seeded measurement noise: a factor per stage, by counter, so that no order of draws matters.

factor = exp(s z - s^2 / 2), s^2 = ln(1 + noise^2): lognormal with mean 1 and relative standard
deviation `noise`; z is a normal from two uniforms (Box-Muller) that a 64-bit mixer (splitmix64)
makes of (seed, instance, ordinal).
"""

import numpy as np
import numpy.typing as npt

from runtime.compiled import inner, kernel

GOLDEN = np.uint64(0x9E3779B97F4A7C15)
MIX_A, MIX_B = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)
S11, S27, S30, S31 = np.uint64(11), np.uint64(27), np.uint64(30), np.uint64(31)


@inner
def mixed(value: np.uint64) -> np.uint64:
    value = (value ^ (value >> S30)) * MIX_A
    value = (value ^ (value >> S27)) * MIX_B
    return value ^ (value >> S31)


@kernel
def uniform(seed: int, stream: int, ordinal: int) -> float:
    """A number in (0, 1) that depends on nothing but its arguments."""
    word = mixed(np.uint64(seed) + GOLDEN)
    word = mixed((word ^ np.uint64(stream)) + GOLDEN)
    word = mixed((word ^ np.uint64(ordinal)) + GOLDEN)
    return (float(word >> S11) + 0.5) / 9007199254740992.0


@kernel
def uniforms(seed: int, stream: int, out: npt.NDArray[np.float64]) -> None:
    """Fill `out` with the first draws of a stream."""
    for i in range(out.shape[0]):
        out[i] = uniform(seed, stream, i)


@kernel
def factor(noise: float, seed: int, instance: int, ordinal: int) -> float:
    """What the predicted time of an instance's stage number `ordinal` is multiplied by."""
    if noise <= 0.0:
        return 1.0
    spread2 = np.log(1.0 + noise * noise)
    u = uniform(seed, instance, 2 * ordinal)
    v = uniform(seed, instance, 2 * ordinal + 1)
    z = np.sqrt(-2.0 * np.log(u)) * np.cos(2.0 * np.pi * v)
    return float(np.exp(np.sqrt(spread2) * z - 0.5 * spread2))
