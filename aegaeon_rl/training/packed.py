"""Decisions with their open rows only: what the network works on and what a rollout keeps.

A decision shows K rows, of which one or two are often all that may be chosen; the others would be
nine tenths of the arithmetic. Letters: B decisions, N open rows of them all, K rows a decision
shows, F, I, C features, Q quotas, T steps, P pools.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from sb3_contrib.common.maskable.buffers import MaskableDictRolloutBufferSamples
from torch import Tensor

from aegaeon_rl.training.smdp import EventTimeMaskableDictBuffer
from runtime.compiled import kernel
from runtime.pool.features import F

Floats = npt.NDArray[np.float32]
Numbers = npt.NDArray[np.int64]


class Packed(NamedTuple):
    """rows [N, F], the decision that each is of [N], its place among that one's K [N]; of each
    decision the mean and the most of its rows [B, 2F], and its instance and globals [B, I+C]."""

    rows: Tensor
    owner: Tensor
    place: Tensor
    summary: Tensor
    context: Tensor


@kernel
def pack_rows(
    shown: Floats,
    is_open: npt.NDArray[np.bool_],
    rows: Floats,
    owner: Numbers,
    place: Numbers,
    summary: Floats,
) -> None:
    """Of `shown` [B, K, F] the open ones [B, K], in order, and each decision's summary. Closed
    rows count as zeros in the most, and not in the mean."""
    n = 0
    for b in range(is_open.shape[0]):
        first = n
        for k in range(is_open.shape[1]):
            if is_open[b, k]:
                rows[n], owner[n], place[n] = shown[b, k], b, k
                n += 1
        summarise(rows[first:n], is_open.shape[1], summary[b])


@kernel
def summarise(rows: Floats, shown: int, out: Floats) -> None:
    """Mean [F] and most [F] of open rows [n, F] out of `shown`."""
    for f in range(rows.shape[1]):
        total, most = np.float32(0.0), np.float32(-np.inf if rows.shape[0] == shown else 0.0)
        for i in range(rows.shape[0]):
            total += rows[i, f]
            most = max(most, rows[i, f])
        out[f], out[rows.shape[1] + f] = total / max(1, rows.shape[0]), most


@kernel
def take_rows(
    order: Numbers,
    starts: Numbers,
    rows: Floats,
    place: Numbers,
    rows_out: Floats,
    owner_out: Numbers,
    place_out: Numbers,
) -> None:
    """The rows of decisions `order`; decision b has rows starts[b] up to starts[b+1]."""
    n = 0
    for i in range(order.shape[0]):
        for r in range(starts[order[i]], starts[order[i] + 1]):
            rows_out[n], owner_out[n], place_out[n] = rows[r], i, place[r]
            n += 1


def pack(observation: dict[str, Any], levels: int) -> Packed:
    """From what the environment shows, as tensors or arrays."""
    shown = np.asarray(observation["rows"], np.float32)
    size, count = shown.shape[0], shown.shape[1] // F
    mask = np.asarray(observation["action_mask"])[:, : count * levels : levels]
    is_open = np.ascontiguousarray(mask > 0)
    n = int(np.count_nonzero(is_open))
    rows, summary = np.empty((n, F), np.float32), np.empty((size, 2 * F), np.float32)
    owner, place = np.empty((2, n), np.int64)
    pack_rows(
        np.ascontiguousarray(shown).reshape(size, count, F), is_open, rows, owner, place, summary
    )
    context = np.hstack([observation["instance"], observation["globals"]]).astype(
        np.float32, copy=False
    )
    return Packed(*map(torch.from_numpy, (rows, owner, place, summary, context)))


class PackedBuffer(EventTimeMaskableDictBuffer):
    """A rollout that keeps of observations what `Packed` has; samples' observations are that."""

    def __init__(self, *args: Any, levels: int, **kwargs: Any) -> None:
        self.levels = levels
        super().__init__(*args, **kwargs)

    def reset(self) -> None:
        super().reset()
        self.observations = {}
        self.action_masks = np.zeros(self.action_masks.shape, np.bool_)
        self.steps: list[Packed] = []

    def add(self, *args: Any, **kwargs: Any) -> None:
        self.steps.append(pack(args[0], self.levels))
        super().add(*args, **kwargs)

    def get(self, batch_size: int | None = None) -> Iterator[MaskableDictRolloutBufferSamples]:  # type: ignore[override]
        """Minibatches of a random order; decision t * P + p is step t of pool p."""
        assert self.full
        total = self.buffer_size * self.n_envs
        order, size = np.random.permutation(total), batch_size or total
        whole = Rollout(self)
        for first in range(0, total, size):
            yield whole.samples(order[first : first + size])


class Rollout:
    """A full buffer as flat tensors."""

    def __init__(self, buffer: PackedBuffer) -> None:
        steps = buffer.steps
        owners = np.concatenate([p.owner.numpy() + t * buffer.n_envs for t, p in enumerate(steps)])
        counts = np.bincount(owners, minlength=buffer.buffer_size * buffer.n_envs)
        self.starts = np.concatenate([[0], np.cumsum(counts)])
        self.rows = np.concatenate([p.rows.numpy() for p in steps])
        self.place = np.concatenate([p.place.numpy() for p in steps])
        self.summary = torch.cat([p.summary for p in steps])
        self.context = torch.cat([p.context for p in steps])
        self.actions = torch.from_numpy(buffer.actions).flatten()
        self.masks = torch.from_numpy(buffer.action_masks).flatten(0, 1)
        self.values = torch.from_numpy(buffer.values).flatten()
        self.log_probs = torch.from_numpy(buffer.log_probs).flatten()
        self.advantages = torch.from_numpy(buffer.advantages).flatten()
        self.returns = torch.from_numpy(buffer.returns).flatten()

    def samples(self, order: Numbers) -> MaskableDictRolloutBufferSamples:
        n = int((self.starts[order + 1] - self.starts[order]).sum())
        rows, (owner, place) = np.empty((n, F), np.float32), np.empty((2, n), np.int64)
        take_rows(order, self.starts, self.rows, self.place, rows, owner, place)
        which = torch.from_numpy(order)
        decisions: Any = Packed(
            rows=torch.from_numpy(rows),
            owner=torch.from_numpy(owner),
            place=torch.from_numpy(place),
            summary=self.summary.index_select(0, which),
            context=self.context.index_select(0, which),
        )
        return MaskableDictRolloutBufferSamples(
            observations=decisions,
            actions=self.actions.index_select(0, which),
            old_values=self.values.index_select(0, which),
            old_log_prob=self.log_probs.index_select(0, which),
            advantages=self.advantages.index_select(0, which),
            returns=self.returns.index_select(0, which),
            action_masks=self.masks.index_select(0, which),
        )
