"""Rules that make a fit where none is published: other sizes, other TP, other GPUs, MoE.

Each returns a Fit whose `source` states the rule. What the rules are worth is measured by applying
them where a fit is published (`difference_pct`); docs/profiles.md lists it.
"""

from dataclasses import replace

from aegaeon_rl.calibration.fits import (
    BATCHES,
    MOE_MS,
    MOE_PREFILL_MS,
    MOE_SOURCE,
    PROMPTS,
    Fit,
    blended,
    scaled,
)
from runtime.catalog import CHECKPOINTS, GPUS
from runtime.emulator.profile import COEFFICIENTS
from runtime.emulator.roofline import prefill_floor_s, read_bytes, step_floor_s, token_flops

LADDER = ("Qwen3-0.6B", "Qwen3-1.7B", "Qwen3-8B", "Qwen3-32B")
MOST_CONTEXT = 131_072
MARGIN = 1.0001  # a lifted coefficient stays above the floor after rounding
Fits = dict[tuple[str, str, int], Fit]


def interpolated(fits: Fits, gpu: str, checkpoint: str, ladder: tuple[str, ...] = LADDER) -> Fit:
    """Another dense size at TP=1: linear in weight bytes; the context term by KV bytes a token."""
    shape = CHECKPOINTS[checkpoint]
    fit = _at_bytes(fits, gpu, shape.weight_bytes, ladder)
    source = f"{fit.source}, interpolated in weight bytes; context term by KV bytes"
    per_byte = fits[gpu, "Qwen3-8B", 1].decode_context_s / CHECKPOINTS["Qwen3-8B"].kv_token_bytes
    return replace(fit, decode_context_s=per_byte * shape.kv_token_bytes, source=source)


def _at_bytes(fits: Fits, gpu: str, weight_bytes: float, ladder: tuple[str, ...]) -> Fit:
    sizes = [CHECKPOINTS[name].weight_bytes for name in ladder]
    k = next((k for k in range(1, len(sizes)) if sizes[k] >= weight_bytes), len(sizes) - 1)
    share = (weight_bytes - sizes[k - 1]) / (sizes[k] - sizes[k - 1])
    return blended(fits[gpu, ladder[k - 1], 1], fits[gpu, ladder[k], 1], share)


def resized(fits: Fits, gpu: str, checkpoint: str, like: str, tp: int) -> Fit:
    """A size near `like`, which is fitted at this `tp`: by weight bytes; context by KV bytes."""
    shape, near, fit = CHECKPOINTS[checkpoint], CHECKPOINTS[like], fits[gpu, like, tp]
    ratio = shape.weight_bytes / near.weight_bytes
    names = ("prefill_s", "prefill_token_s", "decode_s", "decode_batch_s")
    factors = dict.fromkeys(names, ratio)
    factors["decode_context_s"] = shape.kv_token_bytes / near.kv_token_bytes
    source = f"{fit.source}, of {like} by weight bytes; context term by KV bytes"
    return replace(scaled(fit, factors), source=source)


def two_gpus(fits: Fits, gpu: str, fit: Fit) -> Fit:
    """TP=2 from TP=1: each coefficient as it changes for Qwen3-32B."""
    one, two = fits[gpu, "Qwen3-32B", 1], fits[gpu, "Qwen3-32B", 2]
    factors = {name: getattr(two, name) / getattr(one, name) for name in COEFFICIENTS}
    return replace(scaled(fit, factors), source=f"{fit.source}, TP=2 as Qwen3-32B")


def mixture(fits: Fits, gpu: str, checkpoint: str, tp: int) -> Fit:
    """An MoE: its experts' measured operator, and the rest as a dense model of as many bytes.

    The decode table holds both; prefill is the published fit where there is one, else the
    operator's line through 1,024 and 4,096 tokens beside the dense rest.
    """
    shape, key = CHECKPOINTS[checkpoint], (gpu, checkpoint, tp)
    rest_bytes = shape.weight_bytes - shape.experts * shape.expert_bytes
    rest = _at_bytes(fits, gpu, rest_bytes, LADDER)
    rest = replace(rest, decode_s=_step_of(fits, gpu, shape.layers, rest_bytes - shape.head_bytes))
    per_byte = fits[gpu, "Qwen3-8B", 1].decode_context_s / CHECKPOINTS["Qwen3-8B"].kv_token_bytes
    rest = replace(rest, decode_context_s=per_byte * shape.kv_token_bytes)
    if tp == 2:
        rest = two_gpus(fits, gpu, rest)
    steps, most = [], 0.0
    for batch, milliseconds in zip(BATCHES, MOE_MS[key], strict=True):
        most = max(most, shape.layers * milliseconds / 1e3)  # a few measured times dip
        steps.append(most + rest.decode_batch_s * batch)
    source = f"{MOE_SOURCE}, and the rest as a dense model of {rest_bytes / 1e9:.1f} GB"
    fit = replace(rest, table=tuple(steps), decode_batch_s=0.0)
    if key in fits:
        names = ("prefill_s", "prefill_token_s", "prefill_token2_s")
        fit = replace(fit, **{name: getattr(fits[key], name) for name in names})
        return replace(fit, source=f"{source}; prefill: {fits[key].source}")
    low, high = (shape.layers * milliseconds / 1e3 for milliseconds in MOE_PREFILL_MS[key])
    token_s = (high - low) / (4096 - 1024)
    return replace(
        fit,
        prefill_s=rest.prefill_s + max(0.0, low - 1024 * token_s),
        prefill_token_s=rest.prefill_token_s + token_s,
        source=source,
    )


def _step_of(fits: Fits, gpu: str, layers: int, read: float) -> float:
    """A step by bytes read (the slope from Qwen3-8B to 32B) and layers (the rest of 1.7B)."""
    small, middle, large = (
        (read_bytes(CHECKPOINTS[name], 1), fits[gpu, name, 1].decode_s) for name in LADDER[1:]
    )
    byte_s = (large[1] - middle[1]) / (large[0] - middle[0])
    layer_s = (small[1] - small[0] * byte_s) / CHECKPOINTS[LADDER[1]].layers
    return layers * layer_s + read * byte_s


def ported(fit: Fit, checkpoint: str, tp: int, origin: str, target: str) -> Fit:
    """Another GPU: what is bound by compute scales with peak FLOP/s, the rest with bandwidth.

    A decode step is the longer of its memory leg, scaled with bandwidth, and its compute leg, as
    many prefill tokens as requests. TP adds what the all-reduces take longer on slower links.
    """
    old, new, shape = GPUS[origin], GPUS[target], CHECKPOINTS[checkpoint]
    memory, compute = old.hbm_bytes_s / new.hbm_bytes_s, old.flops_s / new.flops_s
    reduced = 2 * shape.layers * shape.hidden * 2 * 2 * (tp - 1) / tp  # bytes a token and GPU
    slower = max(0.0, reduced / new.link_bytes_s - reduced / old.link_bytes_s)
    factors = dict.fromkeys(("prefill_s", "decode_s", "decode_context_s"), memory)
    factors |= dict.fromkeys(("prefill_token_s", "prefill_token2_s"), compute)
    token_s = fit.prefill_token_s * compute
    head = 1 + shape.head_bytes / token_flops(shape)
    legs = [
        max(memory * fit.batch_part(b), b * token_s * head - memory * fit.decode_s) + b * slower
        for b in BATCHES
    ]
    source = f"{fit.source}; from {origin} by peak FLOP/s and bandwidth"
    made = scaled(fit, factors)
    made = replace(made, prefill_token_s=token_s + slower, source=source)
    slope = memory * fit.decode_batch_s + slower
    is_linear = not fit.table and all(
        abs(leg - slope * b) <= 1e-9 for leg, b in zip(legs, BATCHES, strict=True)
    )
    if is_linear:
        return replace(made, decode_batch_s=slope)
    return replace(made, table=tuple(legs), decode_batch_s=0.0)


def lifted(fit: Fit, gpu: str, checkpoint: str, tp: int) -> Fit:
    """The fit with as much more per call and per step as the roofline asks anywhere on the grid."""
    peaks, shape = GPUS[gpu], CHECKPOINTS[checkpoint]
    prefill = max(prefill_floor_s(peaks, shape, tp, t) * MARGIN - fit.prefill(t) for t in PROMPTS)
    step = max(
        step_floor_s(peaks, shape, tp, b, c) * MARGIN - fit.step(b, c)
        for b in BATCHES
        for c in {b, min(b * 16, MOST_CONTEXT), min(b * 512, MOST_CONTEXT), MOST_CONTEXT}
    )
    if prefill <= 0 and step <= 0:
        return fit
    prefill, step = max(0.0, prefill), max(0.0, step)
    raised = f"raised to the roofline by {1e3 * prefill:.3g} ms a prefill, {1e3 * step:.3g} a step"
    return replace(
        fit,
        prefill_s=fit.prefill_s + prefill,
        decode_s=fit.decode_s + step,
        source=f"{fit.source}; {raised}",
    )
