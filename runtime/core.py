"""The vocabulary: what a model, a GPU, a pool, an SLO, an event and a decision are.

Imports nothing of the project but its errors. Times are int64 nanoseconds inside the pool (`_ns`)
and float seconds at the edges (`_s`); memory is bytes, or KV blocks of `block_tokens` tokens.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import IntEnum, StrEnum

from runtime.errors import UserError, nearest

NS = 1_000_000_000
NONE = -1  # "no instance / model / slot" in the integer columns of the tables
FOREVER_NS = 1 << 62  # a time that never comes, a quota that never ends


class Phases(IntEnum):
    """What an instance may do (its role), or what one turn does; a set of bits."""

    PREFILL = 1
    DECODE = 2
    BOTH = 3


class RequestPhase(IntEnum):
    FREE = 0  # the slot is unused
    WAITING = 1  # its next token needs a prefill
    READY = 2  # its KV is on an instance or in host memory
    RUNNING = 3  # owned by a turn
    DONE = 4
    FAILED = 5
    CANCELLED = 6
    SHED = 7


class KvPlace(IntEnum):
    """Where a request's KV is: a column apart from its phase."""

    NOWHERE = 0
    DEVICE = 1
    HOST = 2
    MOVING_OUT = 3  # on the device until the copy ends, host bytes already claimed
    MOVING_IN = 4  # on the host until the copy ends, device bytes already claimed


class Stage(IntEnum):
    """What an instance is doing. A turn walks COMMANDED .. ENDING, then FREE."""

    DOWN = 0
    FREE = 1  # at a token boundary, a decision is due
    IDLE = 2  # the policy chose to wait until something changes
    COMMANDED = 3  # a turn was ordered; its weights are not in place yet
    BLOCKED = 4  # KV must leave before this turn's fits, or before its batch can grow
    KV_IN = 5
    PREFILL = 6
    DECODE = 7
    ENDING = 8


class SlotState(IntEnum):
    EMPTY = 0
    LOADING = 1
    READY = 2


class EventKind(IntEnum):
    """Everything that may change a pool, in the order that breaks ties at one instant."""

    KV_OUT_DONE = 0  # instance: its `n` oldest outgoing requests are in host memory
    WEIGHTS_READY = 1  # instance: the load under way has ended
    SWITCHED = 2  # instance: the turn is on the device, weights in place
    KV_IN_DONE = 3  # instance: its `n` oldest incoming requests are on the device
    PREFILLED = 4  # instance: its `n` first prefill requests have one more token; 0: a chunk ended
    STEPS = 5  # instance: `n` decode steps; step j ended x*j + y*j*(j-1)/2 s after the first began
    FINISHED = 6  # request: the engine met its end (EOS or its limit)
    TURN_ENDED = 7  # instance
    ARRIVAL = 8  # id, model, n = prompt tokens, tag = priority
    EXPIRE = 9  # request: no first token within the pool's time limit
    CANCEL = 10  # request
    TURN = 11  # the policy's answer: model, phases, quota, tag, joins
    IDLE = 12
    PREFETCH = 13  # the policy's answer: model, or NONE
    ROUTE = 14  # the policy's answer: request -> instance (NONE: refused), tag
    INSTANCE_FAILED = 15
    INSTANCE_JOINED = 16
    INTERRUPT = 17  # the policy's answer: n = 1 stops the turn, 0 keeps it; model: the urgent one


class DecisionKind(IntEnum):
    NONE = 0
    TURN = 1
    PREFETCH = 2
    ROUTE = 3
    INTERRUPT = 4


class Command(IntEnum):
    """What a driver must tell an engine after a transition."""

    START = 0  # instance: begin the turn the core holds
    JOIN = 1  # instance: return to the scheduler at the next token boundary (a join, a stop)
    LOAD = 2  # instance: load weights into `loading_slot` (a load under way is dropped)
    MOVE_OUT = 3  # instance: its outgoing queue grew
    RETIRE = 4  # request slot: it ended; take its record, then `release` the slot
    SHARE_IN = 5  # instance: more or fewer transfers come in over its root port; predict them anew
    SHARE_OUT = 6


class Masked(IntEnum):
    """Why a candidate row may not be chosen; OPEN means it may."""

    OPEN = 0
    NO_WORK = 1
    TAKEN = 2
    WRONG_ROLE = 3
    STARVED_OTHER = 4  # another model has waited past the bound
    OUTRANKED = 5  # another model has a request of higher priority
    IN_PLACE = 6  # a prefetch of what is already on the device
    DOES_NOT_FIT = 7  # a prefetch of what exceeds the weight budget beside the active model


class Dispatch(StrEnum):
    PULL = "pull"  # a free instance takes requests from one shared pool
    PUSH = "push"  # a request is routed to an instance when it arrives and after its prefill


class HostKvFull(StrEnum):
    """What becomes of KV that must leave a device while its node's host memory is full."""

    RECOMPUTE = "recompute"  # dropped: its request waits for a prefill
    WAIT = "wait"  # it stays while no turn needs its room; then it is dropped


class PrefetchMode(StrEnum):
    NONE = "none"
    CAUSAL = "causal"  # an explicit decision, paid on the link
    RETROACTIVE = "retroactive"  # the SOSP'25 simulator: compute time since the last switch is free


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSpec:
    """One served model. `checkpoint` names its weights' shape and its latency fit."""

    name: str
    checkpoint: str
    weight_bytes: int
    kv_token_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSlo:
    """Where one model's SLO differs; None: as for all."""

    ttft_s: float | None = None
    tbt_s: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class SloSpec:
    """Token i (0-based) is due at arrival + ttft_s + i * tbt_s; `models`: exceptions by name."""

    ttft_s: float = 10.0
    tbt_s: float = 0.1
    models: dict[str, ModelSlo] | None = field(default=None, hash=False)

    def __post_init__(self) -> None:
        own = {f"slo.models.{name}": slo for name, slo in (self.models or {}).items()}
        for where, slo in {"slo": self, **own}.items():
            for name in ("ttft_s", "tbt_s"):
                value = getattr(slo, name)
                if value is None or 1 / NS <= value < FOREVER_NS / NS:
                    continue
                is_long, most = value >= 1, FOREVER_NS / NS
                bound = f"less than {most:.3g}" if is_long else f"at least {1 / NS:g}"
                raise UserError(f"{where}.{name}={value}: expected {bound} seconds")

    def of(self, model: str) -> "SloSpec":
        """What holds for one model."""
        own = (self.models or {}).get(model, ModelSlo())
        return SloSpec(
            ttft_s=self.ttft_s if own.ttft_s is None else own.ttft_s,
            tbt_s=self.tbt_s if own.tbt_s is None else own.tbt_s,
        )

    def check_models(self, served: Iterable[str]) -> None:
        """Raises UserError for an exception that names a model not served."""
        known = set(served)
        for name in self.models or ():
            if name not in known:
                raise UserError(f"slo.models.{name}: no such model; {nearest(name, known)}")


MOST_INSTANCES = 4096
POOL_BOUNDS: dict[str, tuple[float, float]] = {  # what keeps all times and sums in 64 bits
    **dict.fromkeys(
        ("nodes", "instances_per_node", "instances_per_port", "block_tokens"), (1, 4096)
    ),
    "tp": (1, 64),
    "weight_slots": (1, 64),
    "vram_bytes": (1, 1e15),
    **dict.fromkeys(
        ("host_kv_bytes", "host_weight_bytes", "weight_budget_bytes", "load_chunk_bytes"), (0, 1e15)
    ),
    **dict.fromkeys(("h2d_bytes_s", "d2h_bytes_s", "disk_bytes_s"), (1, 1e18)),
    "network_bytes_s": (0, 1e18),
    **dict.fromkeys(("kv_move_token_bytes", "lookahead_tokens"), (0, 1e9)),
    **dict.fromkeys(("prefill_budget_tokens", "prefill_chunk_tokens"), (0, 1e9)),
    **dict.fromkeys(("command_s", "turn_overhead_s", "step_overhead_s", "step_quantum_s"), (0, 60)),
    **dict.fromkeys(("mtbf_s", "cancel_after_s"), (0, 1e9)),
    "mttr_s": (1e-3, 1e9),
    "noise": (0, 10),
    "seed": (0, 2**62),
    **dict.fromkeys(("max_wait_s", "interrupt_slack_s", "ttft_timeout_s", "max_queue"), (0, 1e9)),
}


def check_within(key: str, value: float, low: float, high: float) -> None:
    """Raises UserError that names the bound; NaN is within none."""
    if not value >= low:
        raise UserError(f"{key}={value}: expected at least {low:g}")
    if not value <= high:
        raise UserError(f"{key}={value}: expected at most {high:g}")


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolSpec:
    """Hardware and rules of a pool; what a policy may change it states in `Policy.configure`."""

    name: str
    profile: str
    checkpoints: tuple[str, ...]  # assigned to models in order of first appearance, cycling
    nodes: int = 1
    instances_per_node: int = 8
    tp: int = 1  # GPUs of one instance (tensor parallel): each holds and loads its own shard
    roles: tuple[Phases, ...] = field(default=())  # per instance; empty: every instance does both
    vram_bytes: int = 80_000_000_000  # of one GPU, as are both host links
    kv_fraction: float = 0.9  # of the VRAM that weight slots leave
    weight_slots: int = 2
    weight_budget_bytes: int = (
        0  # of one GPU, for all resident models; 0: every slot fits any model
    )
    slots_reserved: bool = True  # True: every slot is carved out at start; False: loaded model only
    h2d_bytes_s: float = 50e9
    d2h_bytes_s: float = 50e9
    instances_per_port: int = 1  # of a node, on one root port: both links are the port's
    load_chunk_bytes: int = 0  # a dropped load ends with its chunk; 0: at once
    kv_out_free: bool = False
    kv_in_overlaps: bool = False  # a turn works on what it has while KV comes in
    kv_reload_every_turn: bool = False  # in at each turn's start (later joins are free), then out
    kv_stays: bool = False  # a switch leaves the last model's KV on the device while there is room
    kv_move_token_bytes: int = (
        0  # 0: KV moves in whole blocks; else bytes a token (SOSP'25: 500 kB)
    )
    block_tokens: int = 16
    lookahead_tokens: int = 64
    prefill_budget_tokens: int = 0  # 0: one request at a time
    prefill_chunk_tokens: int = 0  # most tokens of one prefill call; 0: whole prompts
    host_weight_bytes: int = 1_500_000_000_000
    host_kv_bytes: int = 256_000_000_000
    host_kv_full: HostKvFull = HostKvFull.RECOMPUTE
    disk_bytes_s: float = 6e9
    network_bytes_s: float = 25e9
    token_preempt: bool = True  # False: a turn ends only when its batch empties
    kv_survives_switch: bool = True  # False: another model's turn loses the KV on the device
    command_s: float = 0.0
    turn_overhead_s: float = 0.0  # at a turn's start, after its weights are in place
    step_overhead_s: float = 0.0  # of every decode step
    step_quantum_s: float = 0.0  # durations truncate to whole quanta (SOSP'25 simulator: 1 ms)
    dispatch: Dispatch = Dispatch.PULL
    prefetch: PrefetchMode = PrefetchMode.CAUSAL
    sosp25_rules: bool = False  # `aegaeon` follows the artifact's simulator, not the paper
    max_wait_s: float = 0.0  # 0: no starvation bound
    interrupt_slack_s: float = 0.0  # an arrival with less asks for an INTERRUPT; 0: none does
    priorities: bool = False  # True: turns of higher request priority first
    ttft_timeout_s: float = 0.0  # 0: requests wait for ever
    max_queue: int = 0  # 0: no limit
    mtbf_s: float = 0.0  # mean time of an instance to its failure; 0: none fails
    mttr_s: float = 60.0  # mean time to its return
    cancel_after_s: float = 0.0  # mean patience of clients; 0: endless
    noise: float = 0.0  # relative standard deviation of true prefill and decode times
    seed: int = 0  # of what the emulator draws

    @property
    def instances(self) -> int:
        return self.nodes * self.instances_per_node

    @property
    def gpus(self) -> int:
        return self.instances * self.tp

    @property
    def draws(self) -> bool:
        """Does anything in the emulator depend on `seed`?"""
        return self.noise > 0 or self.mtbf_s > 0 or self.cancel_after_s > 0

    def __post_init__(self) -> None:
        if 0 < self.mtbf_s < 1:
            raise UserError(f"pool.mtbf_s={self.mtbf_s}: expected 0 (none fails) or 1 s at least")
        for name, (low, high) in POOL_BOUNDS.items():
            check_within(f"pool.{name}", getattr(self, name), low, high)
        if self.instances > MOST_INSTANCES:
            raise UserError(
                f"pool.nodes={self.nodes}, instances_per_node={self.instances_per_node}: expected"
                f" at most {MOST_INSTANCES} instances in all"
            )
        if self.roles and len(self.roles) != self.instances:
            raise UserError(
                f"pool.roles has {len(self.roles)} entries: expected {self.instances}, one each"
            )
        if not self.checkpoints:
            raise UserError("pool.checkpoints is empty: expected at least one checkpoint name")
        if not 0 < self.kv_fraction <= 1:
            raise UserError(f"pool.kv_fraction={self.kv_fraction}: expected 0 < fraction <= 1")
