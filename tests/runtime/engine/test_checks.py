"""What an engine is asked wrongly it refuses in a line, and goes on as if never asked."""

import math

import pytest
from engine_rig import ask, engine_of, tokens_of, turn
from tiny_models import tiny_model

from runtime.core import EventKind
from runtime.engine.host_kv import HostKv
from runtime.engine.plan import Ending, Plan
from runtime.engine.sampling import Sampling
from runtime.errors import UserError

PROMPT = [5, 6, 7, 8, 9]


def refused(act, naming):
    with pytest.raises(UserError) as error:
        act()
    assert "\n" not in str(error.value)
    assert naming in str(error.value)


@pytest.fixture(scope="module")
def llama():
    return tiny_model("llama")


def alone(model, tokens, count):
    with engine_of({"m": model}) as engine:
        engine.submit(ask("x", "m", tokens, count, ignore_eos=True))
        return tokens_of(turn(engine, "m", prefill=("x",)))["x"]


@pytest.mark.parametrize(
    ("keys", "naming"),
    [
        ({"quota_s": math.nan}, "plan.quota_s=nan"),
        ({"quota_s": -1}, "plan.quota_s=-1"),
        ({"prefill_budget_tokens": -5}, "plan.prefill_budget_tokens=-5"),
        ({"prefill_chunk_tokens": -1}, "plan.prefill_chunk_tokens=-1"),
        ({"prefill": ("x", "x")}, "'x' is named 2 times"),
        ({"prefill": ("x",), "batch": ("x",)}, "'x' is named 2 times"),
    ],
)
def test_a_plan_that_makes_no_sense_is_refused(keys, naming):
    refused(lambda: Plan(model="m", **keys), naming)


@pytest.mark.parametrize(
    ("tokens", "count", "keys", "naming"),
    [
        ([], 4, {}, "prompt is empty"),
        ([199], 4, {}, "token 199"),
        ([-1], 4, {}, "token -1"),
        ([1.5], 4, {}, "token 1.5"),
        ([5], 4, {"output": (777,)}, "token 777"),
        ([5] * 256, 4, {}, "context of 256"),
        ([5] * 200, 90, {"output": (5,) * 60}, "context of 256"),
        ([5], 0, {}, "max_tokens=0"),
        ([5], 2.5, {}, "max_tokens=2.5"),
        ([5], 4, {"stop_strings": ("",)}, "stop_strings"),
        ([5], 4, {"stop_strings": "ab"}, "stop_strings"),
        ([5], 4, {"stop_strings": ("ab",)}, "a tokenizer for m"),
    ],
)
def test_a_request_that_cannot_run_is_refused(llama, tokens, count, keys, naming):
    with engine_of({"m": llama}) as engine:
        refused(lambda: engine.submit(ask("x", "m", tokens, count, **keys)), naming)
        assert not engine.lives


@pytest.mark.parametrize(
    "keys",
    [
        {"temperature": math.nan},
        {"temperature": 1e-40},
        {"temperature": "hot"},
        {"top_k": 1.5},
        {"top_p": 0},
        {"top_p": None},
        {"min_p": 2},
        {"repetition_penalty": 0},
        {"seed": -1},
        {"logprobs": True},
    ],
)
def test_sampling_out_of_range_is_refused(keys):
    refused(lambda: Sampling(**keys), f"sampling.{next(iter(keys))}")


def test_requests_that_are_unknown_known_twice_or_of_another_model_are_refused(llama):
    with engine_of({"m": llama, "n": llama}) as engine:
        engine.submit(ask("x", "m", PROMPT, 4))
        refused(lambda: engine.submit(ask("x", "m", [6], 4)), "'x' is known already")
        refused(lambda: engine.submit(ask("y", "mm", PROMPT, 4)), "did you mean 'm'?")
        refused(lambda: turn(engine, "m", prefill=("y",)), "'y' is not known")
        refused(lambda: turn(engine, "n", prefill=("x",)), "'x' is of model 'm'")
        refused(lambda: turn(engine, "o"), "'o' is not served")
        refused(lambda: engine.prefetch("o"), "'o' is not served")
        refused(lambda: engine.hand_over("y"), "'y' is not known")
        refused(lambda: engine.hand_over("x"), "not in host memory")
        refused(lambda: engine.join(prefill=("x",)), "no turn is under way")
        engine.cancel("y")
        engine.release("y")
        assert len(tokens_of(turn(engine, "m", prefill=("x",)))["x"]) == 4


def test_a_join_that_makes_no_sense_is_refused_and_the_turn_goes_on(llama):
    with engine_of({"m": llama, "n": llama}) as engine:
        engine.submit(ask("x", "m", PROMPT, 4, ignore_eos=True))
        engine.submit(ask("y", "n", PROMPT, 4))
        events = []
        for event in engine.run_turn(Plan(model="m", prefill=("x",))):
            events.append(event)
            if event.kind is EventKind.PREFILLED:
                refused(lambda: engine.join(prefill=("y",)), "'y' is of model 'n'")
                refused(lambda: engine.join(batch=("x",)), "'x' is in the turn already")
                refused(lambda: engine.join(batch=("z",)), "'z' is not known")
                refused(lambda: engine.release("x"), "expected `cancel`")
                refused(lambda: turn(engine, "n", prefill=("y",)), "a turn of m is under way")
        assert tokens_of(events) == {"x": alone(llama, PROMPT, 4)}


def test_a_turn_that_is_given_up_leaves_room_for_the_next(llama):
    with engine_of({"m": llama}) as engine:
        engine.submit(ask("x", "m", PROMPT, 6, ignore_eos=True))
        events = []
        for event in engine.run_turn(Plan(model="m", prefill=("x",))):
            events.append(event)
            if event.kind is EventKind.STEPS:
                break
        del event
        events += turn(engine, "m", batch=("x",))
        assert tokens_of(events) == {"x": alone(llama, PROMPT, 6)}


def test_a_turn_without_quota_takes_one_step(llama):
    with engine_of({"m": llama}) as engine:
        engine.submit(ask("x", "m", PROMPT, 6, ignore_eos=True))
        events = turn(engine, "m", prefill=("x",), quota_s=0)
        assert len(tokens_of(events)["x"]) == 2
        assert events[-1].requests == ("x",)


def test_a_name_that_is_used_again_is_not_cancelled_with_its_predecessor(llama):
    with engine_of({"m": llama}) as engine:
        engine.submit(ask("x", "m", PROMPT, 3))
        engine.cancel("x")
        engine.release("x")
        engine.submit(ask("x", "m", PROMPT, 3, ignore_eos=True))
        assert len(tokens_of(turn(engine, "m", prefill=("x",)))["x"]) == 3


def test_a_request_cancelled_between_turns_ends_in_the_next_one(llama):
    with engine_of({"m": llama}) as engine:
        engine.submit(ask("x", "m", PROMPT, 3))
        engine.cancel("x")
        events = turn(engine, "m", prefill=("x",))
        assert [e.ending for e in events if e.kind is EventKind.FINISHED] == [Ending.CANCELLED]
        assert not engine.lives


@pytest.mark.parametrize("way", ["prefill", "incoming", "batch"])
def test_a_prefill_that_was_stopped_and_moved_out_goes_on_whichever_list_names_it(llama, way):
    tokens = list(range(5, 45))
    with engine_of({"m": llama}) as engine:
        engine.submit(ask("x", "m", tokens, 4, ignore_eos=True))
        for event in engine.run_turn(
            Plan(model="m", prefill=("x",), prefill_chunk_tokens=7, moves_out=True)
        ):
            if event.kind is EventKind.PREFILLED:
                engine.stop()
        assert engine.lives["x"].missing == 33
        assert tokens_of(turn(engine, "m", **{way: ("x",)}))["x"] == alone(llama, tokens, 4)


def test_a_prefill_that_was_stopped_is_handed_over_as_far_as_it_came(llama):
    with engine_of({"m": llama}) as engine:
        engine.submit(ask("x", "m", list(range(5, 45)), 4, ignore_eos=True))
        for event in engine.run_turn(
            Plan(model="m", prefill=("x",), prefill_chunk_tokens=7, moves_out=True)
        ):
            if event.kind is EventKind.PREFILLED:
                engine.stop()
        request, record = engine.hand_over("x")
        assert record.tokens == 7
        foreign = record._replace(block_bytes=record.block_bytes * 2)
        refused(lambda: engine.submit(request, foreign), "blocks of")
        refused(lambda: engine.submit(request, record._replace(tokens=99)), "99 tokens")
        engine.submit(request, record)
        for event in engine.run_turn(Plan(model="m", incoming=("x",), prefill_chunk_tokens=7)):
            if event.kind is EventKind.PREFILLED:
                engine.stop()
        engine.check_integrity()
        found = tokens_of(turn(engine, "m", incoming=("x",)))["x"]
        assert found == alone(llama, list(range(5, 45)), 4)


def test_a_prompt_longer_than_the_kv_is_refused_and_a_long_answer_ends_there(llama):
    with engine_of({"m": llama}, kv_bytes=1 << 14) as engine:  # 64 tokens
        refused(lambda: engine.submit(ask("x", "m", [5] * 64, 4)), "engine.kv_bytes has room for")
        engine.submit(ask("x", "m", [5] * 50, 10**9, ignore_eos=True))
        events = turn(engine, "m", prefill=("x",))
        assert len(tokens_of(events)["x"]) == 14
        assert [e.ending for e in events if e.kind is EventKind.FINISHED] == [Ending.LENGTH]


def test_kv_that_has_no_room_to_come_in_waits_for_another_turn(llama):
    with engine_of({"m": llama}, kv_bytes=1 << 14) as engine:
        events = []
        for name in "xy":
            engine.submit(ask(name, "m", [5] * 40, 5, ignore_eos=True))
            moves_out = name == "x"
            events += turn(engine, "m", prefill=(name,), decodes=False, moves_out=moves_out)
        stuck = turn(engine, "m", incoming=("x",))
        assert stuck[-1].requests == ("x",)
        events += turn(engine, "m", batch=("y",))
        events += turn(engine, "m", incoming=("x",))
        assert tokens_of(events) == dict.fromkeys("xy", alone(llama, [5] * 40, 5))


def test_a_closed_engine_refuses_and_may_be_closed_again(llama):
    with engine_of({"m": llama}) as engine:
        engine.submit(ask("x", "m", PROMPT, 3))
        engine.close()
        engine.close()
        refused(lambda: turn(engine, "m", prefill=("x",)), "the engine is closed")
        refused(lambda: engine.submit(ask("y", "m", PROMPT, 3)), "the engine is closed")
        refused(lambda: engine.prefetch("m"), "the engine is closed")


@pytest.mark.parametrize("nbytes", [-1, 0, 100, 1 << 60])
def test_host_kv_of_no_sensible_size_is_refused(nbytes):
    refused(lambda: HostKv.create(nbytes), f"engine.host_kv_bytes is {nbytes}")


def test_kv_too_small_for_a_block_is_refused(llama):
    def small():
        with engine_of({"m": llama}, kv_bytes=1 << 11):
            pass

    refused(small, "engine.host_kv_bytes")


def test_a_request_whose_turn_was_given_up_at_its_last_token_gets_no_more(llama):
    with engine_of({"m": llama}) as engine:
        engine.submit(ask("x", "m", PROMPT, 1, ignore_eos=True))
        for event in engine.run_turn(Plan(model="m", prefill=("x",))):
            if event.kind is EventKind.PREFILLED:
                break
        del event
        events = turn(engine, "m", batch=("x",))
        assert not tokens_of(events)
        assert [e.ending for e in events if e.kind is EventKind.FINISHED] == [Ending.LENGTH]
