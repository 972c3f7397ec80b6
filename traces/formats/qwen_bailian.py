"""Qwen-Bailian traces (JSON Lines), github.com/alibaba-edu/qwen-bailian-usagetraces-anon.

One model, seconds, blocks of 16 tokens. A chat names the one that it continues; a session is the
first of such a chain. A parent that the file does not have starts a session of its own.
"""

import pyarrow as pa

from traces.formats.format import Derive, Format
from traces.mapping import ColumnMap, TimeUnit


def sessions() -> Derive:
    """Adds `:session`: the chat that a request's chain began with; state is a number per chat."""
    root_of: dict[str, str] = {}

    def derive(table: pa.Table) -> pa.Table:
        pairs = zip(table["chat_id"].to_pylist(), table["parent_chat_id"].to_pylist(), strict=True)
        roots: list[str | None] = []
        for chat, parent in pairs:
            has_parent = parent is not None and parent != "-1"
            root = root_of.get(parent, parent) if has_parent else chat
            if chat is not None and root is not None:
                root_of[chat] = root
            roots.append(root)
        return table.append_column(":session", pa.array(roots, pa.string()))

    return derive


QWEN_BAILIAN = Format(
    name="qwen_bailian",
    columns=ColumnMap(
        arrival_s="timestamp",
        prompt_tokens="input_length",
        output_tokens="output_length",
        session=":session",
        prefix_blocks="hash_ids",
        unit=TimeUnit.S,
        drop_empty=True,
    ),
    needs=("chat_id", "parent_chat_id", "timestamp", "input_length", "output_length"),
    block_tokens=16,
    derive=sessions,
    derived={":session": ("chat_id", "parent_chat_id")},
)
