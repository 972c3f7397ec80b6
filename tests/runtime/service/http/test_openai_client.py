"""The `openai` client gets what it asks for, streaming and not."""

from __future__ import annotations

import openai
import pytest
from http_rig import Served


def test_completions_say_what_the_controller_says(client: openai.OpenAI) -> None:
    answer = client.completions.create(model="tiny/a", prompt="héllo", max_tokens=6)
    assert answer.choices[0].text == "héllo"
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (6, 6)


def test_streams_of_completions_join_to_the_same_text_and_end_with_usage(
    client: openai.OpenAI,
) -> None:
    stream = client.completions.create(
        model="tiny/a",
        prompt="héllo ",
        max_tokens=14,
        stream=True,
        stream_options={"include_usage": True},
    )
    *chunks, last = list(stream)
    assert "".join(chunk.choices[0].text for chunk in chunks) == "héllo héllo "
    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices[0].finish_reason]
    assert last.choices == []
    assert last.usage is not None
    assert last.usage.completion_tokens == 14
    assert all(chunk.usage is None for chunk in chunks)


@pytest.mark.parametrize("kind", ["completions", "chat"])
def test_each_event_says_how_many_tokens_there_are_where_asked(
    client: openai.OpenAI, kind: str
) -> None:
    options = {"include_usage": True, "continuous_usage_stats": True}
    asked = {"model": "tiny/a", "max_tokens": 9, "stream": True, "stream_options": options}
    if kind == "chat":
        messages = [{"role": "user", "content": "hi"}]
        stream = client.chat.completions.create(messages=messages, **asked)  # type: ignore[call-overload]
    else:
        stream = client.completions.create(prompt="hello", **asked)  # type: ignore[call-overload]
    *chunks, last = list(stream)
    counts = [chunk.usage.completion_tokens for chunk in chunks if chunk.usage is not None]
    assert counts == sorted(counts)
    assert len(counts) >= len(chunks) - 1  # the opening of a chat has no token
    assert counts[-1] == last.usage.completion_tokens > 0


def test_chats_go_through_the_template_of_the_model(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model="tiny/a", messages=[{"role": "user", "content": "hi"}], max_completion_tokens=9
    )
    message = answer.choices[0].message
    assert message.role == "assistant"
    assert message.content == "user: hi"  # BOS is special and has no text


def test_streams_of_chats_open_with_the_role(client: openai.OpenAI) -> None:
    stream = client.chat.completions.create(
        model="tiny/a",
        messages=[{"role": "user", "content": [{"type": "text", "text": "hi"}]}],
        max_tokens=9,
        stream=True,
    )
    chunks = list(stream)
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == "user: hi"
    assert chunks[-1].choices[0].finish_reason == "length"


@pytest.mark.parametrize("is_stream", [False, True])
def test_choices_are_as_many_as_asked_each_with_a_seed_of_its_own(
    server: Served, client: openai.OpenAI, is_stream: bool
) -> None:
    before = len(server.controller.asks)
    answer = client.completions.create(
        model="tiny-b", prompt=["ab", "cd"], n=2, seed=7, max_tokens=2, stream=is_stream
    )
    chunks = list(answer) if is_stream else [answer]
    texts = dict.fromkeys(range(4), "")
    for chunk in chunks:
        for choice in chunk.choices:
            texts[choice.index] += choice.text
    assert list(texts.values()) == ["ab", "ab", "cd", "cd"]
    asks = server.controller.asks[before:]
    assert [ask.sampling.seed for ask in asks] == [7, 8, 7, 8]
    assert len({ask.request_id for ask in asks}) == 4


@pytest.mark.parametrize("is_stream", [False, True])
def test_stop_strings_end_a_text_before_them(client: openai.OpenAI, is_stream: bool) -> None:
    answer = client.completions.create(
        model="tiny/a", prompt="one two three", stop=["o th"], max_tokens=99, stream=is_stream
    )
    chunks = list(answer) if is_stream else [answer]
    assert "".join(chunk.choices[0].text for chunk in chunks) == "one tw"
    assert chunks[-1].choices[0].finish_reason == "stop"


def test_sampling_priority_and_session_reach_the_controller(
    server: Served, client: openai.OpenAI
) -> None:
    client.completions.create(
        model="tiny/a",
        prompt=[1, 2, 3],
        temperature=0.5,
        top_p=0.9,
        max_tokens=3,
        user="u",
        extra_body={
            "top_k": 5,
            "min_p": 0.1,
            "repetition_penalty": 1.1,
            "ignore_eos": True,
            "priority": 3,
            "stop_token_ids": [9],
        },
        extra_headers={"x-request-id": "mine-1"},
    )
    ask = server.controller.asks[-1]
    assert ask.prompt == (1, 2, 3)
    sampling = ask.sampling
    assert (sampling.temperature, sampling.top_p, sampling.top_k) == (0.5, 0.9, 5)
    assert (sampling.min_p, sampling.repetition_penalty) == (0.1, 1.1)
    assert (ask.ignore_eos, ask.priority, ask.stop_tokens, ask.session) == (True, 3, (9,), "u")
    assert ask.request_id == "mine-1"


@pytest.mark.parametrize("is_stream", [False, True])
def test_logprobs_of_a_chat_name_tokens_bytes_and_the_likeliest(
    client: openai.OpenAI, is_stream: bool
) -> None:
    answer = client.chat.completions.create(
        model="tiny/a",
        messages=[{"role": "user", "content": "hi"}],
        max_tokens=3,
        logprobs=True,
        top_logprobs=2,
        stream=is_stream,
    )
    chunks = list(answer) if is_stream else [answer]
    entries = []
    for chunk in chunks:
        logprobs = chunk.choices[0].logprobs
        entries += (logprobs.content or []) if logprobs is not None else []
    assert [entry.token for entry in entries][1:] == ["u", "s"]
    assert entries[1].bytes == [ord("u")]
    assert entries[1].logprob == -0.5
    assert [top.token for top in entries[1].top_logprobs] == ["u", "v"]


def test_logprobs_of_a_completion_say_where_each_token_begins(client: openai.OpenAI) -> None:
    answer = client.completions.create(model="tiny/a", prompt="abc", max_tokens=3, logprobs=1)
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.tokens == ["a", "b", "c"]
    assert logprobs.text_offset == [0, 1, 2]
    assert logprobs.top_logprobs == [{"a": -0.5}, {"b": -0.5}, {"c": -0.5}]


def test_echo_puts_the_prompt_before_the_text(client: openai.OpenAI) -> None:
    answer = client.completions.create(model="tiny/a", prompt="ab", max_tokens=2, echo=True)
    assert answer.choices[0].text == "abab"


def test_a_chat_without_a_limit_may_fill_the_context(server: Served, client: openai.OpenAI) -> None:
    client.chat.completions.create(
        model="tiny/a", messages=[{"role": "user", "content": "hi"}], stop="user"
    )
    ask = server.controller.asks[-1]
    assert len(ask.prompt) + ask.max_tokens == 512


def test_models_are_listed_and_found_by_names_with_slashes(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["tiny/a", "tiny-b", "bare"]
    assert client.models.retrieve("tiny/a").id == "tiny/a"


def test_long_prompts_are_tokenized_as_short_ones(server: Served, client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="20000 tokens: expected 511 at most"):
        client.completions.create(model="tiny/a", prompt="x" * 20_000)


ENDINGS = [
    ("!shed", 429, openai.RateLimitError),
    ("!timeout", 504, openai.InternalServerError),
    ("!refused", 400, openai.BadRequestError),
    ("!failed", 500, openai.InternalServerError),
    ("!draining", 503, openai.InternalServerError),
    ("!cancelled", 503, openai.InternalServerError),
]


@pytest.mark.parametrize("is_stream", [False, True])
@pytest.mark.parametrize(("prompt", "status", "kind"), ENDINGS)
def test_requests_that_are_not_served_get_a_status(
    client: openai.OpenAI,
    prompt: str,
    status: int,
    kind: type[openai.APIStatusError],
    is_stream: bool,
) -> None:
    with pytest.raises(kind) as caught:
        client.completions.create(model="tiny/a", prompt=prompt, stream=is_stream)
    assert caught.value.status_code == status
    waits = {"!shed": "8", "!draining": "8", "!cancelled": "1"}
    assert caught.value.response.headers.get("retry-after") == waits.get(prompt)
    assert prompt[1:] in str(caught.value)


def test_a_stream_that_breaks_ends_with_an_error(client: openai.OpenAI) -> None:
    stream = client.completions.create(model="tiny/a", prompt="!broken", max_tokens=9, stream=True)
    with pytest.raises(openai.APIError, match="it broke"):
        list(stream)
