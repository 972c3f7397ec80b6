"""A tokenizer whose tokens are bytes: ids 0 to 255, then BOS 256 and EOS 257, which are special."""

from __future__ import annotations

BOS, EOS, VOCAB = 256, 257, 258


class ByteTokenizer:
    chat_template: str | None = "roles"

    def encode(self, text: str) -> list[int]:
        return list(text.encode())

    def decode(self, token_ids: list[int], *, skip_special_tokens: bool = False) -> str:
        special = b"" if skip_special_tokens else b"<s>"
        parts = [bytes([t]) if t < BOS else special for t in token_ids]
        return b"".join(parts).decode("utf-8", "replace")

    def apply_chat_template(
        self,
        conversation: list[dict[str, str]],
        *,
        add_generation_prompt: bool,
        return_dict: bool,
    ) -> list[int]:
        if conversation[-1]["role"] == "assistant":
            raise ValueError("the last message is the assistant's")
        lines = [f"{message['role']}: {message['content']}\n" for message in conversation]
        return [BOS, *"".join(lines).encode(), *b"assistant: "]


class BareTokenizer(ByteTokenizer):
    """Of a model without a chat template."""

    chat_template = None
