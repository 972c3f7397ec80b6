"""The rules: exact where nothing changes, above the floor, and stated in the source."""

from dataclasses import replace

import pytest

from aegaeon_rl.calibration.fits import BATCHES, PROMPTS, Fit, difference_pct, linear
from aegaeon_rl.calibration.rules import (
    LADDER,
    Fits,
    interpolated,
    lifted,
    mixture,
    ported,
    resized,
    two_gpus,
)
from runtime.catalog import CHECKPOINTS, GPUS
from runtime.emulator.roofline import prefill_floor_s, step_floor_s

H100, H20, H800 = "H100-SXM-80GB", "H20-96GB", "H800-SXM-80GB"


def fit_of(gigabytes: float) -> Fit:
    """About an H100's times for a dense model of that size."""
    seconds = (4e-4, 9e-7, 5e-11, 4e-4, 4.6e-8 / gigabytes, 7e-7)
    return linear([s * gigabytes for s in seconds], "a test")


@pytest.fixture(scope="module")
def fits() -> Fits:
    made = {(H100, n, 1): fit_of(CHECKPOINTS[n].weight_bytes / 1e9) for n in LADDER}
    half = fit_of(CHECKPOINTS["Qwen3-32B"].weight_bytes / 2e9)
    made[H100, "Qwen3-32B", 2] = half
    made[H100, "Llama-3.1-70B", 4] = fit_of(CHECKPOINTS["Llama-3.1-70B"].weight_bytes / 4e9)
    return made


def test_interpolation_meets_the_fits_it_goes_through(fits: Fits) -> None:
    for name in ("Qwen3-1.7B", "Qwen3-8B"):
        made, own = interpolated(fits, H100, name), fits[H100, name, 1]
        assert made.prefill(2000) == pytest.approx(own.prefill(2000))
        assert made.decode_s == pytest.approx(own.decode_s)
    middle = interpolated(fits, H100, "Llama-2-13B")
    assert middle.decode_s == pytest.approx(4e-4 * 26.032)
    per_byte = fits[H100, "Qwen3-8B", 1].decode_context_s / 147_456
    assert middle.decode_context_s == pytest.approx(per_byte * 819_200)
    assert "interpolated" in middle.source


def test_a_near_size_is_scaled_by_its_bytes(fits: Fits) -> None:
    made = resized(fits, H100, "Qwen2.5-72B", "Llama-3.1-70B", 4)
    like = fits[H100, "Llama-3.1-70B", 4]
    assert made.decode_s / like.decode_s == pytest.approx(145.412 / 141.107)
    assert made.decode_context_s == like.decode_context_s  # the same KV a token


def test_two_gpus_change_a_fit_as_they_change_the_32b(fits: Fits) -> None:
    made = two_gpus(fits, H100, fits[H100, "Qwen3-8B", 1])
    assert made.decode_s == pytest.approx(fits[H100, "Qwen3-8B", 1].decode_s / 2)
    same = two_gpus(fits, H100, fits[H100, "Qwen3-32B", 1])
    assert difference_pct(same, fits[H100, "Qwen3-32B", 2]) == pytest.approx((0, 0))


@pytest.mark.parametrize(("name", "tp"), [("Qwen3-8B", 1), ("Llama-3.1-70B", 4)])
def test_porting_to_the_same_gpu_changes_no_time(fits: Fits, name: str, tp: int) -> None:
    fit = fits[H100, name, tp]
    assert difference_pct(ported(fit, name, tp, H100, H100), fit) == (0, 0)


def test_slower_links_cost_groups_alone(fits: Fits) -> None:
    alone, group = fits[H100, "Qwen3-8B", 1], fits[H100, "Llama-3.1-70B", 4]
    assert difference_pct(ported(alone, "Qwen3-8B", 1, H100, H800), alone) == (0, 0)
    made = ported(group, "Llama-3.1-70B", 4, H100, H800)
    moved = 2 * 80 * 8192 * 2 * 1.5  # two all-reduces a layer, bf16, 2 * 3/4 of it per GPU
    slower = moved / 200e9 - moved / 450e9
    assert made.prefill_token_s - group.prefill_token_s == pytest.approx(slower)
    assert made.step(8, 0) - group.step(8, 0) == pytest.approx(8 * slower)


def test_a_gpu_with_little_compute_gets_a_compute_leg(fits: Fits) -> None:
    """H20: faster memory than an H100, a seventh of its FLOP/s."""
    fit = fits[H100, "Qwen3-8B", 1]
    made = ported(fit, "Qwen3-8B", 1, H100, H20)
    assert made.step(1, 1) < fit.step(1, 1)
    assert made.table
    assert made.step(256, 256) > 256 * made.prefill_token_s
    assert made.prefill_token_s == pytest.approx(fit.prefill_token_s * 989 / 148)


def test_mixture_reads_more_experts_with_the_batch(fits: Fits) -> None:
    made = mixture(fits, H100, "Mixtral-8x7B", 2)
    assert len(made.table) == len(BATCHES)
    assert list(made.table) == sorted(made.table)
    # 32 layers at 0.5236 ms of the operator for 32 tokens; a measured dip before it is filled
    rest = made.table[5] - 32 * max(0.5709, 0.5236) / 1e3
    assert 0 < rest < 0.002
    assert "measured MoE operator" in made.source


def test_lifting_reaches_the_floor_and_no_further(fits: Fits) -> None:
    peaks, shape = GPUS[H100], CHECKPOINTS["Qwen3-8B"]
    fast = replace(fits[H100, "Qwen3-8B", 1], prefill_s=0.0, decode_s=1e-3, decode_batch_s=0.0)
    made = lifted(fast, H100, "Qwen3-8B", 1)
    prefills = [made.prefill(t) / prefill_floor_s(peaks, shape, 1, t) for t in PROMPTS]
    steps = [made.step(b, b) / step_floor_s(peaks, shape, 1, b, b) for b in BATCHES]
    assert min(*prefills, *steps) >= 1
    assert min(prefills) < 1.001
    assert "raised to the roofline" in made.source
    assert lifted(made, H100, "Qwen3-8B", 1) == made


def test_entry_states_a_table_or_a_slope() -> None:
    fit = fit_of(10)
    assert fit.entry()["decode_batch_s"] == 7e-6
    table = replace(fit, table=tuple(0.001 * b for b in BATCHES), source="derived: x").entry()
    assert "decode_batch_s" not in table
    assert table["decode_table_s"] == [[b, 0.001 * b] for b in BATCHES]
    assert (fit.entry()["kind"], table["kind"]) == ("fitted", "derived")
