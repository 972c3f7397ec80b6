"""Decode steps as CUDA graphs: a step's launches recorded once, replayed over fixed addresses.

A graph is of an architecture shape in a weight slot at a batch size: both addresses and layout are
the same after the slot is loaded anew, so graphs outlive reloads. Calls are padded up to the next
captured size; padded rows write to a scratch block. On CPU every call is a plain one.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from runtime.engine.attention import AttentionBatch
from runtime.engine.device import Device

GRAPH_BYTES = 1 << 30  # what graphs may hold on a device, unless it is given

Step = Callable[[Tensor, Tensor, AttentionBatch], Tensor]  # tokens, positions, batch -> logits


class Captured(NamedTuple):
    """A recorded step: `replay` computes `logits` from the static inputs it was recorded on."""

    replay: Callable[[], object]
    logits: Tensor
    nbytes: int  # device memory that it holds


Capture = Callable[[Callable[[], Tensor]], Captured]


class Static(NamedTuple):
    """Inputs of fixed size at fixed addresses."""

    tokens: Tensor  # int64 [B]
    positions: Tensor  # int64 [B]
    tables: Tensor  # int32 [B, blocks]
    contexts: Tensor  # int32 [B]
    slots: Tensor  # int64 [B]

    def batch(self, block: int) -> AttentionBatch:
        """A fresh one: what a step derives from it is recorded with the step."""
        return AttentionBatch(
            self.tables,
            self.contexts,
            self.slots,
            block,
            max_query_tokens=1,
            max_context_tokens=self.tables.shape[1] * block,
        )


class DecodeGraphs:
    """At most `most` graphs and `budget_bytes` of their memory; the longest unused leave first.

    Args:
        capture: how to record a step; None: nothing is recorded, every call is plain.
    """

    def __init__(
        self, capture: Capture | None, *, most: int = 64, budget_bytes: int = GRAPH_BYTES
    ) -> None:
        self._capture = capture
        self._most = most
        self._budget_bytes = budget_bytes
        self._graphs: OrderedDict[tuple[Hashable, int, int], tuple[Static, Captured]] = (
            OrderedDict()
        )
        self._eager: set[Hashable] = set()  # shapes that cannot be captured

    def run(
        self,
        key: Hashable,
        step: Step,
        tokens: Tensor,
        positions: Tensor,
        batch: AttentionBatch,
        *,
        scratch_block: int = 0,
    ) -> Tensor:
        """Logits [B, vocabulary] of one decode step; valid until the next call.

        Args:
            key: (architecture shape, weight slot); `step` depends on nothing else that changes.
            scratch_block: a block of the KV arena that belongs to no request.
        """
        if self._capture is None or key in self._eager:
            return step(tokens, positions, batch)
        rows, width = bucket(len(tokens)), power_of_two(batch.block_tables.shape[1])
        found = self._graphs.get((key, rows, width))
        if found is None:
            static = _static(tokens, positions, batch, rows, width, scratch_block)
            if not self._record(key, step, static, batch.block):
                return step(tokens, positions, batch)
            found = self._graphs[key, rows, width]
        else:
            _fill(found[0], _static(tokens, positions, batch, rows, width, scratch_block))
        self._graphs.move_to_end((key, rows, width))
        found[1].replay()
        return found[1].logits[: len(tokens)]

    def _record(self, key: Hashable, step: Step, static: Static, block: int) -> bool:
        assert self._capture is not None
        try:
            captured = self._capture(
                lambda: step(static.tokens, static.positions, static.batch(block))
            )
        except RuntimeError:  # what torch raises for work that a graph cannot hold
            self._eager.add(key)
            return False
        self._graphs[key, len(static.tokens), static.tables.shape[1]] = static, captured
        while len(self._graphs) > 1 and (
            len(self._graphs) > self._most or self.used_bytes > self._budget_bytes
        ):
            self._graphs.popitem(last=False)
        return True

    def __len__(self) -> int:
        return len(self._graphs)

    @property
    def used_bytes(self) -> int:
        """Device memory of the graphs, to be counted in the budget."""
        return sum(captured.nbytes for _, captured in self._graphs.values())

    def is_eager(self, key: Hashable) -> bool:
        """This shape was tried and cannot be captured."""
        return key in self._eager

    def forget(self, key: Hashable) -> None:
        """Drop the graphs of a slot that gets another layout or address."""
        for name in [name for name in self._graphs if name[0] == key]:
            del self._graphs[name]


def open_graphs(device: Device, *, most: int = 64, budget_bytes: int = GRAPH_BYTES) -> DecodeGraphs:
    """Graphs on CUDA, plain calls on CPU."""
    capture = CudaCapture(device) if device.torch.type == "cuda" else None
    return DecodeGraphs(capture, most=most, budget_bytes=budget_bytes)


class CudaCapture:
    """Records on the device's compute stream; all graphs share one pool of memory."""

    WARM_UPS = 2  # first calls pick algorithms and compile, which a graph cannot hold

    def __init__(self, device: Device) -> None:
        self._device = device
        self._pool = torch.cuda.graph_pool_handle()

    def __call__(self, step: Callable[[], Tensor]) -> Captured:
        with self._device.computing():
            for _ in range(self.WARM_UPS):
                step()
            torch.cuda.synchronize(self._device.torch)
            torch.cuda.empty_cache()  # as the capture does first: only its own memory is counted
            before = self._device.memory_used()
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(
                graph,
                pool=self._pool,
                stream=torch.cuda.current_stream(),
                capture_error_mode="thread_local",  # other threads go on copying weights
            ):
                logits = step()
            torch.cuda.synchronize(self._device.torch)
        return Captured(graph.replay, logits, max(0, self._device.memory_used() - before))


def bucket(rows: int) -> int:
    """The captured batch size that serves this one: 1, 2, 4, 8, then multiples of 8."""
    return power_of_two(rows) if rows <= 8 else -(-rows // 8) * 8


def power_of_two(number: int) -> int:
    """The least power of two that is not smaller."""
    return 1 << (number - 1).bit_length()


def _static(
    tokens: Tensor, positions: Tensor, batch: AttentionBatch, rows: int, width: int, scratch: int
) -> Static:
    """The inputs padded: an added row is one token in the scratch block."""
    more = rows - len(tokens)
    wider = width - batch.block_tables.shape[1]
    return Static(
        F.pad(tokens, (0, more)),
        F.pad(positions, (0, more)),
        F.pad(batch.block_tables, (0, wider, 0, more), value=scratch),
        F.pad(batch.context_tokens, (0, more), value=1),
        F.pad(batch.slot_mapping, (0, more), value=scratch * batch.block),
    )


def _fill(static: Static, values: Static) -> None:
    for to, from_ in zip(static, values, strict=True):
        to.copy_(from_)
