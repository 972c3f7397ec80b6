"""KV of all requests of one instance: blocks on the device, and their moves to the host and back.

Four rules keep every byte safe while copies and model steps run side by side:

1. a step waits for its requests' blocks (`wait_for`; `is_ready` names the subset that may run);
2. a copy goes to blocks that are free: given back and no longer read by anyone (`_take`);
3. a copy reads blocks that are complete: behind the steps and copies that wrote them;
4. space serves something else after every move out of it is done (`settle`).
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from runtime.engine.device import Device, Event, Stream
from runtime.engine.host_kv import HostKv, HostRecord
from runtime.engine.kv_pages import Pages, Usage
from runtime.errors import UserError

Request = Hashable
POISON = 0xFF  # every float type reads it as NaN
PAGES = 64  # of a region, unless its page size is given


@dataclass(frozen=True, slots=True)
class KvSpec:
    """What a block of a model is: [layers, 2, block, kv_heads, head_dim] of dtype."""

    layers: int
    kv_heads: int
    head_dim: int
    dtype: torch.dtype
    block: int = 16  # tokens

    @property
    def token_bytes(self) -> int:
        return self.layers * 2 * self.kv_heads * self.head_dim * self.dtype.itemsize

    @property
    def block_bytes(self) -> int:
        return self.token_bytes * self.block

    def blocks(self, tokens: int) -> int:
        """Blocks that hold this many tokens."""
        return -(-tokens // self.block)


class KvFullError(RuntimeError):
    """The region has too few free blocks, counting those that are still moving out."""


@dataclass(slots=True)
class Held:
    """A request's KV: on the device, or in host memory where `host` says."""

    spec: KvSpec
    tokens: int
    blocks: list[int]  # on the device; empty when it is in host memory
    host: HostRecord | None = None
    moved: Event | None = None  # behind its latest move; None: it never moved here
    stays: bool = False  # its blocks may not change while it is on the device


class Moving(NamedTuple):
    """Space that was given back and is free once the events are reached."""

    events: tuple[Event, ...]
    block_bytes: int
    blocks: list[int]  # ids on the device, offsets in host memory

    def is_done(self) -> bool:
        return all(event.done() for event in self.events)


@dataclass(slots=True)
class Counts:
    """What happened since the start."""

    moved_in_bytes: int = 0
    moved_out_bytes: int = 0
    waits: int = 0  # the host had to wait for space
    repacks: int = 0  # blocks were moved together to make whole pages free


class KvArena:
    """The KV region of one device, shared by models of any shape (`kv_pages`).

    Args:
        region: uint8 bytes of the device.
        host: where KV moves out to; registered with the device.
        page_bytes: what a block size takes and gives back at once.
        poison: fill space with NaN once it is free. For tests: it costs a write of all space.
    """

    def __init__(
        self,
        device: Device,
        region: Tensor,
        host: HostKv | None = None,
        *,
        page_bytes: int | None = None,
        poison: bool = False,
    ) -> None:
        self.device = device
        self.host = host
        self.counts = Counts()
        self._region = region
        self._poison = poison
        self._pages = Pages(region.numel(), page_bytes or max(1, -(-region.numel() // PAGES)))
        self._views: dict[KvSpec, Tensor] = {}
        self._held: dict[Request, Held] = {}
        self._moving: list[Moving] = []
        self._host_moving: list[Moving] = []
        self._in, self._out = device.stream("kv in"), device.stream("kv out")
        if host is not None:
            device.register(host.bytes)
        if poison:
            device.compute.run(lambda: region.fill_(POISON))

    # What there is

    def view(self, spec: KvSpec) -> Tensor:
        """[blocks, layers, 2, block, kv_heads, head_dim] over the whole region; one layer's
        `kv_layer` is `view[:, layer]`. Block ids of `table` index it."""
        if spec not in self._views:
            count = self._region.numel() // spec.block_bytes
            shape = (count, spec.layers, 2, spec.block, spec.kv_heads, spec.head_dim)
            typed = self._region[: count * spec.block_bytes].view(spec.dtype)
            self._views[spec] = typed.view(shape)
        return self._views[spec]

    def table(self, request: Request) -> list[int]:
        """Block ids of a request on the device, in the order of its tokens. Not to be changed."""
        held = self._held[request]
        assert held.host is None, f"request {request!r} is in host memory"
        return held.blocks

    def tokens(self, request: Request) -> int:
        """Tokens the request has room for."""
        return self._held[request].tokens

    def record(self, request: Request) -> tuple[HostRecord, Event | None]:
        """Where the request lies, or will, in host memory, and the event behind its move there."""
        held = self._held[request]
        assert held.host is not None, f"request {request!r} is on the device"
        return held.host, held.moved

    def is_on_device(self, request: Request) -> bool:
        """Its blocks are on the device, or on their way there."""
        return self._held[request].host is None

    def is_ready(self, request: Request) -> bool:
        """A step may use its blocks without waiting."""
        held = self._held[request]
        return held.host is None and (held.moved is None or held.moved.done())

    def free_blocks(self, spec: KvSpec) -> int:
        """Blocks of this model that could be had, those on their way out included.

        A page that holds moving blocks counts for its own block size only.
        """
        self._collect()
        size = spec.block_bytes
        leaving = sum(len(moving.blocks) for moving in self._moving if moving.block_bytes == size)
        return self._pages.free(size) + leaving

    def usage(self) -> Usage:
        """Where the region's bytes are."""
        self._collect()
        return self._pages.usage()

    def require(self, spec: KvSpec, model: str) -> None:
        """UserError unless a block of this model fits the region and the host's slabs."""
        size, nbytes = spec.block_bytes, self._region.numel()
        if size > nbytes:
            raise UserError(
                f"engine.kv_bytes is {nbytes}: expected at least {size}, a block of {model}"
            )
        if self.host is not None and not self.host.fits(size):
            raise UserError(
                f"engine.host_kv_bytes: slabs of {self.host.slab_bytes} bytes for blocks of "
                f"{self.host.min_block_bytes} or more: expected room for one of {size}, of {model}"
            )

    def capacity_tokens(self, spec: KvSpec, beside: Iterable[KvSpec] = ()) -> int:
        """Tokens of the longest request that surely fits, alone beside a block of each other."""
        lost = sum(other.block_bytes + 2 * self._pages.page_bytes for other in beside)
        return max(0, self._region.numel() - lost) // spec.block_bytes * spec.block

    def unused_bytes(self) -> int:
        """Bytes in requests' blocks beyond their tokens."""
        return sum(
            len(held.blocks) * held.spec.block_bytes - held.tokens * held.spec.token_bytes
            for held in self._held.values()
            if held.host is None
        )

    # A request's life

    def allocate(self, request: Request, tokens: int, spec: KvSpec, *, stays: bool = False) -> None:
        """Room for `tokens` tokens of a new request. `stays`: its blocks are always the same.

        Raises:
            KvFullError: nothing is allocated.
        """
        assert request not in self._held, f"request {request!r} is known"
        blocks = self._take(spec.block_bytes, spec.blocks(tokens), self.device.compute)
        self._held[request] = Held(spec, tokens, blocks, stays=stays)

    def extend(self, request: Request, tokens: int) -> None:
        """Room for `tokens` tokens in all.

        Raises:
            KvFullError: nothing changes.
        """
        held = self._held[request]
        assert held.host is None, f"request {request!r} is in host memory"
        more = held.spec.blocks(tokens) - len(held.blocks)
        if more > 0:
            taken = self._take(held.spec.block_bytes, more, self.device.compute)
            held.blocks += taken  # what it has may lie elsewhere since `_take`
        held.tokens = max(held.tokens, tokens)

    def free(self, request: Request) -> None:
        """Forget a request and give its space back, here or in host memory."""
        held = self._held.pop(request)
        moved = () if held.moved is None else (held.moved,)
        size = held.spec.block_bytes
        if held.host is not None:
            self._host_moving.append(Moving(moved, size, list(held.host.offsets)))
        else:
            events = (*moved, self.device.compute.record())
            self._moving.append(Moving(events, size, held.blocks))
        self._collect()

    # Moves

    def move_out(self, request: Request) -> Event:
        """Start to move a request to host memory; its blocks are free when the event is reached.

        Raises:
            HostKvFullError: nothing moves.
        """
        held, host = self._held[request], self._host()
        assert held.host is None, f"request {request!r} is in host memory"
        self._collect()
        size = held.spec.block_bytes
        record = HostRecord(size, held.tokens, tuple(host.take(size, len(held.blocks))))
        self._out.wait(self.device.compute.record())
        if held.moved is not None:
            self._out.wait(held.moved)
        for device_bytes, host_bytes in self._pieces(held.blocks, record):
            self._out.copy(host_bytes, device_bytes)
        event = self._out.record()
        self._moving.append(Moving((event,), size, held.blocks))
        self.counts.moved_out_bytes += size * len(held.blocks)
        held.blocks, held.host, held.moved = [], record, event
        return event

    def move_in(self, request: Request) -> Event:
        """Start to move a request back to the device; a step that uses it waits for the event.

        Raises:
            KvFullError: nothing moves.
        """
        held = self._held[request]
        record = held.host
        assert record is not None, f"request {request!r} is on the device"
        size = record.block_bytes
        blocks = self._take(size, len(record.offsets), self._in)
        if held.moved is not None:
            self._in.wait(held.moved)
        for device_bytes, host_bytes in self._pieces(blocks, record):
            self._in.copy(device_bytes, host_bytes)
        event = self._in.record()
        self._host_moving.append(Moving((event,), size, list(record.offsets)))
        self.counts.moved_in_bytes += size * len(blocks)
        held.blocks, held.host, held.moved = blocks, None, event
        return event

    def wait_for(self, requests: Iterable[Request]) -> None:
        """Steps put on the compute stream from now on start after these requests' moves."""
        for request in requests:
            moved = self._held[request].moved
            if moved is not None and not moved.done():
                self.device.compute.wait(moved)

    def settle(self) -> None:
        """Block the host until every move is done and all given back space is free."""
        for moving in (*self._moving, *self._host_moving):
            for event in moving.events:
                event.wait()
        self._collect()

    def hand_over(self, request: Request) -> HostRecord:
        """Forget a request in host memory and say where it lies, for `adopt` on any instance of
        the node. Waits for its move."""
        held = self._held[request]
        assert held.host is not None, f"request {request!r} is on the device"
        if held.moved is not None:
            held.moved.wait()
        del self._held[request]
        return held.host

    def adopt(self, request: Request, record: HostRecord, spec: KvSpec) -> None:
        """Know a request that lies in the node's host memory; its space is this instance's now."""
        assert request not in self._held, f"request {request!r} is known"
        assert record.block_bytes == spec.block_bytes
        self._held[request] = Held(spec, record.tokens, [], record)

    # Space

    def _host(self) -> HostKv:
        assert self.host is not None, "this arena was opened without host memory"
        return self.host

    def _take(self, size: int, count: int, stream: Stream) -> list[int]:
        """Free blocks for use on `stream`; blocks still moving are its to wait for, not the
        host's, unless their page must change its block size first."""
        self._collect()
        while self._pages.free(size) < count:
            leaving = sum(len(m.blocks) for m in self._moving if m.block_bytes == size)
            if self._pages.free(size) + leaving >= count:
                return self._take_moving(size, count, stream)
            if not self._moving:
                if self._repack(size, count):
                    break
                free = self._pages.free(size)
                raise KvFullError(f"{count} blocks of {size} bytes wanted, {free} free")
            self.counts.waits += 1
            for event in self._moving[0].events:
                event.wait()
            self._collect()
        return self._pages.take(size, count)

    def _repack(self, size: int, count: int) -> bool:
        """Move blocks together, size by size, where bytes enough are free but in pages of other
        sizes; whether `count` blocks may be had now. Nothing is moving out; waits for the rest.

        It stops the device and holds all KV twice: the last resort before a request must go.
        """
        usage = self._pages.usage()
        here = [h for h in self._held.values() if h.host is None and not h.stays]
        if usage.held_bytes + usage.empty_bytes < size * count or not here:
            return False
        if len({held.spec.block_bytes for held in here} | {size}) == 1:
            return False
        self.device.synchronize()
        with self.device.computing():
            kept = [self.view(held.spec)[held.blocks].clone() for held in here]
            for held in here:
                self._pages.give(held.spec.block_bytes, held.blocks)
                if self._poison:
                    self._fill(held.spec.block_bytes, held.blocks)
            self._pages.order()
            for held, blocks in sorted(
                zip(here, kept, strict=True), key=lambda pair: -pair[0].spec.block_bytes
            ):
                held.blocks = self._pages.take(held.spec.block_bytes, len(held.blocks))
                self.view(held.spec)[held.blocks] = blocks
        self.device.compute.synchronize()
        self.counts.repacks += 1
        return self._pages.free(size) >= count

    def _take_moving(self, size: int, count: int, stream: Stream) -> list[int]:
        taken = self._pages.take(size, self._pages.free(size))
        for at, moving in enumerate(self._moving):
            if moving.block_bytes != size or len(taken) == count:
                continue
            for event in moving.events:
                stream.wait(event)
            cut = count - len(taken)
            chosen, rest = moving.blocks[:cut], moving.blocks[cut:]
            self._moving[at] = moving._replace(blocks=rest)
            taken += chosen
            if self._poison:
                stream.run(partial(self._fill, size, chosen))
        self._moving = [moving for moving in self._moving if moving.blocks]
        return taken

    def _collect(self) -> None:
        """Space whose events are reached becomes free."""
        done, self._moving = _part(self._moving)
        for moving in done:
            if self._poison:
                self._fill(moving.block_bytes, moving.blocks)
            self._pages.give(moving.block_bytes, moving.blocks)
        done, self._host_moving = _part(self._host_moving)
        for moving in done:
            self._give_host(moving)

    def _give_host(self, moving: Moving) -> None:
        host = self._host()
        if self._poison:
            for offset in moving.blocks:
                host.view(offset, moving.block_bytes).fill_(POISON)
        host.give(moving.block_bytes, moving.blocks)

    def _fill(self, size: int, blocks: list[int]) -> None:
        for block in blocks:
            self._region[block * size : (block + 1) * size].fill_(POISON)

    def _pieces(self, blocks: list[int], record: HostRecord) -> Iterator[tuple[Tensor, Tensor]]:
        """Device and host bytes to copy; neighbours on both sides are one copy."""
        size, host = record.block_bytes, self._host()
        for first, offset, count in runs(blocks, record.offsets, size):
            start = first * size
            nbytes = count * size
            yield self._region[start : start + nbytes], host.view(offset, nbytes)

    def check_integrity(self) -> None:
        """Every block is free, moving or one request's; tables hold their tokens."""
        taken: dict[int, list[int]] = {}
        for moving in self._moving:
            taken.setdefault(moving.block_bytes, []).extend(moving.blocks)
        for held in self._held.values():
            taken.setdefault(held.spec.block_bytes, []).extend(held.blocks)
            blocks = held.blocks if held.host is None else held.host.offsets
            assert len(blocks) * held.spec.block >= held.tokens
            assert held.host is None or not held.blocks
        self._pages.check_integrity(taken)
        if self.host is not None:
            self.host.check_integrity()
            offsets = [o for h in self._held.values() if h.host is not None for o in h.host.offsets]
            offsets += [offset for moving in self._host_moving for offset in moving.blocks]
            assert len(offsets) == len(set(offsets)), "host blocks owned twice"


def _part(all_moving: list[Moving]) -> tuple[list[Moving], list[Moving]]:
    """Those that are done, and the others."""
    done: list[Moving] = []
    rest: list[Moving] = []
    for moving in all_moving:
        (done if moving.is_done() else rest).append(moving)
    return done, rest


def runs(blocks: list[int], offsets: Iterable[int], size: int) -> list[tuple[int, int, int]]:
    """(first block, its offset, count) of stretches that are contiguous on both sides."""
    found: list[tuple[int, int, int]] = []
    for block, offset in zip(blocks, offsets, strict=True):
        if found:
            first, start, count = found[-1]
            if block == first + count and offset == start + count * size:
                found[-1] = (first, start, count + 1)
                continue
        found.append((block, offset, 1))
    return found
