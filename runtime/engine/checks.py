"""What a request must be before an engine knows it."""

from __future__ import annotations

from collections.abc import Container
from numbers import Integral
from typing import TYPE_CHECKING

from runtime.engine.host_kv import HostKv, HostRecord
from runtime.engine.kv import KvSpec
from runtime.engine.plan import Request, RequestId
from runtime.errors import UserError

if TYPE_CHECKING:
    from runtime.engine.engine import Served


def check_request(
    request: Request, served: Served, known: Container[RequestId], kv_tokens: int
) -> None:
    """UserError, naming the request, for one that `served` cannot run in KV of `kv_tokens`."""
    where = f"request {request.id!r}"
    if request.id in known:
        raise UserError(f"{where} is known already: expected another id, or `release` first")
    have = len(request.prompt) + len(request.output)
    context = served.shell.context
    if have >= min(context, kv_tokens):
        bound = (
            f"{request.model}'s context of {context}"
            if context <= kv_tokens
            else f"the {kv_tokens} that engine.kv_bytes has room for"
        )
        raise UserError(f"{where}: its prompt has {have} tokens: expected fewer than {bound}")
    vocab = served.shell.vocab
    for token in (*request.prompt, *request.output):
        if not isinstance(token, Integral) or not 0 <= token < vocab:
            raise UserError(
                f"{where}: its prompt has token {token!r:.60}: expected tokens of 0..{vocab - 1}"
            )
    if request.stop_strings and served.tokenizer is None:
        raise UserError(
            f"{where}: stop_strings={list(request.stop_strings)!r:.80}: expected none, or a "
            f"tokenizer for {request.model}"
        )


def check_record(request: Request, record: HostRecord, spec: KvSpec, host: HostKv | None) -> None:
    """UserError unless `record` may be the KV of this request's first tokens."""
    where = f"request {request.id!r}: its KV record"
    if host is None:
        raise UserError(f"{where}: this engine has no host memory: expected none")
    if record.block_bytes != spec.block_bytes:
        raise UserError(
            f"{where} has blocks of {record.block_bytes} bytes: expected {spec.block_bytes}, "
            f"those of {request.model}"
        )
    most = min(len(request.prompt) + len(request.output), len(record.offsets) * spec.block)
    if not 1 <= record.tokens <= most:
        raise UserError(f"{where} has {record.tokens} tokens: expected 1 to {most}")
    ends = [offset + record.block_bytes for offset in record.offsets]
    if min(record.offsets) < 0 or max(ends) > host.nbytes or len(set(ends)) < len(ends):
        raise UserError(f"{where}: expected distinct blocks within {host.nbytes} bytes")
