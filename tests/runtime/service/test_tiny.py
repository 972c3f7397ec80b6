"""Tiny models and their tokenizer, sources of models."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from runtime.engine.model import Shell
from runtime.errors import UserError
from runtime.service.models import facts_of, open_source
from runtime.service.spec import ModelSource
from runtime.service.tiny import ARCHITECTURES, BOS, EOS, PRINTABLE, ByteTokenizer, tiny_blob
from runtime.service.tokenizers import open_tokenizer

TOKENIZER = ByteTokenizer()


@given(st.text())
def test_byte_tokenizer_gives_every_text_back(text: str) -> None:
    assert TOKENIZER.decode(TOKENIZER.encode(text), skip_special_tokens=True) == text


def test_byte_tokenizer_renders_a_chat_with_a_mark_for_each_role() -> None:
    chat = [{"role": "system", "content": "a"}, {"role": "user", "content": "<eos>"}]
    tokens = TOKENIZER.apply_chat_template(chat, add_generation_prompt=True, return_dict=False)
    assert TOKENIZER.decode(tokens) == "<bos><|system|>a<|user|><eos><|assistant|>"
    assert EOS not in tokens
    with pytest.raises(ValueError, match="role 'robot'"):
        TOKENIZER.apply_chat_template([{"role": "robot", "content": ""}])


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_tiny_model_says_printable_text_and_is_the_same_each_time(kind: str) -> None:
    first, second = (open_source("m", ModelSource(path=f"tiny:{kind}:3"), "cpu") for _ in "ab")
    other = tiny_blob(f"tiny:{kind}:4", "float32")
    assert first.index.sha256 == second.index.sha256 != other.index.sha256
    shell = Shell(first.index.config, torch.float32, "cpu", attention="eager")
    shell.bind("m", first.tensors)
    with torch.inference_mode():
        prompt = torch.tensor([TOKENIZER.encode("hello")])
        said = shell.module.generate(prompt, max_new_tokens=8, do_sample=False)[0, 6:].tolist()
    assert set(said) <= {*PRINTABLE, EOS}
    facts = facts_of("m", ModelSource(path="x", max_tokens=64), first.index, 16)
    assert (facts.context_tokens, facts.vocab) == (64, 262)
    for blob in (first, second, other):
        blob.close()


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("tiny:lama:0", "llama"),
        ("tiny:llama:x", "whole number"),
        ("/nowhere/model", "expected a"),
    ],
)
def test_unknown_sources_are_refused_in_one_line(path: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        open_tokenizer(path)
    with pytest.raises(UserError, match=r"models\.m: ") as error:
        open_source("m", ModelSource(path=path), "cpu")
    assert "\n" not in str(error.value)


def test_tiny_tokenizer_opens_by_its_path() -> None:
    assert open_tokenizer("tiny:llama:0").encode("")[0] == BOS
