"""The shipped profiles, made from published fits by the rules of `rules`.

`python -m aegaeon_rl.calibration.derive AIC_FITS.csv FOLDER` rewrites them and prints the table of
docs/profiles.md. Every fit is lifted to the roofline where it would beat it, but for the SOSP'25
cost model, which is kept as its authors state it.
"""

import json
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

from aegaeon_rl.calibration.fits import (
    AIC_SOURCE,
    BATCHES,
    H800_MEASURED,
    MOE_MS,
    SOSP25,
    SOSP25_SOURCE,
    Fit,
    difference_pct,
    read_aic,
)
from aegaeon_rl.calibration.rules import (
    MOST_CONTEXT,
    Fits,
    interpolated,
    lifted,
    mixture,
    ported,
    resized,
)
from runtime.catalog import CHECKPOINTS, GPUS
from runtime.emulator.profile import SCHEMA, fit_key

PROFILES = {  # name: (GPU, the GPU whose fits it is made from)
    "a10": ("A10-24GB", "L40S-48GB"),
    "a100": ("A100-SXM-80GB", "A100-SXM-80GB"),
    "h100": ("H100-SXM-80GB", "H100-SXM-80GB"),
    "h20": ("H20-96GB", "H100-SXM-80GB"),
    "h200": ("H200-SXM-141GB", "H200-SXM-141GB"),
    "h800": ("H800-SXM-80GB", "H100-SXM-80GB"),
}
PORT_CHECKS = {"H100-SXM-80GB": "A100-SXM-80GB", "L40S-48GB": "A100-SXM-80GB"}
INTERPOLATED = (
    *("Qwen1.5-1.8B", "Qwen3-4B", "Qwen2.5-7B", "Yi-1.5-9B", "Llama-2-13B", "Qwen3-14B"),
)
LEFT_OUT = ("Qwen3-30B-A3B",)  # of the published fits: their linear decode beats the roofline
FITTING = 0.95  # of an instance's VRAM that weights may take


def fits_of(published: Fits, gpu: str) -> Iterator[tuple[str, int, Fit]]:
    """All fits on a GPU that has published ones, before any lifting."""
    for (at, checkpoint, tp), fit in published.items():
        if at == gpu and checkpoint not in LEFT_OUT:
            yield checkpoint, tp, fit
    check = interpolation_check(published, gpu)
    for checkpoint in INTERPOLATED:
        yield checkpoint, 1, replace(interpolated(published, gpu, checkpoint), error=check)
    large = resized(published, gpu, "Qwen2.5-72B", "Llama-3.1-70B", 4)
    yield "Qwen2.5-72B", 4, replace(large, error=f"of Llama-3.1-70B: {large.error}")
    for at, checkpoint, tp in MOE_MS:
        if at == gpu:
            fit = mixture(published, gpu, checkpoint, tp)
            yield checkpoint, tp, replace(fit, error=mixture_check(published, gpu, checkpoint, fit))


def interpolation_check(published: Fits, gpu: str) -> str:
    """The rule against two fits that it did not use."""
    llama = interpolated(published, gpu, "Llama-3.1-8B")
    without = interpolated(
        published, gpu, "Qwen3-8B", ("Qwen3-0.6B", "Qwen3-1.7B", "Qwen3-32B")
    )  # fmt: skip
    one = difference_pct(llama, published[gpu, "Llama-3.1-8B", 1])
    two = difference_pct(without, published[gpu, "Qwen3-8B", 1])
    return (
        f"interpolation, on Llama-3.1-8B: prefill {one[0]:.1f}, decode {one[1]:.1f}; on Qwen3-8B"
        f" left out: prefill {two[0]:.1f}, decode {two[1]:.1f} (mean absolute)"
    )


def mixture_check(published: Fits, gpu: str, checkpoint: str, fit: Fit) -> str:
    """How far the published linear decode is from the table; the fit states its own error."""
    linear = published.get((gpu, checkpoint, 1))
    if linear is None:
        return "not measured end to end"
    grid = [(b, b * c) for b in BATCHES for c in (512, 2048, 8192) if b * c <= MOST_CONTEXT]
    off = [100 * abs(linear.step(*at) / fit.step(*at) - 1) for at in grid]
    return (
        f"not measured end to end; the published linear fit is {np.mean(off):.1f} (max"
        f" {np.max(off):.1f}) off this table and states as its own: {linear.error}"
    )


def h800_check(fit: Fit) -> str:
    prefills, step_s = H800_MEASURED
    off = [f"{100 * (fit.prefill(t) / seconds - 1):+.0f}" for t, seconds in prefills.items()]
    return (
        f"against the SOSP'25 artifact's H800: prefill {', '.join(off)} at 512, 1,024 and 2,048"
        f" tokens, decode {100 * (fit.step(1, 1) / step_s - 1):+.0f} at batch 1"
    )


def port_check(published: Fits, origin: str, gpu: str, checkpoint: str, tp: int) -> str:
    """The rule of `ported` where the other GPU has a fit: this checkpoint's, or Qwen3-8B's."""
    if GPUS[gpu].flops_s == GPUS[origin].flops_s:
        return f"as on {origin}: the same peaks, links apart"
    target = PORT_CHECKS[origin]
    has_both = checkpoint not in LEFT_OUT and (target, checkpoint, tp) in published
    at = (checkpoint, tp) if has_both else ("Qwen3-8B", 1)
    made = ported(published[origin, *at], *at, origin, target)
    prefill, decode = difference_pct(made, published[target, *at])
    return (
        f"GPU rule, {origin} to {target} on {fit_key(*at)}: prefill {prefill:.1f}, decode"
        f" {decode:.1f} (mean absolute)"
    )


def profile_of(published: Fits, name: str) -> dict[str, Fit]:
    """Fits by key, in order of size, as far as the weights fit the GPU."""
    gpu, origin = PROFILES[name]
    made: list[tuple[str, int, Fit]] = []
    for checkpoint, tp, fit in fits_of(published, origin):
        if CHECKPOINTS[checkpoint].weight_bytes > FITTING * tp * GPUS[gpu].vram_bytes:
            continue
        if gpu != origin:
            check = port_check(published, origin, gpu, checkpoint, tp)
            made_here = ported(fit, checkpoint, tp, origin, gpu)
            if (name, checkpoint) == ("h800", "Qwen2.5-7B"):
                check = h800_check(made_here)
            fit = replace(made_here, error=f"{check}; before it: {fit.error}")
        if fit.source != AIC_SOURCE:
            fit = replace(fit, source=f"derived: {fit.source}")
        made.append((checkpoint, tp, lifted(fit, gpu, checkpoint, tp)))
    made.sort(key=lambda row: (row[1], CHECKPOINTS[row[0]].weight_bytes))
    return {fit_key(checkpoint, tp): fit for checkpoint, tp, fit in made}


def document(name: str, gpu: str, source: str, fits: dict[str, Fit]) -> dict[str, object]:
    return {
        "schema": SCHEMA,
        "name": name,
        "gpu": gpu,
        "kind": "derived",
        "source": source,
        "models": {key: fit.entry() for key, fit in fits.items()},
    }


def main(arguments: list[str]) -> None:
    published, folder = read_aic(Path(arguments[0])), Path(arguments[1])
    documents = [document("h100_sosp25", "H100-SXM-80GB", SOSP25_SOURCE, SOSP25)]
    for name, (gpu, origin) in PROFILES.items():
        fits = profile_of(published, name)
        ports = "" if gpu == origin else f"; from {origin} by peak FLOP/s and bandwidth"
        documents.append(document(name, gpu, f"{AIC_SOURCE} and rules on them{ports}", fits))
        for key, fit in fits.items():
            form = "table" if fit.table else "linear"
            print(f"| {name} | {key} | {fit.entry()['kind']}, {form} | {fit.error} |")
    for content in documents:
        (folder / f"{content['name']}.json").write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
