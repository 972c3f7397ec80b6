"""The models of a service: their weights from wherever they come, and what follows from these."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from runtime.engine.blob import INDEX_FILE, Blob, open_blob
from runtime.engine.blob_index import BlobIndex
from runtime.engine.convert import DTYPES, blob_from_gguf, blob_from_safetensors
from runtime.engine.kv import KvSpec
from runtime.engine.model import geometry, read_config
from runtime.errors import UserError, nearest
from runtime.service import tiny
from runtime.service.spec import ModelSource


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFacts:
    """What the pool, the HTTP side and the workers must know of a model without its bytes."""

    name: str
    weight_bytes: int
    kv_token_bytes: int
    block_bytes: int
    context_tokens: int
    vocab: int
    architecture: str


def open_source(name: str, source: ModelSource, device: str) -> Blob:
    """The model in host memory. Raises UserError, naming the model, for what is no model."""
    dtype = source.dtype or ("float32" if device == "cpu" else "bfloat16")
    if dtype not in DTYPES:
        raise UserError(f"models.{name}.dtype={dtype:.60}: {nearest(dtype[:60], DTYPES)}")
    try:
        return _opened(source, dtype)
    except UserError as error:
        raise UserError(f"models.{name}: {error}") from error


def _opened(source: ModelSource, dtype: str) -> Blob:
    if tiny.is_tiny(source.path):
        return tiny.tiny_blob(source.path, dtype)
    path = Path(source.path).expanduser()
    if path.is_file():
        return blob_from_gguf(path, dtype)
    if not (path / INDEX_FILE).exists():
        return blob_from_safetensors(path, dtype)
    blob = open_blob(path)
    if source.dtype is not None and blob.index.dtype is not DTYPES[source.dtype]:
        found = str(blob.index.dtype).removeprefix("torch.")
        blob.close()
        raise UserError(f"{path}: is of {found}: expected {source.dtype}; convert it anew")
    return blob


def facts_of(name: str, source: ModelSource, index: BlobIndex, block_tokens: int) -> ModelFacts:
    config = read_config(index.config)
    spec = KvSpec(*geometry(config), index.dtype, block_tokens)
    context = int(getattr(config, "max_position_embeddings", 1 << 31))
    return ModelFacts(
        name=name,
        weight_bytes=index.nbytes,
        kv_token_bytes=spec.token_bytes,
        block_bytes=spec.block_bytes,
        context_tokens=min(context, source.max_tokens or context),
        vocab=int(config.vocab_size),
        architecture=str(index.config["model_type"]),
    )
