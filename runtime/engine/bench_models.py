"""Random models of known shapes, for measuring: weights in a blob, transformers' model over it."""

from __future__ import annotations

from typing import Any

import torch

from runtime.engine.blob import Blob, blob_from
from runtime.engine.model import Shell
from runtime.errors import UserError, nearest

COMMON: dict[str, Any] = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
SHAPES: dict[str, dict[str, Any]] = {
    "tiny": {
        "model_type": "llama",
        "vocab_size": 512,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
    },
    "135m": {  # SmolLM2-135M
        "model_type": "llama",
        "vocab_size": 49152,
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "max_position_embeddings": 8192,
        "tie_word_embeddings": True,
    },
    "0.5b": {  # Qwen2.5-0.5B
        "model_type": "qwen2",
        "vocab_size": 151936,
        "hidden_size": 896,
        "intermediate_size": 4864,
        "num_hidden_layers": 24,
        "num_attention_heads": 14,
        "num_key_value_heads": 2,
        "max_position_embeddings": 32768,
        "tie_word_embeddings": True,
    },
    "7b": {  # Qwen2.5-7B
        "model_type": "qwen2",
        "vocab_size": 152064,
        "hidden_size": 3584,
        "intermediate_size": 18944,
        "num_hidden_layers": 28,
        "num_attention_heads": 28,
        "num_key_value_heads": 4,
        "max_position_embeddings": 32768,
        "tie_word_embeddings": False,
    },
}


def shape_config(name: str) -> dict[str, Any]:
    """The config of a shape by name."""
    if name not in SHAPES:
        raise UserError(f"model={name}: no such shape; {nearest(name, SHAPES)}")
    return {**COMMON, **SHAPES[name]}


def random_model(name: str, dtype: torch.dtype, device: torch.device, seed: int = 0) -> Blob:
    """A blob of a shape with random weights, drawn on `device`."""
    config = shape_config(name)
    module = Shell(config, dtype, "cpu").module
    draw = torch.Generator(device).manual_seed(seed)
    weights: dict[str, torch.Tensor] = {}
    for key, parameter in module.named_parameters():
        if parameter.dim() > 1:
            weight = torch.empty(parameter.shape, dtype=dtype, device=device)
            weights[key] = weight.normal_(0, 0.02, generator=draw).cpu()
        else:
            weights[key] = torch.full(parameter.shape, float(not key.endswith("bias")), dtype=dtype)
    return blob_from({**config, "dtype": str(dtype).removeprefix("torch.")}, weights)


def plain_model(blob: Blob, device: torch.device) -> Any:
    """transformers' own model over the same weights (views on CPU, copies elsewhere)."""
    shell = Shell(blob.index.config, blob.index.dtype, device, attention="sdpa")
    shell.bind("plain", lambda: {k: v.to(device) for k, v in blob.tensors().items()})
    return shell.module
