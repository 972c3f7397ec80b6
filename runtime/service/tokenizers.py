"""The tokenizer that goes with a model's source."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from runtime.errors import UserError
from runtime.service import tiny


def open_tokenizer(path: str) -> Any:
    """The tokenizer of `ModelSource.path`: that of a folder (blob or checkpoint), a GGUF file or
    the bytes of tiny models. Nothing is downloaded, no code of the folder runs.

    Raises UserError, naming the path.
    """
    if tiny.is_tiny(path):
        tiny.parsed(path)
        return tiny.ByteTokenizer()
    source = Path(path).expanduser()
    if not source.exists():
        raise UserError(f"{path}: does not exist; expected a model's folder or a GGUF file")
    from transformers import AutoTokenizer

    folder, keys = (source.parent, {"gguf_file": source.name}) if source.is_file() else (source, {})
    loader: Any = AutoTokenizer
    try:
        return loader.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False, **keys
        )
    except Exception as error:  # whatever a file of unknown origin makes libraries raise
        line = " ".join(str(error).split())[:160]
        raise UserError(f"{path}: no tokenizer ({type(error).__name__}: {line})") from error
