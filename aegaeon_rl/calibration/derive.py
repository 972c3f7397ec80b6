"""Derived profiles: the public operator-table fits and the SOSP'25 fits, as profile JSON.

`python -m aegaeon_rl.calibration.derive AIC_FITS.csv FOLDER` rewrites the shipped files. Models
without a fit of their own are interpolated linearly in weight bytes between fitted models of the
same GPU (prefill and the per-step and per-request decode terms); the context term is the fitted
Qwen3-8B one scaled by KV bytes per token, since decode attention is bound by reading KV.
"""

import csv
import json
import sys
from pathlib import Path

import numpy as np

from runtime.catalog import CHECKPOINTS
from runtime.emulator.profile import SCHEMA

AIC_MODELS = {
    "Qwen/Qwen3-0.6B": "Qwen3-0.6B",
    "Qwen/Qwen3-1.7B": "Qwen3-1.7B",
    "Qwen/Qwen3-8B": "Qwen3-8B",
    "meta-llama/Meta-Llama-3.1-8B": "Llama-3.1-8B",
    "Qwen/Qwen3-32B": "Qwen3-32B",
}
LADDER = ("Qwen3-0.6B", "Qwen3-1.7B", "Qwen3-8B", "Qwen3-32B")
INTERPOLATED = ("Qwen2.5-7B", "Yi-1.5-9B", "Llama-2-13B")
AIC_SOURCE = "linear fits to public operator tables (Apache-2.0), aic_fits.csv"
SOSP25_SOURCE = "latency fits of the Aegaeon SOSP'25 artifact (Zenodo 10.5281/zenodo.16673199)"
SOSP25 = {  # checkpoint: prefill a, b, c; decode a, b (context), c (batch); seconds
    "sosp25/Qwen2.5-7B": (1.91604e-2, 1.28994e-5, -7.70194e-10, 8.31136e-3, 6.53334e-7, 6.74570e-5),
    "sosp25/Yi-1.5-9B": (2.43611e-2, 1.62060e-5, -7.43632e-10, 1.29702e-2, 7.20063e-7, 6.71406e-5),
    "sosp25/Llama-2-13B": (3.18922e-2, 2.44960e-5, -1.48840e-9, 1.10784e-2, 1.48545e-6, 1.02213e-4),
}
COLUMNS = (
    "prefill_s",
    "prefill_token_s",
    "prefill_token2_s",
    "decode_s",
    "decode_context_s",
    "decode_batch_s",
)
Entry = dict[str, float | str]


def sosp25_profile() -> dict[str, object]:
    models = {
        name: {**dict(zip(COLUMNS, fit, strict=True)), "source": SOSP25_SOURCE, "error_pct": ""}
        for name, fit in SOSP25.items()
    }
    return _document("h100_sosp25", "H100-SXM-80GB", SOSP25_SOURCE, models)


def aic_profile(rows: list[dict[str, str]], gpu_key: str, name: str, gpu: str) -> dict[str, object]:
    """One GPU of the operator tables, tensor parallelism 1, dense models."""
    fitted = {
        AIC_MODELS[row["model"]]: _fitted(row)
        for row in rows
        if row["gpu"] == gpu_key and row["tp"] == "1" and row["model"] in AIC_MODELS
    }
    models = dict(fitted)
    for checkpoint in INTERPOLATED:
        models[checkpoint] = _interpolated(fitted, checkpoint)
    return _document(name, gpu, AIC_SOURCE, models)


def _fitted(row: dict[str, str]) -> Entry:
    milliseconds = (
        row["prefill_a_ms"],
        row["prefill_b_ms_per_tok"],
        row["prefill_c_ms_per_tok2"],
        row["decode_a_ms"],
        row["decode_c_ms_per_ctx_tok"],
        row["decode_b_ms_per_seq"],
    )
    error = f"prefill {row['prefill_mape_pct']}, decode {row['decode_mape_pct']} (mean absolute)"
    entry: Entry = {c: _round(float(v) / 1e3) for c, v in zip(COLUMNS, milliseconds, strict=True)}
    return entry | {"source": AIC_SOURCE, "error_pct": error}


def _interpolated(fitted: dict[str, Entry], checkpoint: str) -> Entry:
    weights = [CHECKPOINTS[name].weight_bytes for name in LADDER]
    shape = CHECKPOINTS[checkpoint]
    entry: Entry = {}
    for column in COLUMNS:
        values = [float(fitted[name][column]) for name in LADDER]
        entry[column] = _round(float(np.interp(shape.weight_bytes, weights, values)))
    per_byte = float(fitted["Qwen3-8B"]["decode_context_s"])
    per_byte /= CHECKPOINTS["Qwen3-8B"].kv_token_bytes
    entry["decode_context_s"] = _round(per_byte * shape.kv_token_bytes)
    source = f"derived: {AIC_SOURCE}, interpolated in weight bytes; context term by KV bytes"
    return entry | {"source": source, "error_pct": "not measured"}


def _round(value: float) -> float:
    return float(f"{value:.6g}")


def _document(name: str, gpu: str, source: str, models: object) -> dict[str, object]:
    return {
        "schema": SCHEMA,
        "name": name,
        "gpu": gpu,
        "kind": "derived",
        "source": source,
        "models": models,
    }


def main(arguments: list[str]) -> None:
    with open(arguments[0], newline="") as file:
        rows = list(csv.DictReader(file))
    folder = Path(arguments[1])
    for document in (
        sosp25_profile(),
        aic_profile(rows, "h100_sxm", "h100", "H100-SXM-80GB"),
        aic_profile(rows, "h200_sxm", "h200", "H200-SXM-141GB"),
        aic_profile(rows, "a100_sxm", "a100", "A100-SXM-80GB"),
    ):
        (folder / f"{document['name']}.json").write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
