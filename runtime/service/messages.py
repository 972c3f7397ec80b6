"""What the processes of the service say to each other: plain data, msgpack on the wire.

HTTP <-> controller: Ask, Drop, Call; Tokens, Ended, Reply. Controller <-> worker: Submit, Forget,
Load, MoveOut, Order, Return, Close; Hello, Report. Request ids are the controller's numbers, given
by the HTTP side in rising order; tokens are ids of the model's vocabulary; times are seconds.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Any

from msgspec import Struct

from runtime.core import EventKind, Stage

# HTTP -> controller


class Sampled(Struct, frozen=True, kw_only=True):
    """How tokens are chosen: the fields of `runtime.engine.sampling.Sampling`."""

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    seed: int = 0
    logprobs: int | None = None


class Ask(Struct, frozen=True, kw_only=True, tag=True):
    """A request. `client`: the name of its key, as the log states it."""

    id: int
    request_id: str  # what the client sees and the logs say
    model: str
    prompt: tuple[int, ...]
    max_tokens: int
    sampling: Sampled = Sampled()
    stop_tokens: tuple[int, ...] = ()
    stop_strings: tuple[str, ...] = ()
    ignore_eos: bool = False
    priority: int = 0
    client: str = ""
    session: str = ""
    timeout_s: float | None = None  # None: the server's


class Drop(Struct, frozen=True, kw_only=True, tag=True):
    """The client of a request has gone."""

    id: int


class Call(Struct, frozen=True, kw_only=True, tag=True):
    """An operator's wish, or a question (`state`, `metrics`, `policies`...): see `operations`."""

    call: int
    name: str
    arguments: dict[str, Any] = {}
    by: str = ""


# controller -> HTTP


class Logprob(Struct, frozen=True, array_like=True):
    """Of one token: its own, and the likeliest as (token, logprob)."""

    own: float
    top: tuple[tuple[int, float], ...] = ()


class Tokens(Struct, frozen=True, kw_only=True, tag=True):
    """One boundary: the next token of each request."""

    ids: tuple[int, ...]
    tokens: tuple[int, ...]
    logprobs: tuple[Logprob | None, ...] = ()


class End(StrEnum):
    """Why a request is over."""

    STOP = "stop"
    LENGTH = "length"
    CANCELLED = "cancelled"
    SHED = "shed"  # the queue is full: 429
    TIMEOUT = "timeout"  # no first token within the limit: 504
    REFUSED = "refused"  # it cannot be served as asked: 400
    FAILED = "failed"  # ours: 500
    DRAINING = "draining"  # 503


class Ended(Struct, frozen=True, kw_only=True, tag=True):
    id: int
    end: End
    reason: str = ""  # one line, when it was not served
    retry_after_s: float | None = None


class Reply(Struct, frozen=True, kw_only=True, tag=True):
    """`error`: one line for the operator; None when `value` is the answer."""

    call: int
    value: Any = None
    error: str | None = None


FromHttp = Ask | Drop | Call
ToHttp = Tokens | Ended | Reply


# controller -> worker


class Record(Struct, frozen=True, array_like=True):
    """Where KV lies in the node's host memory: `runtime.engine.host_kv.HostRecord`."""

    block_bytes: int
    tokens: int
    offsets: tuple[int, ...]


class Submit(Struct, frozen=True, kw_only=True, tag=True):
    """A request that this instance will work on; `output` are tokens it has already."""

    ask: Ask
    output: tuple[int, ...] = ()
    record: Record | None = None  # None: its KV is nowhere, it is prefilled or recomputed


class Forget(Struct, frozen=True, kw_only=True, tag=True):
    """Requests that ended, or went elsewhere: their device KV is free."""

    ids: tuple[int, ...]


class Load(Struct, frozen=True, kw_only=True, tag=True):
    """Load weights beside the models in `kept`; all others leave, a load under way is dropped."""

    model: str
    kept: tuple[str, ...] = ()


class MoveOut(Struct, frozen=True, kw_only=True, tag=True):
    """KV of these requests to host memory, in order. `leases`: offsets of each, in host memory,
    as many as it may need; empty: there is no room, its KV is dropped."""

    ids: tuple[int, ...]
    block_bytes: int
    leases: tuple[tuple[int, ...], ...]


class Order(Struct, frozen=True, kw_only=True, tag=True):
    """One stage of a turn, at a token boundary; the worker reports its end and waits.

    COMMANDED: weights in place and bound (SWITCHED). KV_IN: KV of `ids` comes in (KV_IN_DONE).
    PREFILL: one call over the prompts of `ids`, or a chunk of `chunk_tokens` of the first
    (PREFILLED). DECODE: steps of the batch `ids` until one ends, `steps` are done, `quota_s` is
    used up or a Return comes (STEPS each). ENDING: nothing is left to do (TURN_ENDED).
    """

    serial: int  # rises with each order to an instance
    stage: Stage
    model: str
    ids: tuple[int, ...] = ()
    chunk_tokens: int = 0
    steps: int = 0
    quota_s: float = 0.0


class Return(Struct, frozen=True, kw_only=True, tag=True):
    """End the decode run of this order at its next step."""

    serial: int


class Close(Struct, frozen=True, kw_only=True, tag=True):
    """Finish and exit."""


# worker -> controller


class ModelCost(Struct, frozen=True, kw_only=True):
    """Measured at start-up: seconds, as the columns of `runtime.pool.state.COST`."""

    prefill_s: float
    prefill_token_s: float
    decode_s: float
    decode_context_s: float
    decode_batch_s: float


class Hello(Struct, frozen=True, kw_only=True, tag=True):
    """The instance is up. `costs`: only where the controller asked to have them measured."""

    epoch: int
    pid: int
    device: str
    device_bytes: int
    costs: dict[str, ModelCost] = {}


class Report(Struct, frozen=True, kw_only=True, tag=True):
    """An event of the core, as it happened. `epoch`: of the instance; stale ones are dropped.

    PREFILLED and STEPS carry one token for each of `ids`; `first` is the index of that token in the
    request's output. `ended` names those for which it was the last. `goes_on`: the next step has
    begun already, no decision of the core takes effect before a report without it.
    """

    epoch: int
    kind: EventKind
    serial: int = 0  # of the order; 0: WEIGHTS_READY and KV_OUT_DONE belong to none
    seconds: float = 0.0
    ids: tuple[int, ...] = ()
    first: tuple[int, ...] = ()
    tokens: tuple[int, ...] = ()
    logprobs: tuple[Logprob | None, ...] = ()
    ended: dict[int, End] = {}
    goes_on: bool = False
    model: str = ""  # WEIGHTS_READY
    records: tuple[Record | None, ...] = ()  # KV_OUT_DONE: of each; None: dropped


class Broken(Struct, frozen=True, kw_only=True, tag=True):
    """The worker gives up: one line why. Its process ends."""

    epoch: int
    reason: str


ToWorker = Submit | Forget | Load | MoveOut | Order | Return | Close
FromWorker = Hello | Report | Broken
