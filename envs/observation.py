"""The feature spec of `aegaeon/Pool-v0` as data, and as a table to read.

Letters: K rows, F row features, I instance features, C pool features, Q quota levels; H and W of
the privileged key.
"""

from collections.abc import Iterator, Sequence
from typing import Any

from envs.privileged import POOL_FUTURE, PRIVILEGED_HASH, ROW_FUTURE, H
from envs.privileged import VERSION as PRIVILEGED_VERSION
from runtime.pool.features import (
    INSTANCE_FEATURES,
    POOL_FEATURES,
    ROW_FEATURES,
    SPEC_HASH,
    SPEC_VERSION,
    F,
    Feature,
)

SCHEMA = "aegaeon-rl/features/1"
HEADINGS = ("index", "name", "unit", "scale", "low", "high", "meaning")
Line = tuple[str, ...]


def feature_spec(*, privileged: bool = False) -> dict[str, Any]:
    """The spec as JSON: version, hash, and each group's features in order."""
    groups = {"rows": ROW_FEATURES, "instance": INSTANCE_FEATURES, "globals": POOL_FEATURES}
    spec: dict[str, Any] = {"schema": SCHEMA, "version": SPEC_VERSION, "hash": SPEC_HASH}
    spec |= {key: [feature._asdict() for feature in group] for key, group in groups.items()}
    if privileged:
        spec["privileged"] = {
            "version": PRIVILEGED_VERSION,
            "hash": PRIVILEGED_HASH,
            "rows": [feature._asdict() for feature in ROW_FUTURE],
            "pool": [feature._asdict() for feature in POOL_FUTURE],
        }
    return spec


def describe_observation(rows: int, quotas_s: Sequence[float], *, privileged: bool = False) -> str:
    """A table of every number of an observation, in Markdown: shown value = quantity in `unit` /
    `scale`, clipped to low..high."""
    levels = len(quotas_s)
    parts = [
        f"Feature spec {SPEC_VERSION}-{SPEC_HASH}: each number is a quantity in its unit, divided"
        " by its scale, clipped to low..high. TTFT is the model's own target in seconds.",
        _section(
            f"rows [{rows * F}]: {rows} candidate models, most urgent first, {F} numbers each"
            " (closed rows are 0)",
            _lines(ROW_FEATURES, lambda i: f"{F}k+{i}"),
        ),
        _section(
            f"instance [{len(INSTANCE_FEATURES)}]: the instance that decides",
            _lines(INSTANCE_FEATURES, str),
        ),
        _section(f"globals [{len(POOL_FEATURES)}]: the pool", _lines(POOL_FEATURES, str)),
        f"action_mask [{rows * levels + 1}]: 1 where the action is allowed; action {levels}k+q"
        f" gives row k a turn of quota q of {list(map(float, quotas_s))} s; of other decisions only"
        " q=0 is open: prefetch row k, stop for it (INTERRUPT), send the request there (ROUTE: its"
        f" rows are instances); {rows * levels} is idle, no prefetch, or keeps the turn",
    ]
    if privileged:
        parts += _privileged(rows)
    return "\n\n".join(parts) + "\n"


def _privileged(rows: int) -> list[str]:
    size = rows * H + len(POOL_FUTURE)
    return [
        f"privileged [{size}], spec {PRIVILEGED_VERSION}-{PRIVILEGED_HASH}: the future, for critics"
        " in training only; no acting policy reads it",
        _section("its rows, as above", _lines(ROW_FUTURE, lambda i: f"{H}k+{i}")),
        _section("its pool", _lines(POOL_FUTURE, lambda i: str(rows * H + i))),
    ]


def _lines(features: Sequence[Feature], index: Any) -> Iterator[Line]:
    for i, (name, unit, scale, low, high, meaning) in enumerate(features):
        yield index(i), name, unit, scale, f"{low:g}", f"{high:g}", meaning


def _section(title: str, lines: Iterator[Line]) -> str:
    table = [HEADINGS, *lines]
    widths = [max(len(line[c]) for line in table) for c in range(len(HEADINGS))]

    def drawn(line: Sequence[str]) -> str:
        cells = (text.ljust(width) for text, width in zip(line, widths, strict=True))
        return f"| {' | '.join(cells)} |"

    rule = f"|{'|'.join('-' * (width + 2) for width in widths)}|"
    return "\n".join([title, "", drawn(HEADINGS), rule, *map(drawn, table[1:])])
