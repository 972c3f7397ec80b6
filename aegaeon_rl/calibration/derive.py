"""The shipped profiles, made from published fits by the rules of `rules`.

`python -m aegaeon_rl.calibration.derive AIC_FITS.csv FOLDER` rewrites them and prints the table of
docs/profiles.md. Every fit is lifted to the roofline where it would beat it, but for the SOSP'25
cost model, which is kept as its authors state it.
"""

import json
import sys
from collections.abc import Iterator
from dataclasses import replace
from math import hypot, isnan, nan
from pathlib import Path

import numpy as np

from aegaeon_rl.calibration.fits import (
    AIC_SOURCE,
    H800_MEASURED,
    MOE_MS,
    SOSP25,
    SOSP25_SOURCE,
    Check,
    Fit,
    difference_pct,
    read_aic,
)
from aegaeon_rl.calibration.rules import (
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
        yield checkpoint, 1, replace(interpolated(published, gpu, checkpoint), checks=(check,))
    large = resized(published, gpu, "Qwen2.5-72B", "Llama-3.1-70B", 4)
    near = resized(published, gpu, "Llama-3.1-8B", "Qwen3-8B", 1)
    off = difference_pct(near, published[gpu, "Llama-3.1-8B", 1])
    check = Check("s", "near sizes, Qwen3-8B to Llama-3.1-8B", *off)
    yield "Qwen2.5-72B", 4, replace(large, checks=(*large.checks, check))
    for at, checkpoint, tp in MOE_MS:
        if at == gpu:
            fit = mixture(published, gpu, checkpoint, tp)
            known = published.get((gpu, checkpoint, tp))
            prefill = known.checks[0].prefill_pct if known else nan
            check = Check("m", "experts and rest, not measured together", prefill, nan)
            yield checkpoint, tp, replace(fit, checks=(check,))


def interpolation_check(published: Fits, gpu: str) -> Check:
    """The rule against two fits that it did not use; the worse of each."""
    llama = interpolated(published, gpu, "Llama-3.1-8B")
    rest = ("Qwen3-0.6B", "Qwen3-1.7B", "Qwen3-32B")
    without = interpolated(published, gpu, "Qwen3-8B", rest)
    one = difference_pct(llama, published[gpu, "Llama-3.1-8B", 1])
    two = difference_pct(without, published[gpu, "Qwen3-8B", 1])
    worse = (max(pair) for pair in zip(one, two, strict=True))
    return Check("i", "interpolation, on two 8B fits it did not use", *worse)


def h800_check(fit: Fit) -> Check:
    prefills, step_s = H800_MEASURED
    off = [100 * abs(fit.prefill(t) / seconds - 1) for t, seconds in prefills.items()]
    decode = 100 * abs(fit.step(1, 1) / step_s - 1)
    text = "the SOSP'25 artifact's H800 at 512, 1,024, 2,048 tokens and batch 1"
    return Check("h", text, float(np.mean(off)), decode)


def port_check(published: Fits, origin: str, gpu: str, checkpoint: str, tp: int) -> Check:
    """The rule of `ported` where the other GPU has a fit: this checkpoint's, or Qwen3-8B's."""
    if GPUS[gpu].flops_s == GPUS[origin].flops_s:
        return Check("g", f"peaks as of {origin}, links apart", 0.0, 0.0)
    target = PORT_CHECKS[origin]
    has_both = checkpoint not in LEFT_OUT and (target, checkpoint, tp) in published
    at = (checkpoint, tp) if has_both else ("Qwen3-8B", 1)
    made = ported(published[origin, *at], *at, origin, target)
    text = f"GPU rule, {origin} to {target} on {fit_key(*at)}"
    return Check("g", text, *difference_pct(made, published[target, *at]))


def profile_of(published: Fits, name: str) -> dict[str, Fit]:
    """Fits by key, in order of size, as far as the weights fit the GPU."""
    gpu, origin = PROFILES[name]
    made: list[tuple[str, int, Fit]] = []
    for checkpoint, tp, fit in fits_of(published, origin):
        if CHECKPOINTS[checkpoint].weight_bytes > FITTING * tp * GPUS[gpu].vram_bytes:
            continue
        if gpu != origin:
            check = port_check(published, origin, gpu, checkpoint, tp)
            fit = ported(fit, checkpoint, tp, origin, gpu)
            if (name, checkpoint) == ("h800", "Qwen2.5-7B"):
                check = h800_check(fit)
            fit = replace(fit, checks=(*fit.checks, check))
        if fit.source != AIC_SOURCE:
            fit = replace(fit, source=f"derived: {fit.source}")
        made.append((checkpoint, tp, lifted(fit, gpu, checkpoint, tp)))
    made.sort(key=lambda row: (row[1], CHECKPOINTS[row[0]].weight_bytes))
    return {fit_key(checkpoint, tp): fit for checkpoint, tp, fit in made}


def error_table(profiles: dict[str, dict[str, Fit]]) -> Iterator[str]:
    """Markdown, checkpoints by profiles: letters of the steps, root of their squared errors."""
    keys = dict.fromkeys(key for fits in profiles.values() for key in fits)
    yield "| | " + " | ".join(profiles) + " |"
    yield "|---" * (1 + len(profiles)) + "|"
    for key in keys:
        cells = [_cell(fits[key].checks) if key in fits else "" for fits in profiles.values()]
        yield f"| {key} | " + " | ".join(cells) + " |"


def _cell(checks: tuple[Check, ...]) -> str:
    letters = "".join(check.letter for check in checks)
    parts = [
        hypot(*(getattr(check, name) for check in checks)) for name in ("prefill_pct", "decode_pct")
    ]
    return f"{letters} " + " / ".join("?" if isnan(part) else f"{part:.0f}" for part in parts)


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
    made = {name: profile_of(published, name) for name in PROFILES}
    for name, (gpu, origin) in PROFILES.items():
        ports = "" if gpu == origin else f"; from {origin} by peak FLOP/s and bandwidth"
        source = f"{AIC_SOURCE} and rules on them{ports}"
        documents.append(document(name, gpu, source, made[name]))
    print("\n".join(error_table(made)))
    for content in documents:
        (folder / f"{content['name']}.json").write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
