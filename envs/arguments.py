"""What environments are made, seeded and stepped with, checked at the door: one line that names the
argument, its value and what was expected."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from runtime.errors import UserError

MOST = 65_536  # of pools, rows and threads
SHORTEST_S, LONGEST_S = 1e-9, 1e9  # of a quota


def count_of(name: str, value: Any) -> int:
    """A whole number from 1 to MOST. Raises UserError."""
    if isinstance(value, int | np.integer) and not isinstance(value, bool) and 1 <= value <= MOST:
        return int(value)
    raise UserError(f"{name}={value!r}: expected a whole number from 1 to {MOST}")


def flag_of(name: str, value: Any) -> bool:
    """Raises UserError for what is neither true nor false: the text "false" would be true."""
    if isinstance(value, bool | np.bool_):
        return bool(value)
    raise UserError(f"{name}={value!r}: expected true or false")


def quotas_of(value: Any, name: str = "quotas_s") -> tuple[float, ...]:
    """One or more quotas of a turn, s. Raises UserError."""
    is_list = isinstance(value, Sequence | np.ndarray) and not isinstance(value, str | bytes)
    if is_list and len(value) and all(map(_is_quota, value)):
        return tuple(map(float, value))
    shown = list(value) if is_list else value
    raise UserError(
        f"{name}={shown!r}: expected a list of one or more, each over 0 s"
        f" ({SHORTEST_S:g} to {LONGEST_S:g})"
    )


def _is_quota(value: Any) -> bool:
    is_number = isinstance(value, int | float | np.integer | np.floating)
    return is_number and not isinstance(value, bool) and SHORTEST_S <= value <= LONGEST_S


def seed_of(value: Any) -> int:
    """Raises UserError for what is no whole number of 0 or more."""
    if isinstance(value, int | np.integer) and value >= 0:
        return int(value)
    raise UserError(f"seed={value!r}: expected a whole number of 0 or more")


def seeds_of(value: Any, pools: int, group: int = 1) -> list[int | None]:
    """One for each pool: a number s stands for s, s + 1, ..., one a group. Raises UserError."""
    if np.ndim(value) == 0:
        first = seed_of(value)
        return [first + p // group for p in range(pools)]
    if len(value) != pools:
        raise UserError(f"seed={value!r}: expected {pools} of them, or one number")
    return [None if own is None else seed_of(own) for own in value]


def actions_of(actions: Any, pools: int, last: int) -> npt.NDArray[np.int64]:
    """An action from 0 to `last` for each pool [P]. Raises UserError: nothing is rounded."""
    try:
        given = np.asarray(actions)
    except ValueError:  # rows of unequal length
        given = np.array(None)
    if given.dtype.kind not in "iub" or given.shape != (pools,):
        raise UserError(
            f"actions of shape {given.shape}, {given.dtype}: expected {pools} whole numbers from 0"
            f" to {last}"
        )
    if given.min() < 0 or given.max() > last:
        p = int(np.argmax((given < 0) | (given > last)))
        raise UserError(f"actions[{p}]={given[p]}: expected a whole number from 0 to {last}")
    return np.ascontiguousarray(given, np.int64)
