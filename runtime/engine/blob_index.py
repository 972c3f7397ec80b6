"""What a blob's bytes are: the JSON index beside them, checked whole before anything is read.

A blob is one array of bytes. Tensors start at multiples of 256 bytes, the whole is a multiple of
4096; tied weights are stored once and named under `tied`.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch

from runtime.errors import UserError, nearest

VERSION = 1
TENSOR_ALIGNMENT = 256  # bytes
BLOB_ALIGNMENT = 4096
CHUNK_BYTES = 64 << 20  # of one checksum
MAX_DIMENSIONS = 8
DTYPES = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in (
        torch.bfloat16,
        torch.float16,
        torch.float32,
        torch.float64,
        torch.float8_e4m3fn,
        torch.float8_e5m2,
        torch.uint8,
        torch.int8,
        torch.int32,
        torch.int64,
        torch.bool,
    )
}
KEYS = ("version", "config", "dtype", "nbytes", "chunk_bytes", "sha256", "tensors", "tied")
TENSOR_KEYS = ("offset", "shape", "dtype", "shard_dim", "shard_of")


class TensorSpec(NamedTuple):
    """Where a tensor is. `shard_dim`: the dimension tensor parallelism would split (None: every
    rank holds it whole); `shard_of`: into how many parts it is split already (1: whole)."""

    offset: int
    shape: tuple[int, ...]
    dtype: torch.dtype
    shard_dim: int | None = None
    shard_of: int = 1

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


@dataclasses.dataclass(frozen=True, slots=True)
class BlobIndex:
    """A model's config (as its config.json), its tensors by name, and checksums of its chunks."""

    config: dict[str, Any]
    dtype: torch.dtype  # of the model; single tensors may differ
    nbytes: int
    tensors: dict[str, TensorSpec]
    tied: dict[str, str]  # name -> the name it shares bytes with
    sha256: tuple[str, ...] = ()  # of each chunk
    chunk_bytes: int = CHUNK_BYTES

    def views(self, memory: torch.Tensor) -> dict[str, torch.Tensor]:
        """Every tensor, tied names included, as views into `memory` (uint8, nbytes or more)."""
        found = {name: view(memory, spec) for name, spec in self.tensors.items()}
        return found | {name: found[owner] for name, owner in self.tied.items()}

    def chunks(self) -> list[tuple[int, int]]:
        """(start, stop) of each checksummed chunk."""
        step = self.chunk_bytes
        return [(i, min(i + step, self.nbytes)) for i in range(0, self.nbytes, step)]

    def text(self) -> str:
        """As JSON, with a checksum of its own."""
        body = {
            "version": VERSION,
            "config": self.config,
            "dtype": name_of(self.dtype),
            "nbytes": self.nbytes,
            "chunk_bytes": self.chunk_bytes,
            "sha256": list(self.sha256),
            "tensors": {n: dict(_tensor_items(spec)) for n, spec in self.tensors.items()},
            "tied": self.tied,
        }
        return json.dumps(body | {"index_sha256": digest(body)}, indent=1) + "\n"


def view(memory: torch.Tensor, spec: TensorSpec) -> torch.Tensor:
    """The tensor of `spec` within `memory`, sharing its bytes."""
    return memory[spec.offset : spec.offset + spec.nbytes].view(spec.dtype).view(spec.shape)


def name_of(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def digest(body: Any) -> str:
    """SHA-256 of the canonical JSON of `body`."""
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


def laid_out(
    config: dict[str, Any],
    dtype: torch.dtype,
    shapes: Mapping[str, tuple[tuple[int, ...], torch.dtype]],
    tied: Mapping[str, str],
    shard_dims: Mapping[str, int],
) -> BlobIndex:
    """Tensors one after another in the order given; no checksums yet."""
    tensors, end = {}, 0
    for name, (shape, kind) in shapes.items():
        spec = TensorSpec(rounded(end, TENSOR_ALIGNMENT), shape, kind, shard_dims.get(name))
        tensors[name] = spec
        end = spec.offset + spec.nbytes
    return BlobIndex(
        config, dtype, rounded(max(end, 1), BLOB_ALIGNMENT), tensors, dict(tied), (), CHUNK_BYTES
    )


def rounded(nbytes: int, alignment: int) -> int:
    """`nbytes` rounded up to a multiple of `alignment`."""
    return -(-nbytes // alignment) * alignment


def parsed(text: bytes, where: str) -> BlobIndex:
    """The index in `text`; UserError, naming `where` and the key, for anything but a sound one."""
    try:
        body = json.loads(text, object_pairs_hook=_unique)
        stated = body.pop("index_sha256", None) if isinstance(body, dict) else None
        found = digest(body)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where}: not JSON ({error or 'too deep'})") from error
    if not isinstance(body, dict):
        raise UserError(f"{where}: a list or a value: expected an object")
    if body.get("version") != VERSION:
        raise UserError(
            f"{where}: version is {body.get('version')!r:.40}: expected {VERSION}; convert again"
        )
    _keys(body, KEYS, where)
    if found != stated:
        raise UserError(f"{where}: its checksum does not fit: damaged or edited; convert again")
    return _index(body, where)


def _index(body: dict[str, Any], where: str) -> BlobIndex:
    nbytes = _count(body["nbytes"], f"{where}: nbytes", multiple=BLOB_ALIGNMENT, least=1)
    chunk = _count(body["chunk_bytes"], f"{where}: chunk_bytes", multiple=BLOB_ALIGNMENT, least=1)
    sums = body["sha256"]
    if not isinstance(sums, list) or len(sums) != -(-nbytes // chunk):
        raise UserError(f"{where}: sha256: expected a list of {-(-nbytes // chunk)} checksums")
    if not all(isinstance(s, str) and len(s) == 64 for s in sums):
        raise UserError(f"{where}: sha256: expected texts of 64 hexadecimal digits")
    tensors = {
        name: _tensor(row, nbytes, f"{where}: tensor {name!r:.80}")
        for name, row in _object(body["tensors"], f"{where}: tensors").items()
    }
    _disjoint(tensors, where)
    tied = _object(body["tied"], f"{where}: tied")
    for name, owner in tied.items():
        if name in tensors or not isinstance(owner, str) or owner not in tensors:
            raise UserError(f"{where}: tied {name!r:.80} to {owner!r:.80}: expected a tensor")
    config = _object(body["config"], f"{where}: config")
    dtype = _dtype(body["dtype"], f"{where}: dtype")
    return BlobIndex(config, dtype, nbytes, tensors, tied, tuple(sums), chunk)


def _tensor(row: Any, nbytes: int, where: str) -> TensorSpec:
    _keys(_object(row, where), TENSOR_KEYS, where)
    shape = row["shape"]
    if not isinstance(shape, list) or len(shape) > MAX_DIMENSIONS:
        raise UserError(f"{where}: shape: expected a list of at most {MAX_DIMENSIONS} sizes")
    sizes = tuple(_count(n, f"{where}: shape", least=0) for n in shape)
    dim = row["shard_dim"]
    if dim is not None:
        dim = _count(dim, f"{where}: shard_dim", least=0)
        if dim >= len(sizes):
            raise UserError(f"{where}: shard_dim is {dim}: expected less than {len(sizes)}")
    spec = TensorSpec(
        _count(row["offset"], f"{where}: offset", multiple=TENSOR_ALIGNMENT, least=0),
        sizes,
        _dtype(row["dtype"], f"{where}: dtype"),
        dim,
        _count(row["shard_of"], f"{where}: shard_of", least=1),
    )
    if spec.offset + spec.nbytes > nbytes:
        raise UserError(f"{where}: ends behind the blob's {nbytes} bytes")
    return spec


def _disjoint(tensors: Mapping[str, TensorSpec], where: str) -> None:
    end, before = 0, ""
    for name, spec in sorted(tensors.items(), key=lambda item: (item[1].offset, item[1].nbytes)):
        if spec.nbytes and spec.offset < end:
            raise UserError(f"{where}: tensors {before!r:.80} and {name!r:.80} overlap")
        if spec.nbytes:
            end, before = spec.offset + spec.nbytes, name


def _tensor_items(spec: TensorSpec) -> list[tuple[str, Any]]:
    return [
        ("offset", spec.offset),
        ("shape", list(spec.shape)),
        ("dtype", name_of(spec.dtype)),
        ("shard_dim", spec.shard_dim),
        ("shard_of", spec.shard_of),
    ]


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key comes twice")
    return found


def _keys(body: Mapping[str, Any], expected: tuple[str, ...], where: str) -> None:
    for key in body:
        if key not in expected:
            raise UserError(f"{where}: unknown key {key!r:.80}: {nearest(key, expected)}")
    for key in expected:
        if key not in body:
            raise UserError(f"{where}: no {key}: expected all of {', '.join(expected)}")


def _object(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise UserError(f"{where}: is {value!r:.60}: expected an object")
    return value


def _count(value: Any, where: str, *, least: int, multiple: int = 1) -> int:
    if type(value) is not int or value < least or value % multiple or value >= 1 << 62:
        unit = f"a multiple of {multiple}" if multiple > 1 else "a whole number"
        raise UserError(f"{where}: is {value!r:.60}: expected {unit}, at least {least}")
    return value


def _dtype(value: Any, where: str) -> torch.dtype:
    if not isinstance(value, str) or value not in DTYPES:
        raise UserError(f"{where}: is {value!r:.60}: {nearest(str(value)[:60], DTYPES)}")
    return DTYPES[value]
