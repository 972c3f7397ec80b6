"""Step times of one checkpoint on one kind of instance, and the published ones we start from.

T prompt tokens, B requests in a step, C their summed context tokens. Seconds.
"""

import csv
from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import isnan
from pathlib import Path
from typing import NamedTuple

import numpy as np

from runtime.emulator.profile import COEFFICIENTS

BATCHES = (1, 2, 4, 8, 16, 32, 64, 128, 256)  # of a decode table
PROMPTS = tuple(2**k for k in range(4, 16))  # 16 .. 32,768: where fits are compared
CONTEXTS = (1, 16, 128, 512, 2048, 8192)  # tokens a request


class Check(NamedTuple):
    """What one step of a fit's making is worth: mean absolute errors in percent; NaN: not known."""

    letter: str
    text: str
    prefill_pct: float
    decode_pct: float

    def __str__(self) -> str:
        shown = [
            "not known" if isnan(pct) else f"{pct:.1f}"
            for pct in (self.prefill_pct, self.decode_pct)
        ]
        return f"{self.text}: prefill {shown[0]}, decode {shown[1]}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Fit:
    """A decode step takes decode_s + decode_context_s * C + either decode_batch_s * B or `table`,
    seconds at BATCHES, linear in between. `source` and `checks` become the entry's texts."""

    prefill_s: float
    prefill_token_s: float
    prefill_token2_s: float
    decode_s: float
    decode_context_s: float
    decode_batch_s: float
    table: tuple[float, ...] = ()
    source: str
    checks: tuple[Check, ...] = ()

    def prefill(self, tokens: float) -> float:
        return self.prefill_s + (self.prefill_token_s + self.prefill_token2_s * tokens) * tokens

    def batch_part(self, batch: float) -> float:
        if self.table:
            return float(np.interp(batch, BATCHES, self.table))
        return self.decode_batch_s * batch

    def step(self, batch: float, context: float) -> float:
        return self.decode_s + self.decode_context_s * context + self.batch_part(batch)

    def entry(self) -> dict[str, object]:
        """As a profile states it, rounded to six digits."""
        names = ("prefill_s", "prefill_token_s", "prefill_token2_s", "decode_s", "decode_context_s")
        entry: dict[str, object] = {name: _round(getattr(self, name)) for name in names}
        if self.table:
            pairs = zip(BATCHES, self.table, strict=True)
            entry["decode_table_s"] = [[batch, _round(seconds)] for batch, seconds in pairs]
        else:
            entry["decode_batch_s"] = _round(self.decode_batch_s)
        kind = "derived" if self.source.startswith("derived") else "fitted"
        error = "; ".join(map(str, self.checks)) or "not stated by its authors"
        return entry | {"kind": kind, "source": self.source, "error_pct": error}


def _round(value: float) -> float:
    return float(f"{value:.6g}")


def linear(seconds: Sequence[float], source: str, *checks: Check) -> Fit:
    """A fit without a table, from its coefficients in the order of COEFFICIENTS."""
    prefill_s, token_s, token2_s, decode_s, context_s, batch_s = seconds
    return Fit(
        prefill_s=prefill_s,
        prefill_token_s=token_s,
        prefill_token2_s=token2_s,
        decode_s=decode_s,
        decode_context_s=context_s,
        decode_batch_s=batch_s,
        source=source,
        checks=checks,
    )


def difference_pct(fit: Fit, truth: Fit) -> tuple[float, float]:
    """Mean absolute difference of (prefills, decode steps) over the grids, in percent."""
    prefill = [abs(fit.prefill(t) / truth.prefill(t) - 1) for t in PROMPTS]
    grid = [(b, b * c) for b in BATCHES for c in CONTEXTS if b * c <= 131_072]
    decode = [abs(fit.step(*at) / truth.step(*at) - 1) for at in grid]
    return 100 * float(np.mean(prefill)), 100 * float(np.mean(decode))


AIC_SOURCE = "linear fit to public operator tables (aiconfigurator, vLLM, Apache-2.0)"
AIC_MODELS = {
    "Qwen/Qwen3-0.6B": "Qwen3-0.6B",
    "Qwen/Qwen3-1.7B": "Qwen3-1.7B",
    "Qwen/Qwen3-8B": "Qwen3-8B",
    "meta-llama/Meta-Llama-3.1-8B": "Llama-3.1-8B",
    "Qwen/Qwen3-32B": "Qwen3-32B",
    "Qwen/Qwen3-30B-A3B": "Qwen3-30B-A3B",
    "meta-llama/Meta-Llama-3.1-70B": "Llama-3.1-70B",
}
AIC_GPUS = {
    "a100_sxm": "A100-SXM-80GB",
    "h100_sxm": "H100-SXM-80GB",
    "h200_sxm": "H200-SXM-141GB",
    "l40s": "L40S-48GB",
}
AIC_COLUMNS = (  # of aic_fits.csv, in milliseconds, in the order of COEFFICIENTS
    *("prefill_a_ms", "prefill_b_ms_per_tok", "prefill_c_ms_per_tok2"),
    *("decode_a_ms", "decode_c_ms_per_ctx_tok", "decode_b_ms_per_seq"),
)


def read_aic(path: Path) -> dict[tuple[str, str, int], Fit]:
    """Fits of aic_fits.csv by (GPU, checkpoint, tp), as far as both are in the catalog."""
    with path.open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["gpu"] in AIC_GPUS]
    return {
        (AIC_GPUS[row["gpu"]], AIC_MODELS[row["model"]], int(row["tp"])): linear(
            [float(row[column]) / 1e3 for column in AIC_COLUMNS],
            AIC_SOURCE,
            Check(
                "f",
                f"fit (max {row['prefill_max_ape_pct']} and {row['decode_max_ape_pct']})",
                float(row["prefill_mape_pct"]),
                float(row["decode_mape_pct"]),
            ),
        )
        for row in rows
    }


MOE_SOURCE = (
    "measured MoE operator (aiconfigurator-core 0.12.0, moe_perf, bf16, power_law_1.01, vLLM"
    " 0.24.0; A100: 0.14.0; Apache-2.0)"
)
MOE_MS = {  # (GPU, checkpoint, tp): milliseconds of one layer's experts at BATCHES tokens
    ("H100-SXM-80GB", "Qwen3-30B-A3B", 1): (
        *(0.0488, 0.0748, 0.1233, 0.1818, 0.2302, 0.3643, 0.4439, 0.4179, 0.4516),
    ),
    ("H200-SXM-141GB", "Qwen3-30B-A3B", 1): (
        *(0.0412, 0.0602, 0.1005, 0.1500, 0.1874, 0.2694, 0.2916, 0.3144, 0.3579),
    ),
    ("A100-SXM-80GB", "Qwen3-30B-A3B", 1): (
        *(0.0617, 0.1076, 0.2026, 0.2834, 0.3782, 0.6039, 0.6633, 0.7297, 1.0489),
    ),
    ("H100-SXM-80GB", "Mixtral-8x7B", 2): (
        *(0.1417, 0.1968, 0.2457, 0.5709, 0.4894, 0.5236, 0.5609, 0.5644, 0.5718),
    ),
    ("H200-SXM-141GB", "Mixtral-8x7B", 1): (
        *(0.1890, 0.3108, 0.4206, 0.6578, 0.6626, 0.6883, 0.7519, 0.7896, 0.9524),
    ),
    ("H200-SXM-141GB", "Mixtral-8x7B", 2): (
        *(0.1049, 0.1775, 0.2115, 0.3492, 0.3459, 0.3930, 0.4185, 0.4100, 0.4859),
    ),
    ("A100-SXM-80GB", "Mixtral-8x7B", 2): (
        *(0.2539, 0.3328, 0.4451, 0.7718, 0.7842, 0.8944, 0.9180, 0.9145, 1.0376),
    ),
}
MOE_PREFILL_MS = {  # the same at 1,024 and 4,096 tokens
    ("H100-SXM-80GB", "Mixtral-8x7B", 2): (0.7975, 2.3247),
    ("H200-SXM-141GB", "Mixtral-8x7B", 1): (1.3975, 4.5700),
    ("H200-SXM-141GB", "Mixtral-8x7B", 2): (0.7370, 2.3682),
    ("A100-SXM-80GB", "Mixtral-8x7B", 2): (2.4638, 8.5787),
}

H800_MEASURED = (  # of the SOSP'25 artifact, Qwen2.5-7B: seconds of prefills by prompt tokens
    {512: 0.0147, 1024: 0.0256, 2048: 0.0496},
    0.0086,  # a decode step at batch 1
)
SOSP25_SOURCE = "latency fits of the Aegaeon SOSP'25 artifact (Zenodo 10.5281/zenodo.16673199)"


def as_simulated(coefficients: Sequence[float]) -> Fit:
    """The artifact's fit as its simulator uses it: every decode step is asked for at batch -1."""
    *prefill, decode_s, context_s, batch_s = coefficients
    source = f"{SOSP25_SOURCE}; decode at batch -1"
    return linear((*prefill, decode_s - batch_s, context_s, 0.0), source)


SOSP25 = {
    "sosp25/Qwen2.5-7B": as_simulated(
        (1.91604e-2, 1.28994e-5, -7.70194e-10, 8.31136e-3, 6.53334e-7, 6.74570e-5)
    ),
    "sosp25/Yi-1.5-9B": as_simulated(
        (2.43611e-2, 1.62060e-5, -7.43632e-10, 1.29702e-2, 7.20063e-7, 6.71406e-5)
    ),
    "sosp25/Llama-2-13B": as_simulated(
        (3.18922e-2, 2.44960e-5, -1.48840e-9, 1.10784e-2, 1.48545e-6, 1.02213e-4)
    ),
}


def blended(low: Fit, high: Fit, share: float) -> Fit:
    """low + share * (high - low), coefficient by coefficient; the source is low's."""

    def between(name: str) -> float:
        return float(getattr(low, name) + share * (getattr(high, name) - getattr(low, name)))

    return linear([between(name) for name in COEFFICIENTS], low.source)


def scaled(fit: Fit, factors: dict[str, float]) -> Fit:
    """Coefficients times `factors`; those not named stay, as does a table."""
    return replace(fit, **{name: getattr(fit, name) * by for name, by in factors.items()})
