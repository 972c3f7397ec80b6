"""Everything that needs a GPU to be shown, in one command: `python -m runtime.engine.gpu_check`.

One JSON line a check: logits in bfloat16 against transformers' own over a forced text, tokens
after weights were reloaded under captured graphs, memory held against memory counted, decode beside
transformers' continuous batching, and all figures of the bench. `--device cpu --model tiny` tries
the command itself.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
from collections.abc import Callable, Sequence
from typing import Any

import torch
from transformers import GenerationConfig

from runtime.core import EventKind
from runtime.engine.bench import bench_engine, draw_prompts, kv_bytes, measure, run_batch, timed
from runtime.engine.bench_models import plain_model, random_model
from runtime.engine.bench_spec import BenchSpec
from runtime.engine.blob import Blob
from runtime.engine.device import Device, open_device
from runtime.engine.engine import Engine
from runtime.engine.plan import Request

GENERATION: Any = GenerationConfig  # untyped there
TOLERANCE = 0.05  # of logits, as a share of their standard deviation
SINGLE_STEPS = 16  # forced tokens that are decoded one by one, the rest in two chunks


def forced_logits(engine: Engine, model: str, tokens: tuple[int, ...]) -> torch.Tensor:
    """Logits [SINGLE_STEPS, vocabulary] of a text's last tokens, through chunks, then steps."""
    engine.submit(Request(id="forced", model=model, prompt=tokens, max_tokens=1))
    served, live = engine.activate(model), engine.lives["forced"]
    engine.kv.allocate("forced", len(tokens), served.spec)
    live.has_kv = True
    rest = len(tokens) - SINGLE_STEPS + 1
    rows = []
    for count in (rest // 2, rest - rest // 2, *[1] * (SINGLE_STEPS - 1)):
        logits = engine.logits(served, [live], [count])
        with engine.device.computing():  # the stream that computes them
            rows.append(logits.float().cpu().clone())
        live.cached += count
    engine.release("forced")
    return torch.cat(rows[1:])


def check_logits(spec: BenchSpec, engine: Engine, plain: Any) -> dict[str, Any]:
    """How far logits are apart, and how many tokens differ although their top-two gap is larger
    than the tolerance (none may)."""
    vocab = engine.served("a").shell.vocab
    draw = torch.Generator().manual_seed(spec.seed)
    tokens = torch.randint(3, vocab, (max(spec.prompt_tokens, 64),), generator=draw)
    ours = forced_logits(engine, "a", tuple(tokens.tolist()))
    with torch.no_grad():
        ids = tokens[None].to(engine.device.torch)
        theirs = plain(ids).logits[0, -SINGLE_STEPS:].float().cpu()
    allowed = TOLERANCE * float(theirs.std())
    top = theirs.topk(2).values
    clear = top[:, 0] - top[:, 1] > 2 * allowed
    differ = ours.argmax(-1) != theirs.argmax(-1)
    return {
        "check": "logits",
        "apart_max": float((ours - theirs).abs().max()),
        "allowed": allowed,
        "clear_tokens": int(clear.sum()),
        "clear_tokens_that_differ": int((clear & differ).sum()),
        "ok": bool((ours - theirs).abs().max() <= allowed) and not bool((clear & differ).any()),
    }


def check_reload(spec: BenchSpec, engine: Engine) -> dict[str, Any]:
    """The same tokens from the same graphs after two other models used the slots."""
    prompts = draw_prompts(spec, engine.served("a").shell.vocab)[:1]

    def tokens() -> list[int]:
        events = run_batch(engine, "a", prompts, spec.tokens)
        kinds = (EventKind.PREFILLED, EventKind.STEPS)
        return [token for e in events if e.kind in kinds for token in e.tokens]

    before, graphs = tokens(), len(engine.graphs)
    for model in ("b", "c"):
        run_batch(engine, model, prompts, 2)
    after = tokens()
    return {
        "check": "graphs after a reload",
        "graphs": len(engine.graphs),
        "graphs_before": graphs,
        "graph_bytes": engine.graphs.used_bytes,
        "ok": before == after,
    }


def check_memory(engine: Engine, before_bytes: int) -> dict[str, Any]:
    """What the engine says it holds against what the device says, on CUDA without torch's cache of
    what steps worked on (given beside it)."""
    counted, device = engine.device_bytes(), engine.device
    with_steps = device.memory_used()
    if device.torch.type == "cuda":
        torch.cuda.empty_cache()
    held = device.memory_used() - before_bytes
    return {
        "check": "memory",
        **counted._asdict(),
        "held_by_device": held,
        "cached_for_steps": with_steps - device.memory_used(),
        "ok": abs(held - sum(counted)) <= 0.02 * held,
    }


def check_continuous(spec: BenchSpec, engine: Engine, plain: Any) -> dict[str, Any]:
    """Tokens a second of whole requests at the largest batch, ours and transformers' own."""
    prompts = draw_prompts(spec, engine.served("a").shell.vocab)
    count = len(prompts) * spec.tokens

    def theirs() -> None:
        config = GENERATION(
            max_new_tokens=spec.tokens, do_sample=False, eos_token_id=-1, pad_token_id=0
        )
        plain.generate_batch([list(prompt) for prompt in prompts], generation_config=config)
        engine.device.synchronize()

    def ours() -> None:
        run_batch(engine, "a", prompts, spec.tokens)

    rates = {
        name: [count / timed(work) for _ in range(spec.runs + 1)][1:]
        for name, work in (("ours", ours), ("theirs", theirs))
    }
    ours_s, theirs_s = (statistics.median(rates[name]) for name in ("ours", "theirs"))
    return {
        "check": "continuous batching",
        "batch": len(prompts),
        "tokens_s": round(ours_s, 1),
        "transformers_tokens_s": round(theirs_s, 1),
        "ok": ours_s > theirs_s,
    }


def checks(spec: BenchSpec, device: Device, blobs: dict[str, Blob]) -> list[dict[str, Any]]:
    """All but the bench, each on its own: one that raises is reported and the others run."""
    plain = plain_model(blobs["a"], device.torch)
    before_bytes = device.memory_used()
    rows = []
    with bench_engine(device, blobs, kv_bytes(spec, blobs["a"])) as engine:
        named: dict[str, Callable[[], dict[str, Any]]] = {
            "logits": lambda: check_logits(spec, engine, plain),
            "graphs after a reload": lambda: check_reload(spec, engine),
            "memory": lambda: check_memory(engine, before_bytes),
            "continuous batching": lambda: check_continuous(spec, engine, plain),
        }
        for name, check in named.items():
            try:
                row = check()
            except Exception as error:  # reported as this check's result
                row = {"check": name, "ok": False, "error": f"{type(error).__name__}: {error}"}
            print(json.dumps(row), flush=True)
            rows.append(row)
    return rows


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m runtime.engine.gpu_check", description=__doc__)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--model", default="7b")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--prompt-tokens", type=int, default=512)
    options = vars(parser.parse_args(arguments))
    spec = BenchSpec(**{**options, "batches": tuple(options["batches"])})
    torch.set_num_threads(os.cpu_count() or 1)
    device = open_device(spec.device)
    kind = getattr(torch, spec.dtype_name)
    blobs = {
        name: random_model(spec.model, kind, device.torch, seed) for seed, name in enumerate("abc")
    }
    rows = checks(spec, device, blobs)
    for blob in blobs.values():
        blob.close()
    device.close()
    print(json.dumps({"check": "bench", **measure(spec)}), flush=True)
    return 0 if all(row["ok"] for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
