"""The requests in flight, as the service knows them beside the core: what was asked, the tokens so
far, where a worker knows it, where its KV lies in host memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from runtime.core import NONE, KvPlace, RequestPhase
from runtime.pool.state import State
from runtime.service.messages import Ask, End, Record

GiveBack = Callable[[int, tuple[int, ...]], None]


@dataclass(slots=True, eq=False)
class Entry:
    """One request. `where`: the instance whose worker knows it, or NONE; `has_kv`: that worker may
    hold KV of it. `record`: its KV in host memory, the controller's to give back; `lease`: host
    blocks that a move out under way may use."""

    ask: Ask
    model: int
    block_bytes: int
    arrival_ns: int
    slot: int
    output: list[int] = field(default_factory=list)
    where: int = NONE
    has_kv: bool = False
    record: Record | None = None
    lease: tuple[int, ...] | None = None
    end: End | None = None
    is_dropped: bool = False  # its client has gone
    is_over: bool = False
    faults: int = 0  # workers that gave up while they worked on it
    last_instance: int = NONE
    turns: int = 0
    turn: tuple[int, int] = (NONE, 0)  # the last one: instance, its number there

    @property
    def context_tokens(self) -> int:
        return len(self.ask.prompt) + len(self.output)


class Book:
    """Entries by id and by slot of the core's table."""

    def __init__(self, slots: int, give_back: GiveBack) -> None:
        self.entries: dict[int, Entry] = {}
        self.at: list[Entry | None] = [None] * slots
        self.give_back = give_back

    def __len__(self) -> int:
        return len(self.entries)

    def __iter__(self) -> Iterator[Entry]:
        return iter(self.entries.values())

    def get(self, number: int) -> Entry | None:
        return self.entries.get(number)

    def of(self, slot: int) -> Entry:
        entry = self.at[slot]
        assert entry is not None, f"slot {slot} is nobody's"
        return entry

    def add(self, entry: Entry) -> None:
        assert entry.ask.id not in self.entries
        assert self.at[entry.slot] is None
        self.entries[entry.ask.id] = self.at[entry.slot] = entry

    def close(self, slot: int) -> Entry:
        """A request is over: its host memory is free, but for a lease that a move still uses."""
        entry = self.of(slot)
        self.at[slot] = None
        del self.entries[entry.ask.id]
        entry.is_over = True
        self.drop_record(entry)
        return entry

    def drop_record(self, entry: Entry) -> None:
        record, entry.record = entry.record, None
        if record is not None:
            self.give_back(record.block_bytes, record.offsets)

    def settle_lease(self, entry: Entry, record: Record | None) -> None:
        """A move out has ended and used `record`; the rest of its lease is free."""
        lease, entry.lease = entry.lease or (), None
        used = frozenset(() if record is None else record.offsets)
        assert used <= frozenset(lease), f"request {entry.ask.id}: blocks beyond its lease"
        rest = tuple(offset for offset in lease if offset not in used)
        if rest:
            self.give_back(entry.block_bytes, rest)
        entry.record = record
        if entry.is_over:
            self.drop_record(entry)

    def lost(self, state: State) -> list[Entry]:
        """Those whose KV the core gave up, while a worker or host memory still holds it."""
        requests = state.requests
        return [
            entry
            for entry in self.entries.values()
            if (entry.has_kv or entry.record is not None)
            and requests["kv"][entry.slot] == KvPlace.NOWHERE
            and requests["phase"][entry.slot] == RequestPhase.WAITING
        ]

    def check_integrity(self, state: State) -> None:
        """Core and book agree on who is in flight, on tokens and on host memory."""
        requests, blocks = state.requests, list[tuple[int, int]]()
        live = {int(r) for r in (requests["phase"] != RequestPhase.FREE).nonzero()[0]}
        assert live == {entry.slot for entry in self}, "slots in use"
        for number, entry in self.entries.items():
            req = requests[entry.slot]
            assert self.at[entry.slot] is entry
            assert (entry.ask.id, int(req["id"])) == (number, number)
            assert int(req["emitted_tokens"]) == len(entry.output), f"request {number}: tokens"
            held = entry.lease or ()
            if entry.record is not None:
                held += entry.record.offsets
                assert req["kv"] in (KvPlace.HOST, KvPlace.MOVING_IN), f"request {number}: its KV"
            blocks += [(entry.block_bytes, offset) for offset in held]
        assert len(blocks) == len(set(blocks)), "host blocks of two requests"
