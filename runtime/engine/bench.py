"""How fast the engine is, beside what bounds it: a plain copy, memory bandwidth, `generate`.

Alone, without the project's command line: `python -m runtime.engine.bench --device cuda
--model 7b`. Prints one JSON object. Random weights: speed does not depend on their values.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from runtime.core import EventKind
from runtime.engine.bench_models import plain_model, random_model
from runtime.engine.bench_spec import BenchSpec
from runtime.engine.bench_switch import measure_switch
from runtime.engine.blob import Blob
from runtime.engine.device import Device, open_device
from runtime.engine.engine import Engine
from runtime.engine.kv import KvSpec
from runtime.engine.opening import Shelf, opened_engine
from runtime.engine.plan import Plan, Request, TurnEvent
from runtime.errors import UserError

SWITCH_BYTES = 256 << 20  # at least, of the plain copy that switches are held against


@contextmanager
def bench_engine(device: Device, blobs: dict[str, Blob], kv_bytes: int) -> Iterator[Engine]:
    """An engine of two slots over these blobs, pinned."""
    for blob in blobs.values():
        device.register(blob.host)
    indexes = {name: blob.index for name, blob in blobs.items()}
    with opened_engine(device, Shelf(blobs), indexes, kv_bytes=kv_bytes) as engine:
        yield engine
    for blob in blobs.values():
        device.unregister(blob.host)


def measure(spec: BenchSpec) -> dict[str, Any]:
    """All figures of one model on one device."""
    torch.set_num_threads(spec.threads or os.cpu_count() or 1)
    device = open_device(spec.device)
    blobs = {
        name: random_model(spec.model, getattr(torch, spec.dtype_name), device.torch, spec.seed + i)
        for i, name in enumerate("abc")
    }
    check_context(spec, blobs["a"].index.config.get("max_position_embeddings", 2048))
    prompts = draw_prompts(spec, blobs["a"].index.config["vocab_size"])
    row: dict[str, Any] = facts(spec, device, blobs["a"])
    copied = max(blobs["a"].nbytes, SWITCH_BYTES)
    row |= measure_switch(device, copied, 3 * spec.runs).row()
    with bench_engine(device, blobs, kv_bytes(spec, blobs["a"])) as engine:
        row |= measure_speed(spec, engine, plain_model(blobs["a"], device.torch), prompts)
        row |= measure_switches(spec, engine)
        row |= measure_kv(spec, engine)
    row |= measure_floor(device, blobs["a"], row[f"decode_tokens_s_b{spec.batches[0]}"])
    for blob in blobs.values():
        blob.close()
    device.close()
    return row


def facts(spec: BenchSpec, device: Device, blob: Blob) -> dict[str, Any]:
    cuda = device.torch.type == "cuda"
    return {
        "machine": torch.cuda.get_device_name(device.torch) if cuda else platform.processor(),
        "torch": torch.__version__,
        "model": spec.model,
        "dtype": spec.dtype_name,
        "threads": torch.get_num_threads(),
        "weight_bytes": blob.nbytes,
    }


def check_context(spec: BenchSpec, context: int) -> None:
    if spec.prompt_tokens + spec.tokens > context:
        raise UserError(
            f"engine.prompt_tokens={spec.prompt_tokens} and engine.tokens={spec.tokens}: expected "
            f"together at most {context}, the context of {spec.model}"
        )


def draw_prompts(spec: BenchSpec, vocab: int) -> list[tuple[int, ...]]:
    draw = torch.Generator().manual_seed(spec.seed)
    shape = (max(spec.batches), spec.prompt_tokens)
    return [tuple(row) for row in torch.randint(3, vocab, shape, generator=draw).tolist()]


def kv_bytes(spec: BenchSpec, blob: Blob) -> int:
    """Room for the largest batch twice, and at least 64 MB."""
    config = blob.index.config
    heads = config["num_attention_heads"]
    kv = KvSpec(
        config["num_hidden_layers"],
        config["num_key_value_heads"],
        config["hidden_size"] // heads,
        blob.index.dtype,
    )
    blocks = kv.blocks(spec.prompt_tokens + spec.tokens + 1)
    return max(2 * max(spec.batches) * blocks * kv.block_bytes, 64 << 20)


def run_batch(
    engine: Engine, model: str, prompts: Sequence[tuple[int, ...]], tokens: int
) -> list[TurnEvent]:
    """One turn of these prompts to their last token."""
    names = tuple(range(len(prompts)))
    for name, prompt in zip(names, prompts, strict=True):
        engine.submit(
            Request(id=name, model=model, prompt=prompt, max_tokens=tokens, ignore_eos=True)
        )
    budget = sum(map(len, prompts))
    return list(engine.run_turn(Plan(model=model, prefill=names, prefill_budget_tokens=budget)))


def measure_speed(
    spec: BenchSpec, engine: Engine, plain: Any, prompts: list[tuple[int, ...]]
) -> dict[str, float]:
    """Tokens a second of prefill and decode by batch size, transformers' `generate` on the same
    weights in turn with ours; medians over runs."""
    row: dict[str, float] = {}
    for batch in spec.batches:
        prefill, decode, theirs = [], [], []
        for run in range(-1, spec.runs):  # the first warms up
            events = run_batch(engine, "a", prompts[:batch], spec.tokens)
            steps = [e.seconds for e in events if e.kind is EventKind.STEPS]
            generate_s = generate_step(plain, engine.device, prompts[:batch], spec.tokens)
            if run >= 0:
                prefill += [e.seconds for e in events if e.kind is EventKind.PREFILLED]
                decode.append(sum(steps) / len(steps))
                theirs.append(generate_s)
        ratios = [slow / fast for slow, fast in zip(theirs, decode, strict=True)]
        tokens = batch * spec.prompt_tokens
        row |= {
            f"prefill_tokens_s_b{batch}": round(tokens / statistics.median(prefill)),
            f"decode_tokens_s_b{batch}": round(batch / statistics.median(decode), 2),
            f"generate_tokens_s_b{batch}": round(batch / statistics.median(theirs), 2),
            f"decode_over_generate_b{batch}": round(statistics.median(ratios), 3),
        }
    alone = row[f"decode_tokens_s_b{spec.batches[0]}"] / spec.batches[0]
    together = {b: row[f"decode_tokens_s_b{b}"] / alone for b in spec.batches[1:]}
    return row | {f"together_over_alone_b{b}": round(x, 3) for b, x in together.items()}


def generate_step(
    model: Any, device: Device, prompts: Sequence[tuple[int, ...]], tokens: int
) -> float:
    """Seconds of a decode step of `generate`: a run less one that only prefills."""
    ids = torch.tensor(prompts, device=device.torch)

    def generate(count: int) -> None:
        mask = torch.ones_like(ids)
        keys = {"do_sample": False, "eos_token_id": None, "pad_token_id": 0}
        model.generate(ids, attention_mask=mask, max_new_tokens=count, **keys)
        device.synchronize()

    first_s = timed(lambda: generate(1))
    return (timed(lambda: generate(tokens)) - first_s) / (tokens - 1)


def measure_switches(spec: BenchSpec, engine: Engine) -> dict[str, float]:
    """Seconds until a model's weights are in place: cold, prefetched before, resident already."""

    def activate(model: str) -> float:
        began_s = time.perf_counter()
        engine.activate(model)
        engine.device.compute.synchronize()
        return time.perf_counter() - began_s

    cold, prefetched, resident = [], [], []
    for run in range(-1, spec.runs):
        times = [activate("a"), activate("b"), activate("c")]  # two slots: each one is cold
        resident_s = (activate("b"), activate("c"))[0]
        engine.prefetch("a")
        found = engine.residents.find("a")
        assert found is not None
        found.load.wait()
        prefetched_s = activate("a")
        if run >= 0:
            cold.append(times[2])
            resident.append(resident_s)
            prefetched.append(prefetched_s)
    nbytes = engine.served("a").index.nbytes
    return {
        "switch_cold_s": round(statistics.median(cold), 6),
        "switch_prefetched_s": round(statistics.median(prefetched), 6),
        "switch_resident_s": round(statistics.median(resident), 6),
        "switch_cold_gb_s": round(nbytes / statistics.median(cold) / 1e9, 3),
    }


def measure_kv(spec: BenchSpec, engine: Engine) -> dict[str, float]:
    """GB/s of KV out to the host and back in."""
    out_s, in_s, kv = [], [], engine.kv
    served = engine.served("a")
    blocks = min(kv.free_blocks(served.spec), kv.view(served.spec).shape[0]) // 2
    nbytes = blocks * served.spec.block_bytes
    kv.allocate("moved", blocks * engine.block, served.spec)
    for _ in range(spec.runs + 1):
        out_s.append(timed(lambda: kv.move_out("moved").wait()))
        kv.settle()
        in_s.append(timed(lambda: kv.move_in("moved").wait()))
        kv.settle()
    kv.free("moved")
    return {
        "kv_out_gb_s": round(nbytes / statistics.median(out_s[1:]) / 1e9, 3),
        "kv_in_gb_s": round(nbytes / statistics.median(in_s[1:]) / 1e9, 3),
    }


def measure_floor(device: Device, blob: Blob, tokens_s: float) -> dict[str, float]:
    """The share of the memory-bandwidth floor (every weight read once a step) that decode at the
    smallest batch reaches; the bandwidth is that of a sum over as many bytes."""
    words = device.empty(blob.nbytes).view(torch.float32)
    with device.computing():
        words.fill_(1)
        words.sum()
        device.synchronize()
        times = []
        for _ in range(5):
            began_s = time.perf_counter()
            words.sum()
            device.synchronize()
            times.append(time.perf_counter() - began_s)
    bandwidth = blob.nbytes / statistics.median(times)
    return {
        "memory_gb_s": round(bandwidth / 1e9, 1),
        "decode_share_of_floor": round(blob.nbytes / bandwidth * tokens_s, 3),
    }


def timed(work: Callable[[], object]) -> float:
    began_s = time.perf_counter()
    work()
    return time.perf_counter() - began_s


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m runtime.engine.bench", description=__doc__)
    for name in ("device", "model", "dtype"):
        parser.add_argument(f"--{name}", default=getattr(BenchSpec(), name))
    for name in ("threads", "prompt_tokens", "tokens", "runs", "seed"):
        flag = f"--{name.replace('_', '-')}"
        parser.add_argument(flag, type=int, default=getattr(BenchSpec(), name))
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8])
    options = vars(parser.parse_args(arguments))
    try:
        spec = BenchSpec(**{**options, "batches": tuple(options["batches"])})
        print(json.dumps(measure(spec)))
    except UserError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main(sys.argv[1:])
