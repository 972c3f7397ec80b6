"""The learned policy in torch: the same function as `policies.learned`, for gradients.

Letters: B decisions, N open rows of them all, K rows a decision shows, F, I, C features, H hidden
units, Q quotas.
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
from aegaeon_rl.training.packed import Packed, pack
from runtime.pool.features import INSTANCE_FEATURES, C, F, I

CRITIC = 64
CLOSED = -1e8  # logit of an action that the mask forbids, as in sb3-contrib
IS_PREFETCH = [feature.name for feature in INSTANCE_FEATURES].index("is_prefetch")


class Rows(BaseFeaturesExtractor):
    """The observation with its open rows only, as `Packed`."""

    def __init__(self, space: spaces.Dict, levels: int) -> None:
        super().__init__(space, F + I + C)
        self.levels = levels

    def forward(self, observation: dict[str, Tensor]) -> Packed:
        return pack(observation, self.levels)


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

    def forward(self, decisions: Packed) -> tuple[Tensor, Tensor]:
        return self.forward_actor(decisions), self.forward_critic(decisions)

    def forward_actor(self, decisions: Packed) -> Tensor:
        return self.scores(decisions, self.rows)

    def scores(self, decisions: Packed, width: int) -> Tensor:
        """Scores [B, W*Q+1] of the first `width` rows, behind which none is open, and of idle.
        Actions of closed rows score 0: the mask is theirs to carry."""
        rows, owner, place, _, context = decisions
        size, levels = len(context), len(self.quotas_s)
        by_row, by_context = self.first.weight[:, :F], self.first.weight[:, F:]
        shared = torch.addmm(self.first.bias, context, by_context.T)
        hidden = torch.relu_(torch.addmm(shared.index_select(0, owner), rows, by_row.T))
        hidden = torch.relu_(self.second(hidden))
        index, best = self.index_of(rows, owner, context)
        scores = index[:, None] - self.penalty + self.last(hidden)
        shown = scores.new_zeros(size * width, levels)
        shown = shown.index_put_((owner * width + place,), scores)
        idle = best - IDLE_PENALTY + self.idle(context)[:, 0]
        return self.scale * torch.cat([shown.view(size, -1), idle[:, None]], dim=1)

    @torch.no_grad()
    def index_of(self, rows: Tensor, owner: Tensor, context: Tensor) -> tuple[Tensor, Tensor]:
        """The index of each row [N], and of each decision's best [B], 0 without a row."""
        is_prefetch = (context[:, IS_PREFETCH] > 0.5).long().index_select(0, owner)
        index = (rows @ self.base.T).gather(1, is_prefetch[:, None])[:, 0]
        best = index.new_full((len(context),), -torch.inf)
        best.scatter_reduce_(0, owner, index, "amax")
        return index, torch.where(torch.isfinite(best), best, 0.0)

    def forward_critic(self, decisions: Packed) -> Tensor:
        return self.critic(torch.cat([decisions.summary, decisions.context], dim=1))


def drawn(log_probs: Tensor) -> Tensor:
    """One action [B, 1] by its probability; none that has no chance."""
    upto = log_probs.double().exp_().cumsum(dim=1)
    at = torch.rand(len(upto), 1, dtype=torch.float64) * upto[:, -1:]
    return (upto <= at).sum(dim=1, keepdim=True).clamp_(max=upto.shape[1] - 1)


class RowPolicy(MaskableMultiInputActorCriticPolicy):
    """SB3's actor-critic around a RowNetwork that starts from `weights`."""

    def __init__(
        self, *args: Any, weights: Weights, rows: int, scale: float, **kwargs: Any
    ) -> None:
        self.start, self.rows, self.scale = weights, rows, scale
        self.levels = len(weights.quotas_s)
        super().__init__(*args, **kwargs)

    def _build_mlp_extractor(self) -> None:
        self.mlp_extractor = RowNetwork(self.start, self.rows, self.scale)  # type: ignore[assignment]

    def _build(self, lr_schedule: Schedule) -> None:
        super()._build(lr_schedule)
        self.action_net = nn.Identity()  # the network's output is the logits
        optimizer: Any = self.optimizer_class
        self.optimizer = optimizer(self.parameters(), lr=lr_schedule(1), **self.optimizer_kwargs)

    def extract_features(self, obs: Any, features_extractor: Any = None) -> Any:
        """The numbers are scaled already: nothing to preprocess."""
        return obs if isinstance(obs, Packed) else self.features_extractor(obs)

    def forward(
        self, obs: Any, deterministic: bool = False, action_masks: Any = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        values, log_probs = self.judge(obs, action_masks)
        if deterministic:
            chosen = log_probs.argmax(dim=1, keepdim=True)
        else:
            chosen = drawn(log_probs)
        idle, last = log_probs.shape[1] - 1, self.rows * self.levels
        actions = torch.where(chosen == idle, last, chosen)[:, 0]
        return actions, values, log_probs.gather(1, chosen)[:, 0]

    def evaluate_actions(
        self, obs: Any, actions: Tensor, action_masks: Any = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        values, log_probs = self.judge(obs, action_masks)
        entropy = -(log_probs.exp() * log_probs).sum(dim=1)
        chosen = actions.long().clamp(max=log_probs.shape[1] - 1)[:, None]  # the last is idle
        return values, log_probs.gather(1, chosen)[:, 0], entropy

    def judge(self, obs: Any, action_masks: Any) -> tuple[Tensor, Tensor]:
        """Values [B, 1] and log-probabilities [B, W*Q+1] of the actions up to the last open row
        and idle: what sb3-contrib's masked distribution says, without its checks and without the
        columns that are closed for all."""
        decisions, width = self.extract_features(obs), self.rows
        mask = None
        if action_masks is not None:
            width = int(decisions.place.max()) + 1 if len(decisions.place) else 0
            mask = torch.as_tensor(action_masks, dtype=torch.bool)
            mask = torch.cat([mask[:, : width * self.levels], mask[:, -1:]], dim=1)
        network: Any = self.mlp_extractor
        logits = network.scores(decisions, width)
        if mask is not None:
            logits = torch.where(mask, logits, CLOSED)
        values = self.value_net(network.forward_critic(decisions))
        return values, torch.log_softmax(logits, dim=1)


def policy_arguments(weights: Weights, rows: int, scale: float) -> dict[str, Any]:
    """What MaskablePPO passes to RowPolicy."""
    return {
        "weights": weights,
        "rows": rows,
        "scale": scale,
        "ortho_init": False,
        "features_extractor_class": Rows,
        "features_extractor_kwargs": {"levels": len(weights.quotas_s)},
    }
