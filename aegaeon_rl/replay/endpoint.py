"""The endpoint before the load: which models it has, how it is asked, how it counts words."""

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
import numpy as np

from aegaeon_rl.replay.answer import Answer, error_text
from aegaeon_rl.replay.dialect import (
    Dialect,
    WordCount,
    candidates,
    fitted,
    made_prompt,
)
from aegaeon_rl.replay.spec import ReplaySpec
from aegaeon_rl.replay.wire import Door, GoneError, Response
from runtime.errors import UserError, nearest

PROBE_WORDS = (20, 220)
BUSY = (408, 429, 502, 503, 504)


class Listed(msgspec.Struct):
    class Model(msgspec.Struct):
        id: str

    data: list[Model]


async def exchange(door: Door, request: bytes, timeout_s: float) -> tuple[Response, Answer]:
    """One request. Raises UserError where there is no answer."""
    answer = Answer()
    try:
        async with asyncio.timeout(timeout_s):
            connection = await door.take(fresh=True)
            response = await connection.ask(request, answer.feed)
    except TimeoutError:
        raise UserError(
            f"replay.url={door.parts.geturl()}: no answer within {timeout_s:g} s"
        ) from None
    except (OSError, GoneError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(
            f"replay.url={door.parts.geturl()}: {reason}: expected an OpenAI endpoint"
        ) from None
    connection.close()
    if response.status in (401, 403):
        raise UserError(
            f"replay.key_env: the endpoint answers {response.status} ({error_text(response.body)}):"
            " expected the name of an environment variable that holds its API key"
        )
    return response, answer


async def served_models(door: Door) -> list[str]:
    """Raises UserError where /v1/models does not list any."""
    response, _ = await exchange(door, door.request("/v1/models"), 30.0)
    try:
        if response.status != 200:
            raise ValueError(f"status {response.status} {error_text(response.body)}")
        names = [model.id for model in msgspec.json.decode(response.body, type=Listed).data]
    except ValueError as error:
        raise UserError(
            f"replay.url={door.parts.geturl()}: /v1/models: {error}: expected a list of models"
        ) from None
    if not names:
        raise UserError(f"replay.url={door.parts.geturl()}: it serves no model")
    return names


def dealt(
    given: Mapping[str, str] | None, trace_models: Sequence[str], served: Sequence[str]
) -> list[str]:
    """The endpoint's model for each of the trace's: as given, else the one of its name, else (when
    one name is unknown) round robin in order of first appearance. Raises UserError."""
    if given is None:
        if set(trace_models) <= set(served):
            return list(trace_models)
        return [served[i % len(served)] for i in range(len(trace_models))]
    for name in trace_models:
        if name not in given:
            raise UserError(f"replay.models: no entry for {name!r} of the trace")
    for name, target in given.items():
        if target not in served:
            raise UserError(f"replay.models.{name}={target}: {nearest(target, served)}")
    return [given[name] for name in trace_models]


async def find_dialect(door: Door, spec: ReplaySpec, model: str) -> Dialect:
    """The first way of asking that the endpoint answers with a stream. Raises UserError."""
    refusal = ""
    rng = np.random.default_rng(0)
    for dialect in candidates(spec):
        body = dialect.body(model, made_prompt(dialect, 8, WordCount(), rng), 2)
        request = door.request(dialect.path, body)
        for wait_s in (0.5, 1.0, 2.0, 4.0):
            response, answer = await exchange(door, request, spec.timeout_s)
            if response.status not in BUSY:
                break
            await asyncio.sleep(wait_s)
        counts_ids = not dialect.by_ids or answer.usage.prompt_tokens in (None, 8, 9)
        if response.status == 200 and answer.at_s and answer.error is None and counts_ids:
            return dialect
        reason = answer.error or error_text(response.body) or "no stream of tokens"
        refusal = f"{dialect.path}: status {response.status}, {reason}"
    raise UserError(f"replay.url={spec.url}: model {model}: {refusal}")


async def count_words(
    door: Door, spec: ReplaySpec, dialect: Dialect, models: Sequence[str]
) -> dict[str, WordCount]:
    """How each model counts words, by two prompts; as one token each where it does not say."""
    counts: dict[str, WordCount] = {}
    rng = np.random.default_rng(1)
    for model in models:
        tokens: list[Any] = []
        for words in PROBE_WORDS if not dialect.by_ids and dialect.has_usage else ():
            body = dialect.body(model, made_prompt(dialect, words, WordCount(), rng), 1)
            _, answer = await exchange(door, door.request(dialect.path, body), spec.timeout_s)
            tokens.append(answer.usage.prompt_tokens)
        is_told = len(tokens) == 2 and None not in tokens
        counts[model] = fitted(PROBE_WORDS, tokens) if is_told else WordCount()
    return counts
