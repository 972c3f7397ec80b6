"""Known checkpoints and how served models get them."""

import pytest

from runtime.catalog import CHECKPOINTS, assign_checkpoints, checkpoint
from runtime.errors import UserError


@pytest.mark.parametrize(
    ("name", "layers", "kv_heads", "head_dim"),
    [
        ("Qwen2.5-7B", 28, 4, 128),
        ("Yi-1.5-9B", 48, 4, 128),
        ("Llama-2-13B", 40, 40, 128),
        ("Llama-3.1-8B", 32, 8, 128),
        ("Qwen3-8B", 36, 8, 128),
        ("Qwen3-32B", 64, 8, 128),
        ("Qwen3-0.6B", 28, 8, 128),
    ],
)
def test_kv_bytes_are_two_bf16_vectors_a_layer(
    name: str, layers: int, kv_heads: int, head_dim: int
) -> None:
    assert checkpoint(name).kv_token_bytes == 2 * layers * kv_heads * head_dim * 2


@pytest.mark.parametrize(
    ("name", "gigabytes", "layers", "hidden"),
    [("Qwen2.5-7B", 14, 28, 3584), ("Yi-1.5-9B", 18, 48, 4096), ("Llama-2-13B", 26, 40, 5120)],
)
def test_sosp25_sizes_are_the_artifacts(
    name: str, gigabytes: int, layers: int, hidden: int
) -> None:
    shape = checkpoint(f"sosp25/{name}")
    assert shape.weight_bytes == gigabytes * 10**9
    assert shape.kv_token_bytes == 4 * layers * hidden


@pytest.mark.parametrize(
    ("name", "mlp_hidden"),
    [
        ("Qwen3-0.6B", 3072), ("Qwen3-1.7B", 6144), ("Qwen1.5-1.8B", 5504), ("Qwen3-4B", 9728),
        ("Qwen2.5-7B", 18_944), ("Llama-3.1-8B", 14_336), ("Qwen3-8B", 12_288),
        ("Yi-1.5-9B", 11_008), ("Llama-2-13B", 13_824), ("Qwen3-14B", 17_408),
        ("Qwen3-32B", 25_600), ("Llama-3.1-70B", 28_672), ("Qwen2.5-72B", 29_568),
        ("Qwen3-30B-A3B", 0), ("Mixtral-8x7B", 0),
    ],
)  # fmt: skip
def test_weights_are_what_the_shape_adds_up_to(name: str, mlp_hidden: int) -> None:
    """Projections, embeddings and a router; norms and biases are under 0.01 %."""
    shape = checkpoint(name)
    wide = shape.hidden * shape.head_dim
    layer = 2 * wide * (shape.heads + shape.kv_heads) + 3 * shape.hidden * mlp_hidden
    layer += shape.hidden * shape.experts
    total = 2 * shape.layers * layer + shape.experts * shape.expert_bytes
    total += shape.head_bytes * (1 if shape.is_tied else 2)
    assert total == pytest.approx(shape.weight_bytes, rel=1e-4)


@pytest.mark.parametrize(("name", "billion"), [("Qwen3-30B-A3B", 3.35), ("Mixtral-8x7B", 12.88)])
def test_a_token_uses_a_part_of_the_experts(name: str, billion: float) -> None:
    assert checkpoint(name).active_bytes / 2e9 == pytest.approx(billion, abs=0.01)
    assert checkpoint("Qwen3-8B").active_bytes == checkpoint("Qwen3-8B").weight_bytes


def test_unknown_checkpoint_names_the_nearest() -> None:
    with pytest.raises(UserError, match=r"checkpoint 'Qwen3-0\.6': did you mean 'Qwen3-0\.6B'"):
        checkpoint("Qwen3-0.6")


def test_models_cycle_through_checkpoints_in_order_of_appearance() -> None:
    specs = assign_checkpoints(("b", "a", "c"), ("Qwen3-8B", "Yi-1.5-9B"))
    assert [spec.name for spec in specs] == ["b", "a", "c"]
    assert [spec.checkpoint for spec in specs] == ["Qwen3-8B", "Yi-1.5-9B", "Qwen3-8B"]
    shapes = [CHECKPOINTS[spec.checkpoint] for spec in specs]
    assert [(s.weight_bytes, s.kv_token_bytes) for s in specs] == [
        (shape.weight_bytes, shape.kv_token_bytes) for shape in shapes
    ]


def test_assigning_an_unknown_checkpoint_is_the_users_mistake() -> None:
    with pytest.raises(UserError, match="checkpoint 'nope'"):
        assign_checkpoints(("a",), ("nope",))
