"""Known GPUs and checkpoints: what data sheets and configurations say. Latency is in profiles.

Weights are bf16. The `sosp25/` entries are the sizes the SOSP'25 artifact's simulator uses (14, 18
and 26 GB; KV 4 * layers * hidden) with the shapes of the models they are named after.
"""

from dataclasses import dataclass

from runtime.core import ModelSpec
from runtime.errors import UserError, nearest


@dataclass(frozen=True, slots=True, kw_only=True)
class Gpu:
    """Peaks of one GPU: dense bf16 FLOP/s; bytes a second of its memory, of its x16 port to the
    host and of its links to other GPUs, the last two in one direction."""

    flops_s: float
    hbm_bytes_s: float
    vram_bytes: int
    pcie_bytes_s: float
    link_bytes_s: float
    source: str


GPUS: dict[str, Gpu] = {
    "A10-24GB": Gpu(
        flops_s=125e12, hbm_bytes_s=600e9, vram_bytes=24_000_000_000,
        pcie_bytes_s=32e9, link_bytes_s=32e9, source="NVIDIA A10 data sheet",
    ),
    "A100-SXM-80GB": Gpu(
        flops_s=312e12, hbm_bytes_s=2.039e12, vram_bytes=80_000_000_000,
        pcie_bytes_s=32e9, link_bytes_s=300e9, source="NVIDIA A100 80GB data sheet",
    ),
    "H20-96GB": Gpu(
        flops_s=148e12, hbm_bytes_s=4.0e12, vram_bytes=96_000_000_000,
        pcie_bytes_s=64e9, link_bytes_s=450e9, source="H20 specification as vendors quote it",
    ),
    "H100-SXM-80GB": Gpu(
        flops_s=989e12, hbm_bytes_s=3.35e12, vram_bytes=80_000_000_000,
        pcie_bytes_s=64e9, link_bytes_s=450e9, source="NVIDIA H100 SXM data sheet",
    ),
    "H200-SXM-141GB": Gpu(
        flops_s=989e12, hbm_bytes_s=4.8e12, vram_bytes=141_000_000_000,
        pcie_bytes_s=64e9, link_bytes_s=450e9, source="NVIDIA H200 SXM data sheet",
    ),
    "H800-SXM-80GB": Gpu(
        flops_s=989e12, hbm_bytes_s=3.35e12, vram_bytes=80_000_000_000,
        pcie_bytes_s=64e9, link_bytes_s=200e9, source="H100 SXM with NVLink at 400 GB/s",
    ),
    "L40S-48GB": Gpu(
        flops_s=362e12, hbm_bytes_s=864e9, vram_bytes=48_000_000_000,
        pcie_bytes_s=32e9, link_bytes_s=32e9, source="NVIDIA L40S data sheet",
    ),
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A decoder's shape, from its public configuration; sums over all layers unless named so."""

    weight_bytes: int
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int
    is_tied: bool = False  # input embedding and output head are one matrix
    experts: int = 0  # of a layer; 0: dense
    experts_per_token: int = 0
    expert_hidden: int = 0

    @property
    def kv_token_bytes(self) -> int:
        return 2 * self.layers * self.kv_heads * self.head_dim * 2

    @property
    def head_bytes(self) -> int:
        """The output head; the input embedding is as large where it is not tied to it."""
        return 2 * self.vocab * self.hidden

    @property
    def expert_bytes(self) -> int:
        """One expert of every layer: gate, up and down projections."""
        return 2 * 3 * self.hidden * self.expert_hidden * self.layers

    @property
    def active_bytes(self) -> int:
        """Weights that one token uses."""
        return self.weight_bytes - (self.experts - self.experts_per_token) * self.expert_bytes


CHECKPOINTS: dict[str, Checkpoint] = {
    "Qwen3-0.6B": Checkpoint(1_192_000_000, 28, 1024, 16, 8, 128, 151_936, True),
    "Qwen3-1.7B": Checkpoint(3_441_000_000, 28, 2048, 16, 8, 128, 151_936, True),
    "Qwen1.5-1.8B": Checkpoint(3_673_000_000, 24, 2048, 16, 16, 128, 151_936),
    "Qwen3-4B": Checkpoint(8_045_000_000, 36, 2560, 32, 8, 128, 151_936, True),
    "Qwen2.5-7B": Checkpoint(15_231_000_000, 28, 3584, 28, 4, 128, 152_064),
    "Llama-3.1-8B": Checkpoint(16_061_000_000, 32, 4096, 32, 8, 128, 128_256),
    "Qwen3-8B": Checkpoint(16_382_000_000, 36, 4096, 32, 8, 128, 151_936),
    "Yi-1.5-9B": Checkpoint(17_659_000_000, 48, 4096, 32, 4, 128, 64_000),
    "Llama-2-13B": Checkpoint(26_032_000_000, 40, 5120, 40, 40, 128, 32_000),
    "Qwen3-14B": Checkpoint(29_537_000_000, 40, 5120, 40, 8, 128, 151_936),
    "Qwen3-32B": Checkpoint(65_524_000_000, 64, 5120, 64, 8, 128, 151_936),
    "Llama-3.1-70B": Checkpoint(141_107_000_000, 80, 8192, 64, 8, 128, 128_256),
    "Qwen2.5-72B": Checkpoint(145_412_000_000, 80, 8192, 64, 8, 128, 152_064),
    "Qwen3-30B-A3B": Checkpoint(
        61_064_000_000, 48, 2048, 32, 4, 128, 151_936,
        experts=128, experts_per_token=8, expert_hidden=768,
    ),
    "Mixtral-8x7B": Checkpoint(
        93_406_000_000, 32, 4096, 32, 8, 128, 32_000,
        experts=8, experts_per_token=2, expert_hidden=14_336,
    ),
    "tiny-random": Checkpoint(16_000_000, 2, 512, 8, 8, 64, 2_048),
    "sosp25/Qwen2.5-7B": Checkpoint(14_000_000_000, 28, 3584, 28, 28, 128, 152_064),
    "sosp25/Yi-1.5-9B": Checkpoint(18_000_000_000, 48, 4096, 32, 32, 128, 64_000),
    "sosp25/Llama-2-13B": Checkpoint(26_000_000_000, 40, 5120, 40, 40, 128, 32_000),
}  # fmt: skip


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
