"""`ReplaySpec`: which endpoint, how its prompts are made, how long one waits. conf/replay.yaml."""

from dataclasses import dataclass
from enum import StrEnum
from urllib.parse import urlsplit

from runtime.core import check_within
from runtime.errors import UserError


class Api(StrEnum):
    AUTO = "auto"  # the first that the endpoint takes
    COMPLETIONS = "completions"
    CHAT = "chat"


class Prompts(StrEnum):
    AUTO = "auto"  # token ids where the endpoint takes them, else words
    TOKENS = "tokens"
    WORDS = "words"


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplaySpec:
    url: str = "http://127.0.0.1:8000"  # with or without /v1
    key_env: str | None = None  # the environment variable that holds the API key
    models: dict[str, str] | None = None  # the trace's -> the endpoint's; null: see dealt()
    api: Api = Api.AUTO
    prompts: Prompts = Prompts.AUTO
    output_tokens: int | None = None  # at most; null: as the trace has it
    prompt_tokens: int | None = None  # at most
    timeout_s: float = 600.0  # of one request, from its arrival
    give_up_s: float = 15.0  # nothing more is sent once no connection was made for so long

    def __post_init__(self) -> None:
        parts = urlsplit(self.url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise UserError(f"replay.url={self.url}: expected http://HOST:PORT")
        try:
            _ = parts.port
        except ValueError:
            raise UserError(f"replay.url={self.url}: expected a port up to 65535") from None
        check_within("replay.timeout_s", self.timeout_s, 0.001, 86_400)
        check_within("replay.give_up_s", self.give_up_s, 0, 86_400)
        for name in ("output_tokens", "prompt_tokens"):
            value = getattr(self, name)
            if value is not None:
                check_within(f"replay.{name}", value, 1, 1e9)
        if self.api is Api.CHAT and self.prompts is Prompts.TOKENS:
            raise UserError("replay.prompts=tokens: a chat has words; did you mean words?")
