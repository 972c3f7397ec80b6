"""Small random models made on the spot, `tiny:ARCHITECTURE:SEED`, and the tokenizer of them all.

A token is a byte, behind a few marks for chats. The models say printable ASCII only (the weights
of all other tokens but the end are zero in the last layer), so that their text streams.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from runtime.errors import UserError, nearest

if TYPE_CHECKING:
    from runtime.engine.blob import Blob

PREFIX = "tiny:"
MARKS = ("<pad>", "<bos>", "<eos>", "<|system|>", "<|user|>", "<|assistant|>")
PAD, BOS, EOS = range(3)
VOCAB = len(MARKS) + 256
PRINTABLE = range(len(MARKS) + 32, len(MARKS) + 127)
CONTEXT_TOKENS = 2048
CONFIG: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": CONTEXT_TOKENS,
    "initializer_range": 0.3,  # far apart logits: no ties that rounding could decide
    "pad_token_id": PAD,
    "bos_token_id": BOS,
    "eos_token_id": EOS,
    "tie_word_embeddings": False,
}
MOE = {"num_experts_per_tok": 2, "moe_intermediate_size": 24}
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "llama": {},
    "qwen2": {},
    "qwen3": {"head_dim": 16},
    "mistral": {"sliding_window": 32, "head_dim": 8},
    "gemma3_text": {
        "sliding_window": 32,
        "layer_types": ["sliding_attention", "full_attention"],
        "head_dim": 8,
        "query_pre_attn_scalar": 8,
    },
    "phi3": {},
    "olmo2": {},
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": CONTEXT_TOKENS},
    "mixtral": {"num_local_experts": 4, "sliding_window": None, **MOE},
    "qwen3_moe": {"num_experts": 4, "head_dim": 8, "norm_topk_prob": True, **MOE},
}
GPT2_NAMES = ("hidden_size", "intermediate_size", "num_", "max_position")  # it has its own


def is_tiny(path: str) -> bool:
    return path.startswith(PREFIX)


def parsed(path: str) -> tuple[str, int]:
    """Architecture and seed of `tiny:llama:0`; UserError for any other text."""
    _, _, rest = path.partition(":")
    kind, _, seed = rest.partition(":")
    if kind not in ARCHITECTURES:
        raise UserError(f"{path:.80}: architecture {kind!r:.60}: {nearest(kind, ARCHITECTURES)}")
    if not (seed or "0").isdecimal() or int(seed or 0) >= 1 << 63:
        raise UserError(f"{path:.80}: seed {seed!r:.60}: expected a whole number, as tiny:llama:0")
    return kind, int(seed or 0)


def tiny_config(kind: str) -> dict[str, Any]:
    """What `AutoConfig.for_model` takes."""
    keys = {**CONFIG, **ARCHITECTURES[kind]}
    if kind == "gpt2":
        return {name: value for name, value in keys.items() if not name.startswith(GPT2_NAMES)}
    return keys


def tiny_blob(path: str, dtype: str) -> Blob:
    """The blob of `tiny:ARCHITECTURE:SEED`: the same bytes at each call."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from runtime.engine.blob import blob_of
    from runtime.engine.convert import DTYPES

    kind, seed = parsed(path)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        config = AutoConfig.for_model(kind, **tiny_config(kind))
        made: Any = AutoModelForCausalLM
        model = made.from_config(config, dtype=torch.float32, trust_remote_code=False)
    silent = [token for token in range(VOCAB) if token not in PRINTABLE and token != EOS]
    with torch.no_grad():
        model.lm_head.weight[silent] = 0
    return blob_of(model.to(DTYPES[dtype]).eval())


class ByteTokenizer:
    """Text as its UTF-8 bytes; what is used of a transformers tokenizer, without transformers."""

    vocab_size = VOCAB
    bos_token_id, eos_token_id, pad_token_id = BOS, EOS, PAD
    chat_template = (
        "{% for message in messages %}<|{{ message.role }}|>{{ message.content }}{% endfor %}"
        "<|assistant|>"
    )

    def __len__(self) -> int:
        return VOCAB

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Its bytes behind `<bos>`; marks within the text are text."""
        raw = text.encode("utf-8", "replace")
        return [*([BOS] if add_special_tokens else ()), *(byte + len(MARKS) for byte in raw)]

    def decode(self, token_ids: Iterable[int], *, skip_special_tokens: bool = False) -> str:
        parts = (
            bytes([token - len(MARKS)])
            if token >= len(MARKS)
            else b""
            if skip_special_tokens
            else MARKS[token].encode()
            for token in map(int, token_ids)
        )
        return b"".join(parts).decode("utf-8", "replace")

    def convert_ids_to_tokens(self, token_ids: Sequence[int]) -> list[str]:
        return [self.decode([token]) for token in token_ids]

    def apply_chat_template(
        self,
        conversation: Sequence[Mapping[str, Any]],
        *,
        add_generation_prompt: bool = False,
        return_dict: bool = False,
        tokenize: bool = True,
    ) -> list[int]:
        """Tokens of a chat. Raises ValueError for a role it has no mark for."""
        assert tokenize, "tiny models: tokens are all this gives"
        assert not return_dict, "tiny models: tokens are all this gives"
        tokens = [BOS]
        for message in conversation:
            tokens.append(self._mark(str(message["role"])))
            tokens += self.encode(str(message["content"]), add_special_tokens=False)
        return [*tokens, self._mark("assistant")] if add_generation_prompt else tokens

    def _mark(self, role: str) -> int:
        mark = f"<|{role}|>"
        if mark not in MARKS:
            raise ValueError(f"role {role!r:.60}: expected system, user or assistant")
        return MARKS.index(mark)
