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
