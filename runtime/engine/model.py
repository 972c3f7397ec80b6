"""transformers' own model code over weights and KV that are ours.

A `Shell` is the module tree of one architecture shape: built once without weights, its buffers
(RoPE frequencies) resident, its parameters views into whichever slot holds the weights. Its
attention layers call `attend` through transformers' attention interface and build no mask.
Letters: T new tokens of all requests, H query heads, J key heads, D head size, R rows of logits.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from huggingface_hub.errors import StrictDataclassError
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from runtime.engine.attention import AttentionBatch, attend
from runtime.errors import UserError, nearest

ATTENTION = "aegaeon_paged"
MODELS: Any = AutoModelForCausalLM  # untyped there
CHOICES = ("attn_implementation", "_attn_implementation", "experts_implementation")  # not a file's
SERVED = frozenset(
    (
        *("arcee", "cohere", "cohere2", "ernie4_5", "exaone4", "gemma", "gemma2", "gemma3_text"),
        *("glm", "glm4", "gpt2", "gpt_oss", "granite", "granitemoe", "llama", "mistral"),
        *("mixtral", "nemotron", "olmo", "olmo2", "olmo3", "olmoe", "phi", "phi3", "qwen2"),
        *("qwen2_moe", "qwen3", "qwen3_moe", "seed_oss", "smollm3", "stablelm", "starcoder2"),
    )
)  # model types whose every layer is attention as `attend` does it, compared with `generate`


class Geometry(NamedTuple):
    """The shape of a model's KV."""

    layers: int
    kv_heads: int
    head_dim: int


class Step:
    """What the attention layers of one shell work on during a call."""

    __slots__ = ("batch", "layers")

    def __init__(self) -> None:
        self.layers: Sequence[Tensor] = ()  # per layer [blocks, 2, block, J, D]
        self.batch: AttentionBatch | None = None


def paged_attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """transformers' attention interface: query [1, H, T, D], key and value [1, J, T, D]."""
    step: Step = module.step
    assert step.batch is not None
    out = attend(
        query.squeeze(0).transpose(0, 1),
        key.squeeze(0).transpose(0, 1),
        value.squeeze(0).transpose(0, 1),
        step.layers[module.layer_idx],
        step.batch,
        scale=query.shape[-1] ** -0.5 if scaling is None else scaling,
        window=sliding_window,
        softcap=softcap,
        sinks=s_aux,
    )
    return out.unsqueeze(0), None


ALL_ATTENTION_FUNCTIONS.register(ATTENTION, paged_attention)


def read_config(config: Mapping[str, Any]) -> PreTrainedConfig:
    """A HF config dict as transformers' object; code from a repository is never run."""
    kind = require_served(config, "config")
    rest = {key: value for key, value in config.items() if key not in ("model_type", *CHOICES)}
    try:
        return AutoConfig.for_model(kind, **rest)
    except (ValueError, TypeError, AttributeError, KeyError, StrictDataclassError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"config of model_type {kind!r}: transformers cannot read it ({reason})"
        ) from None


def require_served(config: Mapping[str, Any], where: str) -> str:
    """The config's model type; UserError, naming `where`, unless the engine runs it."""
    kind = config.get("model_type")
    if not isinstance(kind, str):
        raise UserError(f"{where}: model_type is {kind!r:.60}: expected that of a language model")
    if "auto_map" in config:
        raise UserError(f"{where}: auto_map: models that bring code of their own are not run")
    for key in CHOICES:
        if "/" in str(config.get(key, "")):
            raise UserError(f"{where}: {key} is {config[key]!r:.60}: code from a hub is not run")
    if kind not in SERVED:
        raise UserError(
            f"{where}: model_type is {kind!r:.60}: not one that the engine can run exactly; "
            f"{nearest(kind[:60], SERVED)}"
        )
    return kind


def geometry(config: PreTrainedConfig) -> Geometry:
    heads = config.num_attention_heads
    return Geometry(
        config.num_hidden_layers,
        getattr(config, "num_key_value_heads", None) or heads,
        getattr(config, "head_dim", None) or config.hidden_size // heads,
    )


def stop_tokens(config: PreTrainedConfig) -> frozenset[int]:
    """The config's end-of-sequence tokens."""
    eos = getattr(config, "eos_token_id", None)
    if eos is None:
        return frozenset()
    return frozenset(eos if isinstance(eos, (list, tuple)) else [eos])


def shape_key(config: Mapping[str, Any], dtype: torch.dtype) -> str:
    """Equal for models that can share a shell (and captured graphs)."""
    ignored = ("_name_or_path", "transformers_version", "architectures", "dtype", "torch_dtype")
    rest = {key: value for key, value in config.items() if key not in ignored}
    return json.dumps([str(dtype), rest], sort_keys=True, default=str)


class Shell:
    """One architecture shape on one device, without weights of its own.

    With another `attention` than ours it is transformers' plain model (for comparison): use
    `module`, not `forward`.
    """

    def __init__(
        self,
        config: Mapping[str, Any],
        dtype: torch.dtype,
        device: torch.device | str,
        *,
        attention: str = ATTENTION,
    ) -> None:
        self.config = read_config(config)
        self.dtype = dtype
        self.device = torch.device(device)
        self.geometry = geometry(self.config)
        self.vocab = int(self.config.vocab_size)
        self.context = int(getattr(self.config, "max_position_embeddings", 1 << 62))
        self.stop_tokens = stop_tokens(self.config)
        self.step = Step()
        self._direct = attention == ATTENTION  # parts found without torch's slow way to attributes
        self._model = self._build(attention)
        self._names = self._parameter_names()
        self.bound: Hashable = None  # which weights it computes with
        self._views: dict[Hashable, list[Tensor]] = {}

    def _build(self, attention: str) -> nn.Module:
        with torch.device("meta"):
            model: Any = MODELS.from_config(
                self.config, dtype=self.dtype, attn_implementation=attention
            )
        for module in model.modules():
            if self._direct:
                module.__dict__.update(module._modules)
            if hasattr(module, "layer_idx"):
                module.step = self.step
            lost = [name for name, b in module.named_buffers(recurse=False) if b.is_meta]
            for name in lost:
                module._buffers[name] = torch.empty_like(module._buffers[name], device=self.device)
            if lost:
                model._init_weights(module)  # weights are still on meta: only buffers get values
        return model.eval()

    def _parameter_names(self) -> list[tuple[tuple[str, ...], list[tuple[nn.Module, str]]]]:
        """Per distinct parameter its names (several when tied) and the modules that hold it."""
        found: dict[int, tuple[list[str], list[tuple[nn.Module, str]]]] = {}
        for path, module in self._model.named_modules():
            for name, parameter in module.named_parameters(recurse=False):
                names, holders = found.setdefault(id(parameter), ([], []))
                names.append(f"{path}.{name}" if path else name)
                holders.append((module, name))
        return [(tuple(names), holders) for names, holders in found.values()]

    @property
    def module(self) -> Any:
        """transformers' model."""
        return self._model

    @property
    def parameter_names(self) -> list[str]:
        """The first name of every distinct parameter."""
        return [names[0] for names, _ in self._names]

    @property
    def buffer_bytes(self) -> int:
        """Bytes that stay resident beside the weights."""
        return sum(buffer.nbytes for buffer in self._model.buffers())

    def bind(self, key: Hashable, views: Callable[[], Mapping[str, Tensor]]) -> None:
        """Compute with these weights from now on. `key` names a layout in a place: its views are
        made once, and binding again only swaps pointers."""
        if key not in self._views:
            found = views()
            self._views[key] = [self._find(names, found) for names, _ in self._names]
        if self.bound == key:
            return
        for view, (_, holders) in zip(self._views[key], self._names, strict=True):
            parameter = nn.Parameter(view, requires_grad=False)
            for module, name in holders:
                module._parameters[name] = parameter
                if self._direct:
                    module.__dict__[name] = parameter
        self.bound = key

    def _find(self, names: Sequence[str], views: Mapping[str, Tensor]) -> Tensor:
        name = next((name for name in names if name in views), None)
        if name is None:
            raise UserError(
                f"weights lack {names[0]!r} of {self.config.model_type}; "
                f"{nearest(names[0], list(views))}"
            )
        wanted = self._model.get_parameter(names[0]).shape
        view = views[name]
        if view.shape != wanted:
            raise UserError(
                f"weights {name!r} have shape {tuple(view.shape)}: expected {tuple(wanted)}"
            )
        return view

    def forward(
        self,
        tokens: Tensor,
        positions: Tensor,
        layers: Sequence[Tensor],
        batch: AttentionBatch,
        rows: Tensor | None = None,
    ) -> Tensor:
        """Logits [R, vocabulary] of the new tokens at `rows` (all when None). The caller turns
        gradients off (`torch.inference_mode`).

        Args:
            tokens: int64 [T]; positions: int64 [T], of each token in its own request.
            layers: the KV arena's view of each layer.
            rows: int64 [R], places among the T.
        """
        self.step.layers, self.step.batch = layers, batch
        out: Any = self._model(
            input_ids=tokens.unsqueeze(0),
            position_ids=positions.unsqueeze(0),
            use_cache=False,
            logits_to_keep=0 if rows is None else rows,
        )
        logits: Tensor = out.logits[0]
        return logits
