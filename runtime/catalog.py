"""Known checkpoints: what their weights and KV weigh. Latency lives in profiles, not here.

Weight bytes are bf16 parameter counts; KV bytes per token are 2 * layers * kv_heads * head_dim *
2 bytes from the public model configurations. The `sosp25/` entries are the sizes the SOSP'25
artifact's simulator uses (14, 18 and 26 GB; KV 4 * layers * hidden).
"""

from dataclasses import dataclass

from runtime.core import ModelSpec
from runtime.errors import UserError, nearest


@dataclass(frozen=True, slots=True)
class Checkpoint:
    weight_bytes: int
    kv_token_bytes: int


CHECKPOINTS: dict[str, Checkpoint] = {
    "Qwen3-0.6B": Checkpoint(1_192_000_000, 114_688),
    "Qwen3-1.7B": Checkpoint(3_441_000_000, 114_688),
    "Qwen2.5-7B": Checkpoint(15_231_000_000, 57_344),
    "Llama-3.1-8B": Checkpoint(16_061_000_000, 131_072),
    "Qwen3-8B": Checkpoint(16_382_000_000, 147_456),
    "Yi-1.5-9B": Checkpoint(17_659_000_000, 98_304),
    "Llama-2-13B": Checkpoint(26_032_000_000, 819_200),
    "Qwen3-32B": Checkpoint(65_524_000_000, 262_144),
    "tiny-random": Checkpoint(16_000_000, 4_096),
    "sosp25/Qwen2.5-7B": Checkpoint(14_000_000_000, 401_408),
    "sosp25/Yi-1.5-9B": Checkpoint(18_000_000_000, 786_432),
    "sosp25/Llama-2-13B": Checkpoint(26_000_000_000, 819_200),
}


def checkpoint(name: str) -> Checkpoint:
    """Raises UserError naming the nearest known checkpoint."""
    try:
        return CHECKPOINTS[name]
    except KeyError:
        raise UserError(f"checkpoint {name!r}: {nearest(name, CHECKPOINTS)}") from None


def assign_checkpoints(models: tuple[str, ...], cycle: tuple[str, ...]) -> tuple[ModelSpec, ...]:
    """Give each served model a checkpoint's shape, cycling in order of first appearance."""
    specs = []
    for index, name in enumerate(models):
        shape = checkpoint(cycle[index % len(cycle)])
        specs.append(
            ModelSpec(
                name=name,
                checkpoint=cycle[index % len(cycle)],
                weight_bytes=shape.weight_bytes,
                kv_token_bytes=shape.kv_token_bytes,
            )
        )
    return tuple(specs)
