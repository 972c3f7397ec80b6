"""Tiny random models of every architecture the engine must run, made on the spot."""

from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

SMALL: dict[str, Any] = {
    "vocab_size": 199,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "initializer_range": 0.3,  # far apart logits: no ties that rounding could decide
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
MOE = {"num_experts_per_tok": 2, "moe_intermediate_size": 24}
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "llama": {"tie_word_embeddings": True},
    "qwen2": {},
    "qwen3": {"head_dim": 16},
    "mistral": {"sliding_window": 8, "head_dim": 8},
    "gemma3_text": {
        "sliding_window": 8,
        "layer_types": ["sliding_attention", "full_attention"],  # as the real one mixes them
        "head_dim": 8,
        "query_pre_attn_scalar": 8,
    },
    "phi3": {},
    "olmo2": {},
    "gpt2": {},
    "mixtral": {"num_local_experts": 4, "sliding_window": None, **MOE},
    "qwen3_moe": {"num_experts": 4, "head_dim": 8, "norm_topk_prob": True, **MOE},
}
GPT2 = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 256}


def tiny_model(kind: str, seed: int = 0, **changes: Any) -> Any:
    """A random float32 model in evaluation mode."""
    keys = {**SMALL, **ARCHITECTURES[kind], **changes}
    if kind == "gpt2":
        kept = {k: v for k, v in keys.items() if k.endswith("_id") or k.startswith(("voc", "ini"))}
        keys = {**kept, **GPT2}
    torch.manual_seed(seed)
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **keys)).eval()
