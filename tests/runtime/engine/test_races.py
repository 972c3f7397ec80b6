"""Random schedules of prefills, decode steps, moves, ends and switches on a device with delays.

Free space is NaN from the first byte on, so attention that read a byte which nobody wrote, or which
moved too early or too late, would differ from attention over the request's own dense history.
"""

from contextlib import suppress

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.engine.attention import AttentionBatch, attend
from runtime.engine.device import open_device
from runtime.engine.host_kv import HostKv, HostKvFullError
from runtime.engine.kv import KvArena, KvFullError, KvSpec

MODELS = (
    KvSpec(layers=2, kv_heads=1, head_dim=8, dtype=torch.float32, block=4),
    KvSpec(layers=1, kv_heads=2, head_dim=8, dtype=torch.float32, block=4),
    KvSpec(layers=2, kv_heads=2, head_dim=8, dtype=torch.float32, block=2),
)
SHARE = 2  # query heads a key head
WINDOWS = (None, 5, 3)
MOST_TOKENS = 64


class History:
    """What a request's tokens have as query, key and value, and how many are computed."""

    def __init__(self, request: int, model: int) -> None:
        self.model, self.spec, self.done = model, MODELS[model], 0
        random = torch.Generator().manual_seed(request)
        heads, size = self.spec.kv_heads, self.spec.head_dim
        shape = (self.spec.layers, MOST_TOKENS)
        self.query = torch.randn(*shape, SHARE * heads, size, generator=random)
        self.key, self.value = torch.randn(2, *shape, heads, size, generator=random)

    def expected(self, layer: int, new: int) -> torch.Tensor:
        """Dense attention of the `new` tokens that follow those done."""
        end = self.done + new
        at, seen = torch.arange(self.done, end)[:, None], torch.arange(end)[None]
        mask = seen <= at
        if (window := WINDOWS[self.model]) is not None:
            mask &= at - seen < window
        keys, values = (
            x[layer, :end].repeat_interleave(SHARE, 1).transpose(0, 1)
            for x in (self.key, self.value)
        )
        queries = self.query[layer, self.done : end].transpose(0, 1)
        scores = (queries @ keys.transpose(1, 2)).masked_fill(~mask, float("-inf"))
        return (scores.softmax(-1) @ values).transpose(0, 1)


class Race:
    """One instance under a schedule."""

    def __init__(self, seed: int) -> None:
        self.device = open_device("cpu", delays=seed)
        self.host = HostKv.create(1 << 15, slab_bytes=1 << 13, min_block_bytes=256)
        region = self.device.empty(1 << 14)
        self.kv = KvArena(self.device, region, self.host, page_bytes=1 << 10, poison=True)
        self.live: dict[int, History] = {}

    def close(self) -> None:
        self.device.close()
        self.host.close()

    def prefill(self, request: int, new: int) -> None:
        if request in self.live:
            return
        history = History(request, request % len(MODELS))
        self.kv.allocate(request, new, history.spec)
        self.live[request] = history
        self.step([request], new)

    def decode(self, request: int, new: int) -> None:
        """One token each of the model's requests that are on the device."""
        del new
        batch = []
        for other, history in self.live.items():
            if other % len(MODELS) != request % len(MODELS) or not self.kv.is_on_device(other):
                continue
            if history.done < MOST_TOKENS:
                with suppress(KvFullError):
                    self.kv.extend(other, history.done + 1)
                    batch.append(other)
        self.step(batch, 1)

    def step(self, requests: list[int], new: int) -> None:
        if not requests:
            return
        self.kv.wait_for(requests)
        histories = [self.live[request] for request in requests]
        spec, window = histories[0].spec, WINDOWS[histories[0].model]
        batch = AttentionBatch.of(
            [self.kv.table(request) for request in requests],
            [new] * len(requests),
            [history.done + new for history in histories],
            block=spec.block,
        )
        for layer in range(spec.layers):
            inputs = [
                torch.cat([getattr(h, name)[layer, h.done : h.done + new] for h in histories])
                for name in ("query", "key", "value")
            ]
            kv_layer = self.kv.view(spec)[:, layer]
            out = attend(*inputs, kv_layer, batch, scale=1.0, window=window)
            expected = torch.cat([history.expected(layer, new) for history in histories])
            torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-4)
        for history in histories:
            history.done += new

    def move_out(self, request: int, new: int) -> None:
        if request in self.live and self.kv.is_on_device(request):
            self.kv.move_out(request)

    def move_in(self, request: int, new: int) -> None:
        if request in self.live and not self.kv.is_on_device(request):
            self.kv.move_in(request)

    def end(self, request: int, new: int) -> None:
        if self.live.pop(request, None) is not None:
            self.kv.free(request)

    def switch(self, request: int, new: int) -> None:
        """This model's requests come in, all others leave."""
        for other in self.live:
            if other % len(MODELS) != request % len(MODELS):
                self.move_out(other, new)
        for other in self.live:
            if other % len(MODELS) == request % len(MODELS):
                self.move_in(other, new)

    def run(self, steps) -> None:
        for what, request, new in steps:
            with suppress(KvFullError, HostKvFullError):
                getattr(self, what)(request, new)
            self.kv.check_integrity()
        for request in sorted(self.live, key=self.kv.is_on_device, reverse=True):
            self.move_in(request, 0)
            self.decode(request, 1)
            self.end(request, 0)
        self.kv.settle()
        self.kv.check_integrity()
        assert self.kv.usage().empty_bytes == sum(self.kv.usage())
        assert self.host.taken() == 0


STEP = st.tuples(
    st.sampled_from(
        ["prefill", "prefill", "decode", "decode", "move_out", "move_in", "switch", "switch", "end"]
    ),
    st.integers(0, 6),
    st.integers(1, 20),
)


def race(steps, seed: int) -> None:
    one = Race(seed)
    try:
        one.run(steps)
    finally:
        one.close()


@given(steps=st.lists(STEP, min_size=20, max_size=50), seed=st.integers(0, 1000))
@settings(max_examples=30, deadline=None)
def test_attention_never_reads_a_byte_that_is_not_its_requests(steps, seed):
    race(steps, seed)


@pytest.mark.long
@given(steps=st.lists(STEP, min_size=20, max_size=80), seed=st.integers(0, 10**6))
@settings(max_examples=3000, deadline=None)
def test_attention_never_reads_such_a_byte_in_thousands_of_schedules(steps, seed):
    race(steps, seed)
