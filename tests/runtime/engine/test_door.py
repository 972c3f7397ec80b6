"""One suite for whatever runs turns: this engine, and a vLLM server that cannot preempt."""

import itertools
from collections.abc import Iterator

import pytest
import torch
from engine_rig import ask, engine_of, tokens_of
from tiny_models import tiny_model

from runtime.core import EventKind
from runtime.engine.door import TurnEngine
from runtime.engine.plan import Ending, Plan, Request
from runtime.engine.vllm_adapter import Output, VllmEngine

MODELS = ("a", "b")


def following(model: str, tokens: list[int]) -> int:
    """The fake's next token: a function of the model and all tokens so far."""
    return (sum(tokens) * 31 + len(tokens) + ord(model)) % 199


class FakeVllm:
    """One model's server: a step gives one token to each request; sleeping forgets them all."""

    def __init__(self, model: str) -> None:
        self.model, self.is_awake = model, False
        self.running: dict[object, tuple[Request, list[int]]] = {}

    def sleep(self, level: int) -> None:
        assert self.is_awake
        assert not self.running, "vLLM sleeps only when idle"
        self.is_awake = False

    def wake_up(self) -> None:
        assert not self.is_awake
        self.is_awake = True

    def add_request(self, request: Request) -> None:
        self.running[request.id] = (request, [*request.prompt, *request.output])

    def abort_request(self, request) -> None:
        self.running.pop(request, None)

    def step(self) -> list[Output]:
        assert self.is_awake
        outputs = []
        for name, (request, tokens) in list(self.running.items()):
            tokens.append(following(self.model, tokens))
            ended = len(tokens) - len(request.prompt) >= request.max_tokens
            outputs.append(Output(name, (tokens[-1],), "length" if ended else None))
            if ended:
                del self.running[name]
        return outputs


class Case:
    """An engine, and the tokens it should give."""

    def __init__(self, engine: TurnEngine, models=None) -> None:
        self.engine, self._models = engine, models

    def wanted(self, model: str, prompt: list[int], count: int) -> list[int]:
        if self._models is None:
            tokens = list(prompt)
            for _ in range(count):
                tokens.append(following(model, tokens))
            return tokens[len(prompt) :]
        keys = {"max_new_tokens": count, "do_sample": False, "eos_token_id": None}
        return (
            self._models[model].generate(torch.tensor([prompt]), **keys)[0, len(prompt) :].tolist()
        )

    def submit(self, name, model: str, prompt: list[int], count: int) -> None:
        self.engine.submit(ask(name, model, prompt, count, ignore_eos=True))


@pytest.fixture(params=["ours", "vllm"])
def case(request) -> Iterator[Case]:
    if request.param == "vllm":
        yield Case(VllmEngine({model: FakeVllm(model) for model in MODELS}))
        return
    models = {model: tiny_model("llama", seed=i) for i, model in enumerate(MODELS)}
    with engine_of(models) as engine:
        yield Case(engine, models)


def test_every_request_gets_its_tokens_once_and_in_order(case):
    names = {"x": [5, 6, 7], "y": [9, 10, 11, 12]}
    for name, prompt in names.items():
        case.submit(name, "a", prompt, 5)
    events = list(case.engine.run_turn(Plan(model="a", prefill=tuple(names))))
    assert tokens_of(events) == {n: case.wanted("a", p, 5) for n, p in names.items()}
    ends = {e.requests[0]: e.ending for e in events if e.kind is EventKind.FINISHED}
    assert ends == dict.fromkeys(names, Ending.LENGTH)


def test_a_turn_begins_with_its_switch_and_ends_with_who_may_go_on(case):
    case.submit("x", "a", [5, 6], 4)
    events = list(case.engine.run_turn(Plan(model="a", prefill=("x",))))
    assert events[0].kind is EventKind.SWITCHED
    assert events[-1].kind is EventKind.TURN_ENDED
    assert events[-1].requests == ()
    assert all(a.time_s <= b.time_s for a, b in itertools.pairwise(events))


def test_turns_of_models_follow_one_another(case):
    for name, model in (("x", "a"), ("y", "b"), ("z", "a")):
        case.submit(name, model, [5, 6, 7], 3)
        case.engine.prefetch(model)
        events = list(case.engine.run_turn(Plan(model=model, prefill=(name,))))
        assert tokens_of(events) == {name: case.wanted(model, [5, 6, 7], 3)}


def test_a_request_may_join_a_turn_under_way(case):
    case.submit("x", "a", [5, 6], 6)
    case.submit("y", "a", [8, 9], 3)
    events = []
    for event in case.engine.run_turn(Plan(model="a", prefill=("x",))):
        if event.kind is EventKind.PREFILLED and event.requests == ("x",):
            case.engine.join(prefill=("y",))
        events.append(event)
    assert tokens_of(events) == {"x": case.wanted("a", [5, 6], 6), "y": case.wanted("a", [8, 9], 3)}


def test_a_stop_ends_the_turn_at_a_boundary_where_the_engine_can_preempt(case):
    case.submit("x", "a", [5, 6], 6)
    events = []
    for event in case.engine.run_turn(Plan(model="a", prefill=("x",))):
        if event.kind is EventKind.STEPS:
            case.engine.stop()
        events.append(event)
    if case.engine.traits.token_preempt:
        assert events[-1].requests == ("x",)
        events += case.engine.run_turn(Plan(model="a", batch=("x",)))
    assert tokens_of(events) == {"x": case.wanted("a", [5, 6], 6)}


def test_a_cancelled_request_ends_and_the_others_go_on(case):
    case.submit("x", "a", [5, 6], 6)
    case.submit("y", "a", [8, 9], 6)
    events = []
    for event in case.engine.run_turn(Plan(model="a", prefill=("x", "y"))):
        if event.kind is EventKind.STEPS and len(event.requests) == 2 and len(events) < 6:
            case.engine.cancel("x")
        events.append(event)
    ends = {e.requests[0]: e.ending for e in events if e.kind is EventKind.FINISHED}
    assert ends == {"x": Ending.CANCELLED, "y": Ending.LENGTH}
    assert tokens_of(events)["y"] == case.wanted("a", [8, 9], 6)
