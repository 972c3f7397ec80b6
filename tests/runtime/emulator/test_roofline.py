"""The floor by hand, and every shipped profile above it."""

from collections.abc import Iterator
from typing import Any

import pytest

from runtime.catalog import CHECKPOINTS, GPUS, Checkpoint, Gpu
from runtime.emulator.profile import load_profile, shipped_profiles
from runtime.emulator.roofline import (
    attention_flops,
    prefill_floor_s,
    read_bytes,
    step_floor_s,
    token_flops,
    touched_experts,
)
from runtime.pool.costs import prefill_s, step_s

PROMPTS = (16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16_384, 32_768)
BATCHES = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256)
MOST_CONTEXT = 131_072
FITS = [(name, key) for name in shipped_profiles() for key in load_profile(name).checkpoints]
BELOW = {  # the authors' cost model, kept as it is: where it is faster than an H100 can be
    ("h100_sosp25", "sosp25/Qwen2.5-7B"): {8192, 16_384, 32_768},
    ("h100_sosp25", "sosp25/Yi-1.5-9B"): {8192, 16_384, 32_768},
    ("h100_sosp25", "sosp25/Llama-2-13B"): {4096, 8192, 16_384, 32_768},
}
GPU = Gpu(
    flops_s=1e12, hbm_bytes_s=1e9, vram_bytes=10**9, pcie_bytes_s=1e9, link_bytes_s=1e9, source=""
)
DENSE = Checkpoint(10_000_000, 2, 100, 4, 2, 25, 1000)  # head and embedding 200 kB each
MOE = Checkpoint(
    10_000_000, 2, 100, 4, 2, 25, 1000, experts=8, experts_per_token=2, expert_hidden=400
)  # an expert 480 kB


def contexts(batch: int) -> Iterator[int]:
    """Summed context tokens from one a request up to the most."""
    yield from {batch * each for each in (1, 64, 512, 4096) if batch * each <= MOST_CONTEXT}
    yield MOST_CONTEXT


def parts(name: str, key: str) -> tuple[Any, Gpu, Checkpoint, int]:
    profile = load_profile(name)
    checkpoint, _, tp = key.partition("@tp")
    cost = profile.costs[profile.checkpoints.index(key)]
    return cost, GPUS[profile.gpu], CHECKPOINTS[checkpoint], int(tp or 1)


def prompts_below(cost: Any, gpu: Gpu, shape: Checkpoint, tp: int) -> set[int]:
    return {t for t in PROMPTS if prefill_s(cost, t) < prefill_floor_s(gpu, shape, tp, t)}


def steps_below(cost: Any, gpu: Gpu, shape: Checkpoint, tp: int) -> list[tuple[int, int]]:
    grid = [(b, c) for b in BATCHES for c in contexts(b)]
    return [(b, c) for b, c in grid if step_s(cost, c, b) < step_floor_s(gpu, shape, tp, b, c)]


@pytest.mark.parametrize(("name", "key"), FITS)
def test_shipped_prefill_is_not_faster_than_the_gpu(name: str, key: str) -> None:
    assert prompts_below(*parts(name, key)) == BELOW.get((name, key), set())


@pytest.mark.parametrize(("name", "key"), FITS)
def test_shipped_decode_step_is_not_faster_than_the_gpu(name: str, key: str) -> None:
    assert steps_below(*parts(name, key)) == []


def test_a_linear_decode_of_an_moe_is_refused() -> None:
    """The published fit: at 32 requests nearly all experts are read, which it does not see."""
    cost, gpu, shape, tp = parts("h100", "Qwen3-30B-A3B")
    cost = cost.copy()
    cost["knots"], cost["decode_s"], cost["decode_batch_s"] = 0, 7.7054e-3, 1.0625e-4
    assert (32, 32) in steps_below(cost, gpu, shape, tp)


@pytest.mark.parametrize("key", ["Qwen3-8B", "Qwen3-32B@tp2", "Llama-3.1-70B@tp4"])
def test_half_the_time_is_refused_everywhere(key: str) -> None:
    cost, gpu, shape, tp = parts("h100", key)
    faster = cost.copy()
    for column in ("prefill_s", "prefill_token_s", "decode_s", "decode_context_s"):
        faster[column] = cost[column] / 2
    assert prompts_below(faster, gpu, shape, tp)
    assert steps_below(faster, gpu, shape, tp)


def test_dense_floor_by_hand() -> None:
    layers = 10_000_000 - 400_000
    assert token_flops(DENSE) == layers
    assert read_bytes(DENSE, 1) == read_bytes(DENSE, 500) == layers + 200_000
    assert attention_flops(DENSE, 50) == 4 * 2 * 100 * 50
    # 10 tokens: bound by reading the weights; 20,000: by FLOPs, attention to half the square
    assert prefill_floor_s(GPU, DENSE, 1, 10) == pytest.approx(9.8e6 / 1e9)
    flops = layers * 20_000 + 200_000 + 800 * 20_000**2 / 2
    assert prefill_floor_s(GPU, DENSE, 1, 20_000) == pytest.approx(flops / 1e12)
    # KV of a token: 2 * 2 layers * 2 heads * 25 * 2 bytes
    assert DENSE.kv_token_bytes == 400
    assert step_floor_s(GPU, DENSE, 1, 4, 1000) == pytest.approx((9.8e6 + 400e3) / 1e9)
    assert step_floor_s(GPU, DENSE, 1, 5000, 5000) == pytest.approx(
        (9.8e6 * 5000 + 800 * 5000) / 1e12
    )


def test_tied_embedding_is_read_as_the_head() -> None:
    tied = Checkpoint(10_000_000, 2, 100, 4, 2, 25, 1000, is_tied=True)
    assert read_bytes(tied, 1) == 10_000_000
    assert token_flops(tied) == 9_800_000


def test_experts_touched_grow_from_those_of_one_token_to_all() -> None:
    assert touched_experts(MOE, 1) == pytest.approx(2)
    assert touched_experts(MOE, 2) == pytest.approx(2 + 2 * 6 / 8)
    assert touched_experts(MOE, 1000) == pytest.approx(8)
    assert touched_experts(DENSE, 5) == 0
    assert MOE.active_bytes == 10_000_000 - 6 * 480_000
    assert read_bytes(MOE, 1) == pytest.approx(9_800_000 - 6 * 480_000)
    assert token_flops(MOE) == MOE.active_bytes - 400_000


def test_gpus_of_an_instance_share_the_work_evenly() -> None:
    for batch, context in ((1, 1), (200, 50_000)):
        one = step_floor_s(GPU, MOE, 1, batch, context)
        assert step_floor_s(GPU, MOE, 4, batch, context) == one / 4
    assert prefill_floor_s(GPU, MOE, 4, 99) == prefill_floor_s(GPU, MOE, 1, 99) / 4
