"""Sets of small integers as bits, walked in rising order. W words of WORD bits each."""

from typing import Any

import numpy as np
import numpy.typing as npt
from numba import types
from numba.extending import intrinsic

from runtime.compiled import inner
from runtime.core import NONE

WORD_SHIFT = 5
WORD = 1 << WORD_SHIFT  # bits; a word of int64 never gets a sign
Bits = npt.NDArray[np.int64]


@intrinsic
def _trailing_zeros(context: Any, word: Any) -> Any:
    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.cttz(args[0], context.get_constant(types.boolean, True))

    return types.int64(types.int64), codegen


def new_bits(size: int, *, full: bool = False) -> Bits:
    """The empty subset of 0..size-1, or all of it."""
    bits = np.zeros(-(-size // WORD), np.int64)
    if full:
        for i in range(size):
            bits[i // WORD] |= 1 << (i % WORD)
    return bits


@inner
def add(bits: Bits, i: int) -> None:
    bits[i >> WORD_SHIFT] |= 1 << (i & (WORD - 1))


@inner
def discard(bits: Bits, i: int) -> None:
    bits[i >> WORD_SHIFT] &= ~(1 << (i & (WORD - 1)))


@inner
def contains(bits: Bits, i: int) -> bool:
    return bool((bits[i >> WORD_SHIFT] >> (i & (WORD - 1))) & 1)


@inner
def first_from(bits: Bits, i: int) -> int:
    """The smallest member that is `i` or more, or NONE."""
    w = i >> WORD_SHIFT
    if w >= bits.shape[0]:
        return NONE
    word = bits[w] >> (i & (WORD - 1)) << (i & (WORD - 1))
    while word == 0:
        w += 1
        if w >= bits.shape[0]:
            return NONE
        word = bits[w]
    return int((w << WORD_SHIFT) + _trailing_zeros(word))
