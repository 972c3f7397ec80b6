"""Mooncake traces (JSON Lines), github.com/kvcache-ai/Mooncake: one model, milliseconds.

`hash_ids` are the prompt's blocks of 512 tokens; equal ids are an equal prefix.
"""

from traces.formats.format import Format
from traces.mapping import ColumnMap, TimeUnit

MOONCAKE = Format(
    name="mooncake",
    columns=ColumnMap(
        arrival_s="timestamp",
        prompt_tokens="input_length",
        output_tokens="output_length",
        prefix_blocks="hash_ids",
        unit=TimeUnit.MS,
        drop_empty=True,
    ),
    block_tokens=512,
)
