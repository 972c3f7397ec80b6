"""The nouns of the reference emulator. Times are ns, memory is bytes."""

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import IntEnum
from typing import NamedTuple

from runtime.core import NONE, NS, KvPlace, Phases, RequestPhase, Stage

ON_HOST = (KvPlace.HOST, KvPlace.MOVING_OUT, KvPlace.MOVING_IN)
LEAST_CREDITED_SWITCH_NS = NS // 100
ENDLESS_NS = 1 << 62
STARVING = 1 << 20  # ranks above every priority
MOST_EVENTS = 100_000


class StuckError(RuntimeError):
    """Requests wait and nothing is pending."""


class Where(IntEnum):
    """Who holds a request."""

    NOBODY = 0  # not there yet, or ended
    ROUTER = 1
    OPEN = 2  # any turn may take it
    TURN = 3
    WAY_OUT = 4  # its KV moves to the host, or waits for room there


class Cost(NamedTuple):
    """Seconds, as in a profile; `table` are pairs (batch, seconds) that replace `decode_batch`."""

    prefill: float
    prefill_token: float
    prefill_token2: float
    decode: float
    decode_context: float
    decode_batch: float
    table: tuple[tuple[float, float], ...]


class Slo(NamedTuple):
    ttft_ns: int
    tbt_ns: int


class Outside(NamedTuple):
    """A cancelled request (by id), or an instance that fails or returns."""

    time_ns: int
    kind: int
    which: int


class Candidate(NamedTuple):
    model: int
    oldest_ns: int  # earliest arrival among its open requests


class Question(NamedTuple):
    """What a policy is asked, with all that it may see; `index` is an instance or a request id."""

    time_ns: int
    kind: int
    index: int
    candidates: tuple[Candidate, ...]
    routes: tuple[int, ...]
    can_idle: bool
    kv_bytes: tuple[int, ...]  # on each device
    host_kv_bytes: tuple[int, ...]  # in the host memory of each node
    residents: tuple[tuple[int, ...], ...]  # models by slot


class Answer(NamedTuple):
    kind: int
    model: int = NONE
    quota_ns: int = ENDLESS_NS
    phases: int = Phases.BOTH
    joins: int = 1
    tag: int = NONE
    instance: int = NONE
    stops: int = 0


class Row(NamedTuple):
    """A row of the journal, as far as it means anything for its kind."""

    time_ns: int
    kind: int
    instance: int = NONE
    id: int = NONE
    model: int = NONE
    n: int = 0
    x: float = 0.0
    y: float = 0.0
    quota_ns: int = 0
    is_fallback: int = 0


Rule = Callable[[Question, int], Answer]  # (question, its number)


@dataclass(slots=True, eq=False)
class Request:
    id: int
    model: int
    arrival_ns: int
    prompt: int
    output: int
    priority: int
    phase: int = RequestPhase.FREE
    where: int = Where.NOBODY
    kv: int = KvPlace.NOWHERE
    instance: int = NONE
    route: int = NONE
    node: int = NONE
    tag: int = NONE
    tokens: list[int] = field(default_factory=list)  # time of each token, ns
    reported: int = 0  # tokens that the scheduler knows of
    partial: int = 0  # tokens of a prefill that chunks left unfinished
    is_cancelled: bool = False

    @property
    def context(self) -> int:
        return self.prompt + self.reported

    @property
    def order(self) -> tuple[int, int, int]:
        return (-self.priority, self.arrival_ns, self.id)


@dataclass(slots=True)
class Slot:
    model: int = NONE
    is_ready: bool = False
    ready_ns: int = 0
    used_ns: int = 0  # when its weights came, or last served a turn
    is_ahead: bool = False  # prefetched, and no turn has used it yet


@dataclass(slots=True)
class Transfer:
    """A load of weights, or KV of n requests."""

    left_ns: int  # alone on its port, from `since_ns` on
    share: float  # of the port, that it could use alone
    since_ns: int  # NONE: it waits for the way in
    n: int = 0


@dataclass(slots=True)
class Work:
    """What an instance computes: a switch, a prefill call, or the next decode step."""

    end_ns: int
    kind: int
    began_ns: int
    n: int = 0  # requests, or decode steps done
    x: float = 0.0
    y: float = 0.0
    room_bytes: int = 0  # for the KV of a run of steps
    must_break: bool = False


@dataclass(slots=True)
class Instance:
    index: int
    node: int
    role: int
    slots: list[Slot]
    stage: int = Stage.FREE
    model: int = NONE
    active: int = NONE
    loading: int = NONE
    load: Transfer | None = None
    kv_in: Transfer | None = None
    kv_out: Transfer | None = None
    prefill: list[Request] = field(default_factory=list)
    batch: list[Request] = field(default_factory=list)
    incoming: list[Request] = field(default_factory=list)
    outgoing: list[Request] = field(default_factory=list)
    waits_for_room: bool = False  # its turn's KV is claimed once the outgoing moves end
    work: Work | None = None
    phases: int = 0
    quota_ns: int = 0
    tag: int = NONE
    joins: int = 0
    is_switching: bool = False
    ordered_ns: int = 0
    decoded_ns: int = 0
    compute_ns: int = 0  # since its last switch
    wants_prefetch: bool = False
    seen_wakes: int = NONE
    seen_arrivals: int = NONE
    owes_step: bool = False  # its batch decodes a step before the next chunk of a prompt
    draws: int = 0
    switches: int = 0
    prefetched_switches: int = 0
    busy_ns: int = 0

    @property
    def is_in_turn(self) -> bool:
        return self.stage >= Stage.COMMANDED


@dataclass(slots=True)
class Node:
    cached: list[int]  # models whose weights are in host memory
    used_ns: list[int]
