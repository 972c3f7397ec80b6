"""Logs of OpenAI-style gateways, one JSON object a request: LiteLLM's, or the API's answers.

LiteLLM writes `startTime` as seconds since 1970 or in ISO 8601 (docs.litellm.ai, logging spec).
The API's `created` has whole seconds, and is the moment at which the answer began.
"""

from traces.formats.format import Format
from traces.mapping import ColumnMap

LITELLM = Format(
    name="litellm",
    columns=ColumnMap(
        arrival_s="startTime",
        model="model",
        prompt_tokens="prompt_tokens",
        output_tokens="completion_tokens",
        session="session_id",
        client="end_user",
        drop_empty=True,
    ),
    failed={"status": frozenset({"failure"})},
)
OPENAI_CHAT = Format(
    name="openai_chat",
    columns=ColumnMap(
        arrival_s="created",
        model="model",
        prompt_tokens="usage.prompt_tokens",
        output_tokens="usage.completion_tokens",
        client="user",
        drop_empty=True,
    ),
)
OPENAI_RESPONSES = Format(
    name="openai_responses",
    columns=ColumnMap(
        arrival_s="created_at",
        model="model",
        prompt_tokens="usage.input_tokens",
        output_tokens="usage.output_tokens",
        client="user",
        drop_empty=True,
    ),
    failed={"status": frozenset({"failed"})},
)
