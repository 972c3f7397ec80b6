"""Latency profiles: measured or derived step times as data, each with its source and error.

A profile is JSON: {schema, name, gpu, kind: measured | derived, source, models: {checkpoint:
{prefill_s, prefill_token_s, prefill_token2_s, decode_s, decode_context_s, decode_batch_s,
source, error_pct}}}. Seconds; per call, token, squared token; per step, context token, request.
"""

import json
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

import numpy as np

from runtime.core import ModelSpec
from runtime.errors import UserError, nearest
from runtime.pool.state import COST, Table

SCHEMA = "aegaeon-rl/profile/1"


@dataclass(frozen=True, slots=True)
class Profile:
    """`costs` [checkpoint] of dtype COST; `kind` says whether anything was measured."""

    name: str
    gpu: str
    kind: str
    source: str
    checkpoints: tuple[str, ...]
    costs: Table

    def table(self, models: tuple[ModelSpec, ...]) -> Table:
        """Costs [1, M] of the served models. Raises UserError for a checkpoint not profiled."""
        rows = []
        for model in models:
            if model.checkpoint not in self.checkpoints:
                choices = nearest(model.checkpoint, self.checkpoints)
                raise UserError(
                    f"profile {self.name}: no checkpoint {model.checkpoint!r}; {choices}"
                )
            rows.append(self.checkpoints.index(model.checkpoint))
        return self.costs[rows][np.newaxis, :].copy()


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
    if not isinstance(data, dict) or data.get("schema") != SCHEMA:
        raise UserError(f"profile {origin}: schema is not {SCHEMA!r}")
    for key in ("name", "gpu", "kind", "source", "models"):
        if key not in data:
            raise UserError(f"profile {origin}: key {key!r} is missing")
    models = data["models"]
    if not isinstance(models, dict) or not models:
        raise UserError(f"profile {origin}: models={models!r}: expected costs by checkpoint")
    checkpoints = tuple(models)
    costs = np.zeros(len(checkpoints), COST)
    for row, checkpoint in enumerate(checkpoints):
        if not isinstance(models[checkpoint], dict):
            found = repr(models[checkpoint])
            raise UserError(f"profile {origin}: {checkpoint}={found}: expected columns of seconds")
        for column in COST.names or ():
            costs[column][row] = _number(models[checkpoint], column, origin, checkpoint)
    return Profile(data["name"], data["gpu"], data["kind"], data["source"], checkpoints, costs)


def _number(entry: dict[str, object], column: str, origin: str, checkpoint: str) -> float:
    value = entry.get(column)
    where = f"profile {origin}: {checkpoint}.{column}"
    if isinstance(value, bool) or not isinstance(value, int | float) or not np.isfinite(value):
        raise UserError(f"{where}={value!r}: expected a number of seconds")
    if value < 0 and column != "prefill_token2_s":  # the artifact's own fits are slightly concave
        raise UserError(f"{where}={value!r}: expected a non-negative number of seconds")
    return float(value)
