"""A model's weights as one array of bytes in host memory that the node shares.

On disk a blob is a folder: `index.json` (runtime.engine.blob_index), `weights.bin`, and whatever
stands beside them (a tokenizer). Nothing is returned before every chunk agrees with its checksum.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from torch import nn

from runtime.engine.blob_index import BlobIndex, laid_out, parsed
from runtime.engine.host_memory import HostMemory, buffer
from runtime.engine.sharding import shard_dims
from runtime.errors import UserError

INDEX_FILE = "index.json"
WEIGHTS_FILE = "weights.bin"
MAX_INDEX_BYTES = 256 << 20
READERS = 4  # threads that read and hash


class Blob:
    """Weights in host memory, and what they are. Read only, once built."""

    def __init__(self, index: BlobIndex, memory: HostMemory) -> None:
        assert memory.nbytes == index.nbytes, f"{memory.nbytes} bytes for {index.nbytes}"
        self.index = index
        self.memory = memory

    @property
    def host(self) -> torch.Tensor:
        """uint8 [nbytes]"""
        return self.memory.bytes

    @property
    def nbytes(self) -> int:
        return self.index.nbytes

    def tensors(self) -> dict[str, torch.Tensor]:
        """Every weight by name, as views into the host memory."""
        return self.index.views(self.host)

    def save(self, folder: Path | str) -> None:
        """Write `weights.bin`, then the index: a folder with an index is whole."""
        target = Path(folder)
        make_folder(target)
        _write(target / WEIGHTS_FILE, buffer(self.host))
        _write(target / INDEX_FILE, memoryview(self.index.text().encode()))

    def close(self) -> None:
        """Give the host memory back; attached processes keep theirs."""
        self.memory.close()


def open_blob(folder: Path | str) -> Blob:
    """Read a folder that `Blob.save` wrote, checksums included.

    Raises UserError, naming the file, for one that is absent, damaged, cut or of another index.
    """
    index = read_index(folder)
    weights = Path(folder) / WEIGHTS_FILE
    try:
        fd = os.open(weights, os.O_RDONLY)
    except OSError as error:
        raise UserError(f"{weights}: {error.strerror}") from error
    try:
        found = os.fstat(fd).st_size
        if found != index.nbytes:
            raise UserError(f"{weights}: has {found} bytes: expected {index.nbytes}, by its index")
        memory = HostMemory.create(index.nbytes, Path(folder).name)
        try:
            _fill(memory.bytes, fd, index, str(weights))
        except BaseException:
            memory.close()
            raise
    finally:
        os.close(fd)
    return Blob(index, memory)


def read_index(folder: Path | str) -> BlobIndex:
    """The checked index of a blob's folder, without its weights."""
    path = Path(folder) / INDEX_FILE
    try:
        if path.stat().st_size > MAX_INDEX_BYTES:
            raise UserError(f"{path}: more than {MAX_INDEX_BYTES} bytes: no index of a blob")
        return parsed(path.read_bytes(), str(path))
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}; expected the folder of a blob") from error


def attach_blob(index_text: bytes, fd: int) -> Blob:
    """The blob of another process: its index as text, its memory by descriptor. No bytes move."""
    index = parsed(index_text, "index passed with the weights")
    return Blob(index, HostMemory.attach(fd, index.nbytes))


def blob_of(model: nn.Module, config: Any = None) -> Blob:
    """The weights of a model in memory; `config` is a dict, or the model's own when left out."""
    config = getattr(model, "config", {}) if config is None else config
    config = config if isinstance(config, dict) else config.to_dict()
    return blob_from(config, model.state_dict(keep_vars=True))


def blob_from(config: dict[str, Any], weights: Mapping[str, torch.Tensor]) -> Blob:
    """Lay weights out, copy them and take their checksums; names of one tensor are tied."""
    owners, tied = _owners(weights)
    shapes = {name: (tuple(w.shape), w.dtype) for name, w in owners.items()}
    floats = [w.dtype for w in owners.values() if w.dtype.is_floating_point]
    dtype = max(set(floats), key=floats.count) if floats else torch.float32
    index = laid_out(_plain(config), dtype, shapes, tied, shard_dims(config, owners))
    memory = HostMemory.create(index.nbytes)
    for name, there in index.views(memory.bytes).items():
        if name in owners:
            there.copy_(owners[name].detach())
    return Blob(dataclasses.replace(index, sha256=_sums(memory.bytes, index)), memory)


def _owners(
    weights: Mapping[str, torch.Tensor],
) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    first: dict[tuple[Any, ...], str] = {}
    owners, tied = {}, {}
    for name, weight in weights.items():
        place = (weight.data_ptr(), weight.shape, weight.stride(), weight.dtype)
        if weight.numel() and place in first:
            tied[name] = first[place]
        else:
            first[place] = name
            owners[name] = weight
    return owners, tied


def _plain(value: Any) -> Any:
    """A config as JSON holds it: dtypes by name, text keys."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, torch.dtype):
        return str(value).removeprefix("torch.")
    return value


def _sums(memory: torch.Tensor, index: BlobIndex) -> tuple[str, ...]:
    data = buffer(memory)
    return tuple(hashlib.sha256(data[start:stop]).hexdigest() for start, stop in index.chunks())


def _fill(memory: torch.Tensor, fd: int, index: BlobIndex, where: str) -> None:
    data = buffer(memory)

    def read(number: int) -> None:
        start, stop = index.chunks()[number]
        _read(fd, data[start:stop], start, where)
        if hashlib.sha256(data[start:stop]).hexdigest() != index.sha256[number]:
            raise UserError(
                f"{where}: bytes {start} to {stop} do not fit their checksum: damaged, or of "
                "another index; convert again"
            )

    with ThreadPoolExecutor(READERS) as readers:
        list(readers.map(read, range(len(index.sha256))))


def _read(fd: int, into: memoryview, offset: int, where: str) -> None:
    while into:
        try:
            count = os.preadv(fd, [into], offset)
        except OSError as error:
            raise UserError(f"{where}: {error.strerror} at byte {offset}") from error
        if count == 0:
            raise UserError(f"{where}: ends at byte {offset}, while it was read")
        into, offset = into[count:], offset + count


def make_folder(path: Path) -> None:
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}; expected a folder, or room for one") from error


def _write(path: Path, data: memoryview) -> None:
    partial = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        partial.write_bytes(data)
        partial.replace(path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise UserError(f"{path}: {error.strerror}") from error
