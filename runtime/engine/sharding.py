"""Along which dimension tensor parallelism would split each weight, by the model's own plan."""

from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import Any

import torch

SPLIT_DIM = {"colwise": 0, "rowwise": 1}  # of a Linear's weight [out, in]


def shard_dims(config: Mapping[str, Any], weights: Mapping[str, torch.Tensor]) -> dict[str, int]:
    """Dimension by weight; a weight that is not here is whole on every rank.

    Only plain Linear layers of transformers' `base_model_tp_plan` are known; experts are not.
    """
    plan = _plan(str(config.get("model_type", "")))
    found = {}
    for name, weight in weights.items():
        layer, _, kind = name.rpartition(".")
        for pattern, split in plan.items():
            if fnmatchcase(layer, f"*{pattern}") and split in SPLIT_DIM:
                if kind == "weight" and weight.ndim == 2:
                    found[name] = SPLIT_DIM[split]
                elif kind == "bias" and split == "colwise":
                    found[name] = 0
    return found


def _plan(model_type: str) -> Mapping[str, str]:
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    if model_type not in CONFIG_MAPPING:
        return {}
    return getattr(CONFIG_MAPPING[model_type], "base_model_tp_plan", None) or {}
