"""Tokens of the engine are transformers' own, however turns, KV and models move."""

import gc
import itertools
import resource
import sys
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from engine_rig import ask, engine_of, tokens_of, turn
from tiny_models import ARCHITECTURES, tiny_model
from torch.overrides import TorchFunctionMode

from runtime.core import EventKind
from runtime.engine.graphs import Captured, DecodeGraphs
from runtime.engine.model import Shell
from runtime.engine.plan import Ending, Plan
from runtime.engine.residents import NoRoomError
from runtime.engine.sampling import Sampling

STEPS = 10
WINDOW = 60  # turns between looks at what they leave in memory
ONE_STEP = 1e-9  # a quota that ends with its first step


def prompt(seed: int, length: int = 19) -> list[int]:
    return torch.randint(3, 199, (length,), generator=torch.Generator().manual_seed(seed)).tolist()


def generated(model, tokens: list[int], count: int = STEPS, **keys) -> list[int]:
    keys = {"do_sample": False, "eos_token_id": None, **keys}
    out = model.generate(torch.tensor([tokens]), max_new_tokens=count, **keys)
    return out[0, len(tokens) :].tolist()


def free_ask(name, model: str, tokens: list[int], count: int = STEPS, **keys):
    return ask(name, model, tokens, count, ignore_eos=True, **keys)


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_tokens_equal_generate_in_a_batch_with_chunks_and_with_kv_out_between_steps(kind):
    model = tiny_model(kind)
    prompts = {name: prompt(name, 11 + 6 * name) for name in range(3)}
    wanted = {name: generated(model, tokens) for name, tokens in prompts.items()}
    with engine_of({"m": model}) as engine:
        for name, tokens in prompts.items():
            engine.submit(free_ask(name, "m", tokens))
        events = turn(
            engine, "m", prefill=(0, 1, 2), prefill_chunk_tokens=7, quota_s=ONE_STEP, moves_out=True
        )
        while names := events[-1].requests:
            events += turn(engine, "m", incoming=names, quota_s=ONE_STEP, moves_out=True)
        assert tokens_of(events) == wanted
        assert not engine.lives
        assert engine.kv.usage().taken_bytes == 0


@pytest.mark.parametrize("kinds", [("llama", "qwen3"), tuple(ARCHITECTURES)[2:7]])
def test_models_that_alternate_after_every_token_disturb_nothing(kinds):
    models = {kind: tiny_model(kind, seed=i) for i, kind in enumerate(kinds)}
    wanted = {kind: generated(model, prompt(1)) for kind, model in models.items()}
    with engine_of(models, kv_bytes=1 << 19) as engine:
        got: dict[str, list[int]] = {kind: [] for kind in kinds}
        for kind in kinds:
            engine.submit(free_ask(kind, kind, prompt(1)))
            events = turn(engine, kind, prefill=(kind,), decodes=False, moves_out=True)
            got[kind] += tokens_of(events)[kind]
        for _ in range(STEPS - 1):
            for i, kind in enumerate(kinds):
                engine.prefetch(kinds[(i + 1) % len(kinds)])
                events = turn(engine, kind, incoming=(kind,), quota_s=ONE_STEP, moves_out=True)
                got[kind] += tokens_of(events)[kind]
        assert got == wanted


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_sampled_tokens_equal_generate_under_the_same_seed_in_any_batch(kind):
    model, keys = tiny_model(kind), {"temperature": 0.9, "top_k": 30, "top_p": 0.95}
    wanted = {}
    for name in range(3):
        torch.manual_seed(name)
        wanted[name] = generated(model, prompt(name), do_sample=True, **keys)
    with engine_of({"m": model}) as engine:
        for name in range(3):
            engine.submit(free_ask(name, "m", prompt(name), sampling=Sampling(seed=name, **keys)))
        assert tokens_of(turn(engine, "m", prefill=(0, 1, 2))) == wanted


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_tokens_equal_generate_where_requests_join_in_chunks_and_stop_early(kind):
    model = tiny_model(kind)
    wanted = {name: generated(model, prompt(name, 13 + 5 * name)) for name in range(3)}
    stop = wanted[0][4]
    wanted[0] = wanted[0][: wanted[0].index(stop) + 1]
    with engine_of({"m": model}) as engine:
        engine.submit(free_ask(0, "m", prompt(0, 13), stop_tokens=frozenset({stop})))
        plan = Plan(model="m", prefill=(0,), prefill_budget_tokens=9, prefill_chunk_tokens=6)
        events = []
        for event in engine.run_turn(plan):
            events.append(event)
            if event.kind is EventKind.PREFILLED and event.requests == (0,):
                for name in (1, 2):
                    engine.submit(free_ask(name, "m", prompt(name, 13 + 5 * name)))
                engine.join(prefill=(1, 2))
        assert tokens_of(events) == wanted


def test_a_turn_stopped_within_a_prompt_goes_on_behind_the_chunks_it_has():
    model = tiny_model("llama")
    wanted = generated(model, prompt(0))
    with engine_of({"m": model}) as engine:
        engine.submit(free_ask(0, "m", prompt(0)))
        plan = Plan(model="m", prefill=(0,), prefill_chunk_tokens=5, moves_out=True)
        for event in engine.run_turn(plan):
            if event.kind is EventKind.PREFILLED:
                engine.stop()
        assert event.requests == (0,)
        assert engine.lives[0].cached == 5
        events = turn(engine, "m", prefill=(0,), prefill_chunk_tokens=9)
        assert tokens_of(events) == {0: wanted}
        assert sum(e.kind is EventKind.PREFILLED for e in events) == 2


def test_a_request_that_joins_as_the_turn_ends_is_among_those_that_may_go_on():
    with engine_of({"m": tiny_model("llama")}) as engine:
        for name in range(2):
            engine.submit(free_ask(name, "m", prompt(name)))
        for event in engine.run_turn(Plan(model="m", prefill=(0,))):
            if event.kind is EventKind.STEPS:
                engine.stop()
                engine.cancel(0)
            if event.kind is EventKind.FINISHED:
                engine.join(prefill=(1,))
        assert event.requests == (1,)


def test_a_turn_without_room_for_incoming_kv_ends_and_names_it():
    model = tiny_model("llama")
    wanted = generated(model, prompt(0, 40))
    with engine_of({"m": model}, kv_bytes=1 << 16) as engine:
        engine.submit(free_ask(0, "m", prompt(0, 40)))
        events = turn(engine, "m", prefill=(0,), quota_s=ONE_STEP, moves_out=True)
        spec = engine.served("m").spec
        engine.kv.settle()
        engine.kv.allocate("other", engine.kv.free_blocks(spec) * spec.block, spec)
        refused = turn(engine, "m", incoming=(0,))
        assert [e.kind for e in refused] == [EventKind.SWITCHED, EventKind.TURN_ENDED]
        assert refused[-1].requests == (0,)
        engine.kv.free("other")
        assert tokens_of(events + turn(engine, "m", incoming=(0,))) == {0: wanted}


class OnCompute(TorchFunctionMode):
    """Fails for work on tensors outside `device.computing()`: on CUDA it would not wait for the
    stream that made them."""

    def __init__(self, device) -> None:
        super().__init__()
        self.is_inside = False
        device.computing = self.computing

    @contextmanager
    def computing(self):
        self.is_inside, before = True, self.is_inside
        yield
        self.is_inside = before

    def __torch_function__(self, func, types, args=(), kwargs=None):
        reads_no_bytes = func.__name__ in ("__get__", "numel")
        assert self.is_inside or reads_no_bytes, f"{func} outside the compute stream"
        return func(*args, **(kwargs or {}))


def test_a_turn_touches_its_tensors_on_the_compute_stream_alone():
    keys = {"temperature": 0.9, "repetition_penalty": 1.2, "logprobs": 1}
    with engine_of({"m": tiny_model("llama")}, poison=False) as engine:
        engine.activate("m")
        prompts = [prompt(name, 9 + name) for name in range(2)]
        plan = Plan(model="m", prefill=(0, 1), prefill_budget_tokens=15, prefill_chunk_tokens=9)
        with OnCompute(engine.device):
            for name, tokens in enumerate(prompts):
                asked = {"sampling": Sampling(**keys)} if name else {}
                engine.submit(free_ask(name, "m", tokens, 3, **asked))
            events = list(engine.run_turn(plan))
        assert {name: len(tokens) for name, tokens in tokens_of(events).items()} == {0: 3, 1: 3}


def test_a_request_handed_to_another_instance_goes_on_from_its_kv():
    model = tiny_model("llama")
    wanted = generated(model, prompt(0))
    with engine_of({"m": model}) as first, engine_of({"m": model}) as second:
        first.submit(free_ask(0, "m", prompt(0)))
        events = turn(first, "m", prefill=(0,), quota_s=ONE_STEP, moves_out=True)
        first.kv.settle()
        request, record = first.hand_over(0)
        for offset in record.offsets:  # the two engines of this test share no node
            view = first.kv.host.view(offset, record.block_bytes)
            second.kv.host.view(offset, record.block_bytes).copy_(view)
        second.kv.host.take(record.block_bytes, len(record.offsets))
        second.submit(request, record)
        events += turn(second, "m", incoming=(0,))
        assert tokens_of(events) == {0: wanted}


def test_a_request_resumed_without_kv_is_prefilled_with_what_it_has():
    model = tiny_model("llama")
    wanted = generated(model, prompt(0))
    with engine_of({"m": model}) as engine:
        engine.submit(free_ask(0, "m", prompt(0), output=tuple(wanted[:4])))
        assert tokens_of(turn(engine, "m", prefill=(0,))) == {0: wanted[4:]}


def test_kv_made_again_without_sampling_lets_a_request_decode_in_a_batch_at_once():
    model = tiny_model("llama")
    wanted = {name: generated(model, prompt(name)) for name in (0, 1)}
    with engine_of({"m": model}) as engine:
        engine.submit(free_ask(0, "m", prompt(0), output=tuple(wanted[0][:4])))
        engine.submit(free_ask(1, "m", prompt(1), output=tuple(wanted[1][:4])))
        for name in (0, 1):
            engine.recompute(name)
            engine.recompute(name)  # nothing is missing any more
        events = turn(engine, "m", batch=(0, 1))
        assert [len(e.tokens) for e in events if e.kind is EventKind.STEPS] == [2] * 6
        assert tokens_of(events) == {name: tokens[4:] for name, tokens in wanted.items()}


def test_a_load_keeps_the_models_it_is_told_and_no_other():
    models = {name: tiny_model("llama", seed=i) for i, name in enumerate("abc")}
    with engine_of(models, slots=2) as engine:
        engine.load("a").wait()
        engine.load("b", kept=("a",)).wait()
        assert engine.load("b", kept=("a",)).done()
        with pytest.raises(NoRoomError, match="a slot beside those of a, b"):
            engine.load("c", kept=("a", "b"))
        engine.load("c", kept=("b",)).wait()
        assert [engine.residents.find(name) is None for name in "abc"] == [True, False, False]
        engine.load("a").wait()
        assert [engine.residents.find(name) is None for name in "abc"] == [False, True, True]


def test_requests_that_join_take_part_from_the_next_boundary():
    model = tiny_model("mistral")
    wanted = {name: generated(model, prompt(name)) for name in range(2)}
    with engine_of({"m": model}) as engine:
        engine.submit(free_ask(0, "m", prompt(0)))
        events, steps = [], 0
        for event in engine.run_turn(Plan(model="m", prefill=(0,))):
            events.append(event)
            steps += event.kind is EventKind.STEPS
            if steps == 3 and 1 not in engine.lives and len(events) < 10:
                engine.submit(free_ask(1, "m", prompt(1)))
                engine.join(prefill=(1,))
        assert tokens_of(events) == wanted
        together = [e for e in events if e.kind is EventKind.STEPS and len(e.requests) == 2]
        assert len(together) == STEPS - 4


def test_a_turn_that_is_stopped_ends_at_the_next_boundary_and_can_go_on():
    model = tiny_model("llama")
    wanted = generated(model, prompt(0))
    with engine_of({"m": model}) as engine:
        engine.submit(free_ask(0, "m", prompt(0)))
        events = []
        for event in engine.run_turn(Plan(model="m", prefill=(0,))):
            events.append(event)
            if event.kind is EventKind.STEPS:
                engine.stop()
        assert [e.kind for e in events[-2:]] == [EventKind.STEPS, EventKind.TURN_ENDED]
        assert len(tokens_of(events)[0]) == 2
        events += turn(engine, "m", batch=events[-1].requests)
        assert tokens_of(events) == {0: wanted}


def test_a_request_ends_at_eos_a_stop_token_a_stop_string_or_its_limit():
    class Letters:
        def decode(self, token_ids, *, skip_special_tokens=False):
            return "".join(chr(0x100 + t) for t in token_ids)

    model = tiny_model("llama")
    wanted = generated(model, prompt(0))
    assert all(wanted.index(wanted[i]) == i for i in (2, 5))
    model.config.eos_token_id = wanted[5]
    cases = {
        "eos": ({}, 6, Ending.STOP),
        "token": ({"stop_tokens": frozenset({wanted[2]})}, 3, Ending.STOP),
        "string": ({"stop_strings": (Letters().decode(wanted[2:4]),)}, 4, Ending.STOP),
        "limit": ({"ignore_eos": True}, STEPS, Ending.LENGTH),
    }
    with engine_of({"m": model}, tokenizer=Letters()) as engine:
        for name, (keys, _, _) in cases.items():
            engine.submit(ask(name, "m", prompt(0), STEPS, **keys))
        events = turn(engine, "m", prefill=tuple(cases))
    ends = {e.requests[0]: e.ending for e in events if e.kind is EventKind.FINISHED}
    for name, (_, count, ending) in cases.items():
        assert tokens_of(events)[name] == wanted[:count]
        assert ends[name] is ending


def test_a_cancelled_request_ends_at_the_next_boundary_and_gives_its_kv_back():
    with engine_of({"m": tiny_model("llama")}) as engine:
        for name in range(2):
            engine.submit(free_ask(name, "m", prompt(name)))
        events = []
        for event in engine.run_turn(Plan(model="m", prefill=(0, 1))):
            events.append(event)
            if event.kind is EventKind.STEPS and 0 in engine.lives and len(event.requests) == 2:
                engine.cancel(0)
        ends = [(e.requests, e.ending) for e in events if e.kind is EventKind.FINISHED]
        assert ends == [((0,), Ending.CANCELLED), ((1,), Ending.LENGTH)]
        assert len(tokens_of(events)[0]) == 2
        assert engine.kv.usage().taken_bytes == 0


def test_a_batch_that_outgrows_the_kv_moves_its_tail_to_the_host_and_loses_nothing():
    model = tiny_model("llama")
    prompts = {name: prompt(name, 40) for name in range(3)}
    wanted = {name: generated(model, tokens, 60) for name, tokens in prompts.items()}
    with engine_of({"m": model}, kv_bytes=1 << 16) as engine:
        for name, tokens in prompts.items():
            engine.submit(free_ask(name, "m", tokens, 60))
        events = turn(engine, "m", prefill=tuple(prompts))
        spilled = [name for e in events if e.kind is EventKind.KV_OUT_DONE for name in e.requests]
        assert spilled
        for name in spilled:
            events += turn(engine, "m", incoming=(name,))
        waiting = tuple(engine.lives)
        events += turn(engine, "m", prefill=waiting) if waiting else []
        assert tokens_of(events) == wanted


def test_a_prefetch_without_a_slot_to_spare_changes_nothing():
    models = {name: tiny_model("llama", seed=i) for i, name in enumerate("ab")}
    with engine_of(models, slots=1) as engine:
        engine.submit(free_ask(0, "a", prompt(0)))
        events = []
        for event in engine.run_turn(Plan(model="a", prefill=(0,))):
            events.append(event)
            engine.prefetch("b")
        assert tokens_of(events) == {0: generated(models["a"], prompt(0))}
        assert engine.residents.find("b") is None


def test_events_of_a_turn_come_in_order_with_times_that_add_up():
    with engine_of({"m": tiny_model("llama")}) as engine:
        engine.submit(free_ask(0, "m", prompt(0)))
        events = turn(engine, "m", prefill=(0,))
    kinds = [e.kind for e in events]
    steps = [EventKind.STEPS] * (STEPS - 1)
    expected = [EventKind.SWITCHED, EventKind.PREFILLED, *steps]
    assert kinds == [*expected, EventKind.FINISHED, EventKind.TURN_ENDED]
    assert all(a.time_s <= b.time_s for a, b in itertools.pairwise(events))
    assert all(e.seconds >= 0 for e in events)
    assert sum(e.seconds for e in events[:-1]) <= events[-1].seconds + 1e-3


def test_logprobs_come_with_their_tokens():
    with engine_of({"m": tiny_model("llama")}) as engine:
        engine.submit(free_ask(0, "m", prompt(0), 2, sampling=Sampling(logprobs=2)))
        events = turn(engine, "m", prefill=(0,))
    for event in events:
        for token, logprobs in zip(event.tokens, event.logprobs, strict=True):
            assert logprobs.top_tokens[0] == token
            assert logprobs.chosen == logprobs.top[0]


def rounds(engine, kinds: tuple[str, ...], count: int, got: dict[str, list[int]]) -> None:
    """One-step turns of each model in turn, its KV out and the next model's weights in between;
    a request that ended is asked anew."""
    for turn_index in range(count):
        kind = kinds[turn_index % len(kinds)]
        if kind not in engine.lives:
            engine.submit(free_ask(kind, kind, prompt(1)))
            keys = {"prefill": (kind,), "decodes": False}
        else:
            keys = {"incoming": (kind,), "quota_s": ONE_STEP}
        engine.prefetch(kinds[(turn_index + 1) % len(kinds)])
        events = turn(engine, kind, moves_out=True, **keys)
        got[kind] += tokens_of(events).get(kind, [])


@pytest.mark.parametrize("seed", range(3))
def test_tokens_do_not_depend_on_when_copies_end(seed):
    kinds = ("llama", "mistral", "gpt2")
    models = {kind: tiny_model(kind, seed=i) for i, kind in enumerate(kinds)}
    got: dict[str, list[int]] = {kind: [] for kind in kinds}
    with engine_of(models, kv_bytes=1 << 18, delays=seed) as engine:
        rounds(engine, kinds, 5 * len(kinds), got)
    assert got == {kind: generated(model, prompt(1), 5) for kind, model in models.items()}


def test_memory_does_not_grow_with_turns():
    kinds = ("llama", "mistral")
    models = {kind: tiny_model(kind, seed=i) for i, kind in enumerate(kinds)}
    got: dict[str, list[int]] = {kind: [] for kind in kinds}
    seen = []
    with engine_of(models) as engine:
        for _ in range(6):
            rounds(engine, kinds, WINDOW, got)
            seen.append(held(engine))
    assert len({on_device for on_device, _, _ in seen}) == 1
    assert seen[-1][1] == seen[0][1]
    growth = [after[2] - before[2] for before, after in itertools.pairwise(seen)]
    assert min(growth) < WINDOW, "each turn leaves an object or more"


def held(engine) -> tuple[int, int, int]:
    """Bytes on the device, tensors, Python's memory blocks."""
    engine.kv.settle()
    gc.collect()
    tensors = sum(issubclass(type(item), torch.Tensor) for item in gc.get_objects())
    return engine.device.memory_used(), tensors, sys.getallocatedblocks()


def test_memory_counted_is_what_the_device_says():
    kinds = ("llama", "mistral", "gemma3_text")
    models = {kind: tiny_model(kind, seed=i) for i, kind in enumerate(kinds)}
    with engine_of(models) as engine:
        rounds(engine, kinds, 12, {kind: [] for kind in kinds})
        counted = engine.device_bytes()
        assert sum(counted) == pytest.approx(engine.device.memory_used(), rel=0.02)
        assert counted.arena == engine.residents.arena.nbytes
        assert 0 < counted.buffers < 10_000


class Recorder:
    """A capture on CPU; every replay computes anew over the static inputs."""

    def __init__(self) -> None:
        self.captures = 0

    def __call__(self, step) -> Captured:
        self.captures += 1
        logits = step().clone()
        return Captured(lambda: logits.copy_(step()), logits, 100)


def test_captured_steps_stay_right_after_their_slot_is_loaded_anew(monkeypatch):
    def forward(shell, tokens, positions, layers, batch, rows=None):
        lengths = tuple(batch.context_tokens.tolist())  # CPU's attention asks the host
        ones = (1,) * len(lengths)
        if rows is None:
            batch = replace(batch, context_lengths=lengths, query_lengths=ones, plans={})
        return plain(shell, tokens, positions, layers, batch, rows)

    plain = Shell.forward
    monkeypatch.setattr(Shell, "forward", forward)
    models = {name: tiny_model("qwen2", seed=i) for i, name in enumerate("ab")}
    wanted = {
        (name, seed): generated(models[name], prompt(seed)) for name in models for seed in range(3)
    }
    with engine_of(models, slots=1) as engine:
        recorder = Recorder()
        engine.graphs = DecodeGraphs(recorder)
        engine.kv.allocate("scratch", 1, engine.served("a").spec)
        assert engine.kv.table("scratch") == [engine.served("a").scratch_block]
        for name, seed in wanted:
            engine.submit(free_ask((name, seed), name, prompt(seed)))
        events = []
        for name in "abab":
            mine = tuple(key for key in wanted if key[0] == name)
            stage = "batch" if events and engine.lives[mine[0]].has_kv else "prefill"
            for event in engine.run_turn(Plan(model=name, **{stage: mine})):
                events.append(event)
                if event.kind is EventKind.STEPS and len(tokens_of(events)[mine[0]]) == 5:
                    engine.stop()
        assert tokens_of(events) == wanted
        assert recorder.captures == len(engine.graphs) == 1  # of a slot, whatever is loaded there
        assert engine.device_bytes().graphs == 100


@pytest.mark.long
def test_memory_does_not_grow_over_ten_thousand_turns():
    kinds = ("llama", "mistral")
    models = {kind: tiny_model(kind, seed=i) for i, kind in enumerate(kinds)}
    with engine_of(models, poison=False) as engine:
        rounds(engine, kinds, 1000, {kind: [] for kind in kinds})
        device, resident = engine.device.memory_used(), resident_bytes()
        rounds(engine, kinds, 9000, {kind: [] for kind in kinds})
        assert engine.device.memory_used() == device
        assert resident_bytes() - resident < 16 << 20


def resident_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()
