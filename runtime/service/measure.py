"""What a model costs on this device, from a few small calls before the service starts."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence

from runtime.core import EventKind
from runtime.engine.engine import Engine
from runtime.engine.plan import Plan, Request
from runtime.service.messages import ModelCost

REPEATS = 5  # the least counts: others' work on the machine only adds
BATCH = 4
SHORT, LONG = 16, 128  # tokens
LEAST_S = 1e-7


def costs_of(engine: Engine, models: Sequence[str]) -> dict[str, ModelCost]:
    """Seconds by model; those that share a shell and their shapes are measured once."""
    measured: dict[int, ModelCost] = {}
    found = {}
    for model in models:
        layout = engine.served(model).layout
        if layout not in measured:
            measured[layout] = cost_of(engine, model)
        found[model] = measured[layout]
    return found


def cost_of(engine: Engine, model: str) -> ModelCost:
    """A straight line through two lengths of prompt, two batches and two contexts."""
    served = engine.served(model)
    room = engine.kv.capacity_tokens(served.spec) // (2 * BATCH)
    long = max(SHORT + 1, min(LONG, served.shell.context - 2 * REPEATS, room))
    short = min(SHORT, long - 1)
    runs = [_run(engine, model, long, 1) for _ in range(2)][1:]  # the first one warms up
    runs += [_run(engine, model, short, 1), _run(engine, model, short, BATCH)]
    runs += [_run(engine, model, long, BATCH)]
    prompt_long, prompt_short = runs[0][0], runs[1][0]
    one, few, deep = runs[1][1], runs[2][1], runs[3][1]
    token_s = max(LEAST_S, (prompt_long - prompt_short) / (long - short))
    context_s = max(0.0, (deep - few) / (BATCH * (long - short)))
    batch_s = max(0.0, (few - one) / (BATCH - 1) - context_s * short)
    return ModelCost(
        prefill_s=max(LEAST_S, prompt_short - token_s * short),
        prefill_token_s=token_s,
        decode_s=max(LEAST_S, one - batch_s - context_s * short),
        decode_context_s=context_s,
        decode_batch_s=batch_s,
    )


def _run(engine: Engine, model: str, prompt: int, batch: int) -> tuple[float, float]:
    """The least seconds of a prefill of one prompt and of a decode step of the batch."""
    names = [f"measure {i}" for i in range(batch)]
    for name in names:
        engine.submit(
            Request(id=name, model=model, prompt=(1,) * prompt, max_tokens=1 << 20, ignore_eos=True)
        )
    try:
        steps = list(_events(engine, model, names))
    finally:
        for name in names:
            engine.release(name)
    prefills = [seconds for kind, seconds in steps if kind is EventKind.PREFILLED]
    decodes = [seconds for kind, seconds in steps if kind is EventKind.STEPS]
    return min(prefills), min(decodes)


def _events(engine: Engine, model: str, names: list[str]) -> Iterator[tuple[EventKind, float]]:
    turn = engine.run_turn(Plan(model=model, prefill=tuple(names)))
    since_s = time.perf_counter()
    decoded = 0
    for event in turn:
        now_s = time.perf_counter()
        yield event.kind, now_s - since_s
        since_s = now_s
        decoded += event.kind is EventKind.STEPS
        if decoded == REPEATS:
            turn.close()  # type: ignore[attr-defined]
            return
