"""The learned policy in torch: the same function as `policies.learned`, for gradients.

Letters: B decisions, K rows, F, I, C features, H hidden units, Q quotas.
"""

from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from sb3_contrib.common.maskable.policies import MaskableMultiInputActorCriticPolicy
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.type_aliases import Schedule
from torch import Tensor, nn

from aegaeon_rl.policies.learned import IDLE_PENALTY, LEVEL_PENALTY, Weights
from runtime.pool.features import C, F, I

CRITIC = 64


class Columns(BaseFeaturesExtractor):
    """The observation as one row of numbers: rows [K*F], which rows are open [K], instance [I],
    globals [C]."""

    def __init__(self, space: spaces.Dict, rows: int, levels: int) -> None:
        super().__init__(space, rows * F + rows + I + C)
        self.rows, self.levels = rows, levels

    def forward(self, observation: dict[str, Tensor]) -> Tensor:
        is_open = observation["action_mask"][:, : self.rows * self.levels : self.levels].float()
        parts = (observation["rows"], is_open, observation["instance"], observation["globals"])
        return torch.cat(parts, dim=1)


class RowNetwork(nn.Module):
    """Actor: scores [B, K*Q+1], row by row, added to the index, times `scale` (an inverse
    temperature: sampling must stay near the greedy policy that is deployed). Critic: pooled rows
    and context."""

    base: Tensor
    quotas_s: Tensor
    penalty: Tensor

    def __init__(self, weights: Weights, rows: int, scale: float) -> None:
        super().__init__()
        self.scale = scale
        hidden, levels = len(weights.b1), len(weights.quotas_s)
        self.rows = rows
        self.latent_dim_pi, self.latent_dim_vf = rows * levels + 1, CRITIC
        self.first = nn.Linear(F + I + C, hidden)
        self.second = nn.Linear(hidden, hidden)
        self.last = nn.Linear(hidden, levels)
        self.idle = nn.Linear(I + C, 1)
        self.critic = nn.Sequential(
            nn.Linear(2 * F + I + C, CRITIC), nn.Tanh(), nn.Linear(CRITIC, CRITIC), nn.Tanh()
        )
        self.register_buffer("base", torch.from_numpy(weights.base.copy()))
        self.register_buffer("quotas_s", torch.from_numpy(weights.quotas_s.copy()))
        self.register_buffer("penalty", LEVEL_PENALTY * torch.arange(levels, dtype=torch.float32))
        self.load(weights)

    @property
    def actor(self) -> tuple[nn.Module, ...]:
        return self.first, self.second, self.last, self.idle

    def load(self, weights: Weights) -> None:
        layers = (self.first, weights.w1, weights.b1), (self.second, weights.w2, weights.b2)
        for layer, matrix, bias in (*layers, (self.last, weights.w3, weights.b3)):
            layer.weight.data = torch.from_numpy(matrix.copy())
            layer.bias.data = torch.from_numpy(bias.copy())
        self.idle.weight.data = torch.from_numpy(weights.idle[None, :-1].copy())
        self.idle.bias.data = torch.from_numpy(weights.idle[-1:].copy())

    def weights(self) -> Weights:
        """The actor as the deployed policy has it."""

        def array(tensor: Tensor) -> np.ndarray[Any, np.dtype[np.float32]]:
            return tensor.detach().cpu().numpy().astype(np.float32, copy=True)

        return Weights(
            base=array(self.base),
            w1=array(self.first.weight),
            b1=array(self.first.bias),
            w2=array(self.second.weight),
            b2=array(self.second.bias),
            w3=array(self.last.weight),
            b3=array(self.last.bias),
            idle=np.concatenate([array(self.idle.weight)[0], array(self.idle.bias)]),
            quotas_s=array(self.quotas_s),
        )

    def forward(self, columns: Tensor) -> tuple[Tensor, Tensor]:
        return self.forward_actor(columns), self.forward_critic(columns)

    def parts(self, columns: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """rows [B, K, F], is_open [B, K], context [B, I+C]."""
        size = self.rows * F
        rows = columns[:, :size].reshape(-1, self.rows, F)
        return rows, columns[:, size : size + self.rows], columns[:, size + self.rows :]

    def forward_actor(self, columns: Tensor) -> Tensor:
        rows, is_open, context = self.parts(columns)
        by_row, by_context = self.first.weight[:, :F], self.first.weight[:, F:]
        shared = (context @ by_context.T + self.first.bias)[:, None, :]
        hidden = torch.relu(self.second(torch.relu(rows @ by_row.T + shared)))
        is_prefetch = context[:, 1] > 0.5
        index = torch.einsum("bkf,bf->bk", rows, self.base[is_prefetch.long()])
        scores = index[:, :, None] - self.penalty + self.last(hidden)
        best = index.masked_fill(is_open < 0.5, -torch.inf).amax(dim=1, keepdim=True)
        best = torch.where(torch.isfinite(best), best, 0.0)
        idle = best - IDLE_PENALTY + self.idle(context)
        return self.scale * torch.cat([scores.flatten(1), idle], dim=1)

    def forward_critic(self, columns: Tensor) -> Tensor:
        rows, is_open, context = self.parts(columns)
        weight = is_open[:, :, None]
        mean = (rows * weight).sum(1) / weight.sum(1).clamp(min=1.0)
        most = (rows * weight).amax(1)
        return self.critic(torch.cat([mean, most, context], dim=1))


class RowPolicy(MaskableMultiInputActorCriticPolicy):
    """SB3's actor-critic around a RowNetwork that starts from `weights`."""

    def __init__(
        self, *args: Any, weights: Weights, rows: int, scale: float, **kwargs: Any
    ) -> None:
        self.start, self.rows, self.scale = weights, rows, scale
        super().__init__(*args, **kwargs)

    def _build_mlp_extractor(self) -> None:
        self.mlp_extractor = RowNetwork(self.start, self.rows, self.scale)  # type: ignore[assignment]

    def _build(self, lr_schedule: Schedule) -> None:
        super()._build(lr_schedule)
        self.action_net = nn.Identity()  # the network's output is the logits
        optimizer: Any = self.optimizer_class
        self.optimizer = optimizer(self.parameters(), lr=lr_schedule(1), **self.optimizer_kwargs)


def policy_arguments(weights: Weights, rows: int, scale: float) -> dict[str, Any]:
    """What MaskablePPO passes to RowPolicy."""
    return {
        "weights": weights,
        "rows": rows,
        "scale": scale,
        "ortho_init": False,
        "features_extractor_class": Columns,
        "features_extractor_kwargs": {"rows": rows, "levels": len(weights.quotas_s)},
    }
