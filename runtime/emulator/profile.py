"""Latency profiles: measured or derived step times as data, each with its source and error.

A profile is JSON: {schema, name, gpu, kind: measured | derived, source, models: {checkpoint:
{prefill_s, prefill_token_s, prefill_token2_s, decode_s, decode_context_s, decode_batch_s,
source, error_pct}}}. Seconds; per call, token, squared token; per step, context token, request.
`decode_table_s`, pairs [batch, seconds] from batch 1 on, may stand in for `decode_batch_s`: it is
linear between its pairs (MoE: the experts touched grow with the batch). A fit for an instance of
several GPUs is keyed `CHECKPOINT@tpN`. See docs/profiles.md.
"""

import json
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

import numpy as np

from runtime.core import ModelSpec
from runtime.errors import UserError, nearest
from runtime.pool.state import COST, KNOTS, Record, Table

SCHEMA = "aegaeon-rl/profile/1"
LARGEST = 1e6  # of any number in a profile: what keeps times in 64 bits
TABLE = "decode_table_s"
COEFFICIENTS = (
    *("prefill_s", "prefill_token_s", "prefill_token2_s"),
    *("decode_s", "decode_context_s", "decode_batch_s"),
)
ENTRY_KEYS = (*COEFFICIENTS, TABLE, "kind", "source", "error_pct")


@dataclass(frozen=True, slots=True)
class Profile:
    """`costs` [checkpoint] of dtype COST; `kind` says whether anything was measured."""

    name: str
    gpu: str
    kind: str
    source: str
    checkpoints: tuple[str, ...]
    costs: Table

    def table(self, models: tuple[ModelSpec, ...], tp: int = 1) -> Table:
        """Costs [1, M] of the served models on instances of `tp` GPUs.

        Raises UserError for a checkpoint that has no fit at that `tp`.
        """
        rows = [self._row(model.checkpoint, tp) for model in models]
        return self.costs[rows][np.newaxis, :].copy()

    def _row(self, checkpoint: str, tp: int) -> int:
        key = fit_key(checkpoint, tp)
        if key in self.checkpoints:
            return self.checkpoints.index(key)
        others = [k for k in self.checkpoints if k.partition("@tp")[0] == checkpoint]
        if others:
            sizes = ", ".join(k.partition("@tp")[2] or "1" for k in others)
            raise UserError(
                f"profile {self.name}: {checkpoint!r} has no fit for pool.tp={tp}: expected {sizes}"
            )
        fits = [k for k in self.checkpoints if ("@tp" in k) == (tp > 1)]
        choices = nearest(key, fits or self.checkpoints)
        raise UserError(f"profile {self.name}: no checkpoint {key!r}; {choices}")


def fit_key(checkpoint: str, tp: int) -> str:
    """The key of a fit: the checkpoint, and `@tpN` for an instance of several GPUs."""
    return checkpoint if tp == 1 else f"{checkpoint}@tp{tp}"


def shipped_profiles() -> tuple[str, ...]:
    folder = files("runtime.profiles")
    return tuple(sorted(p.name[:-5] for p in folder.iterdir() if p.name.endswith(".json")))


def load_profile(name: str) -> Profile:
    """A shipped profile by name, or any by path. Raises UserError with the nearest name."""
    if name.endswith(".json"):
        path = Path(name)
        if not path.is_file():
            raise UserError(f"profile={name}: no such file")
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise UserError(f"profile={name}: not UTF-8 text at byte {error.start}") from None
        return parse_profile(text, name)
    if name not in shipped_profiles():
        raise UserError(f"profile={name}: {nearest(name, shipped_profiles())}")
    return parse_profile(files("runtime.profiles").joinpath(f"{name}.json").read_text(), name)


def parse_profile(text: str, origin: str) -> Profile:
    """Raises UserError naming the key that is missing, negative or not a number."""
    try:
        data = json.loads(text)
    except json.JSONDecodeError as error:
        raise UserError(f"profile {origin}: not JSON at line {error.lineno}: {error.msg}") from None
    except (ValueError, RecursionError) as error:  # digits or depth beyond what Python reads
        raise UserError(f"profile {origin}: not JSON: {error}") from None
    if not isinstance(data, dict) or data.get("schema") != SCHEMA:
        raise UserError(f"profile {origin}: schema is not {SCHEMA!r}")
    for key in ("name", "gpu", "kind", "source", "models"):
        if key not in data:
            raise UserError(f"profile {origin}: key {key!r} is missing")
        if key != "models" and not isinstance(data[key], str):
            raise UserError(f"profile {origin}: {key}={data[key]!r}: expected a text")
    models = data["models"]
    if not isinstance(models, dict) or not models:
        raise UserError(f"profile {origin}: models={models!r}: expected costs by checkpoint")
    checkpoints = tuple(models)
    costs = np.zeros(len(checkpoints), COST)
    for row, checkpoint in enumerate(checkpoints):
        if not isinstance(models[checkpoint], dict):
            found = repr(models[checkpoint])
            raise UserError(f"profile {origin}: {checkpoint}={found}: expected columns of seconds")
        _fill(costs[row], models[checkpoint], f"profile {origin}: {checkpoint}")
    return Profile(data["name"], data["gpu"], data["kind"], data["source"], checkpoints, costs)


def _fill(cost: Record, entry: dict[str, object], where: str) -> None:
    for key in entry:
        if key not in ENTRY_KEYS:
            raise UserError(f"{where}.{key}: unknown key; {nearest(key, ENTRY_KEYS)}")
    has_table = TABLE in entry
    if has_table and "decode_batch_s" in entry:
        raise UserError(f"{where}: decode_batch_s and {TABLE} exclude each other: expected one")
    for column in COEFFICIENTS:
        if not (has_table and column == "decode_batch_s"):
            is_signed = column == "prefill_token2_s"  # published fits are slightly concave
            cost[column] = _number(entry.get(column), f"{where}.{column}", is_signed=is_signed)
    if has_table:
        _fill_table(cost, entry[TABLE], f"{where}.{TABLE}")


def _fill_table(cost: Record, pairs: object, where: str) -> None:
    if not isinstance(pairs, list) or not 2 <= len(pairs) <= KNOTS:
        raise UserError(f"{where}={pairs!r}: expected 2 to {KNOTS} pairs [batch, seconds]")
    for k, pair in enumerate(pairs):
        if not isinstance(pair, list) or len(pair) != 2:
            raise UserError(f"{where}[{k}]={pair!r}: expected a pair [batch, seconds]")
        cost["knot_batch"][k] = _number(pair[0], f"{where}[{k}] batch", unit="requests")
        cost["knot_s"][k] = _number(pair[1], f"{where}[{k}] seconds")
    cost["knots"] = n = len(pairs)
    if cost["knot_batch"][0] != 1:
        raise UserError(f"{where}[0] batch={pairs[0][0]!r}: expected 1")
    for k in range(1, n):
        if not cost["knot_batch"][k] > cost["knot_batch"][k - 1]:
            raise UserError(
                f"{where}[{k}] batch={pairs[k][0]!r}: expected more than {pairs[k - 1][0]!r}"
            )
        if cost["knot_s"][k] < cost["knot_s"][k - 1]:
            raise UserError(
                f"{where}[{k}] seconds={pairs[k][1]!r}: expected at least {pairs[k - 1][1]!r}"
            )


def _number(value: object, where: str, *, is_signed: bool = False, unit: str = "seconds") -> float:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not abs(value) <= LARGEST:  # type: ignore[arg-type]
        raise UserError(f"{where}={value!r}: expected a number of {unit}")
    number = float(value)  # type: ignore[arg-type]
    if number < 0 and not is_signed:
        raise UserError(f"{where}={value!r}: expected a non-negative number of {unit}")
    return number
