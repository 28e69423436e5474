"""The residual layers of S4 models: state spaces or FFNs, with norms and dropout around them."""

from typing import cast

import torch
from torch import nn
from transformers.activations import ACT2FN
from transformers.modeling_layers import GradientCheckpointingLayer

from ...core.batch_norm import RecomputeSafeBatchNorm1d
from .configuration_s4 import S4Config
from .state_space import S4StateSpace


class ScalarNorm(nn.Module):
    """LayerNorm over channels with one scale and one shift, without epsilon: `scale * ((x - mean) + shift) / std`."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))
        self.shift = nn.Parameter(torch.zeros(1))

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        # the population's deviation, as in the authors' code
        std, mean = torch.std_mean(hidden_states, dim=-1, correction=0, keepdim=True)
        return self.scale / std * (hidden_states - mean + self.shift)


class TokenBatchNorm(RecomputeSafeBatchNorm1d):
    """BatchNorm over all positions of all sequences, padding included."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return super().forward(input.flatten(0, -2)).view_as(input)


def make_norm(config: S4Config) -> nn.Module:
    """The norm that the configuration names, of `[batch, length, hidden_size]`."""
    if config.norm == "layer":
        return nn.LayerNorm(config.hidden_size, eps=config.norm_eps)
    if config.norm == "batch":
        return TokenBatchNorm(config.hidden_size, eps=config.norm_eps)
    return ScalarNorm() if config.norm == "scalar" else nn.Identity()


class SequenceDropout(nn.Module):
    """Dropout of single values, or of whole channels of a sequence, `[batch, length, channels]`."""

    def __init__(self, config: S4Config) -> None:
        super().__init__()
        self.rate = config.hidden_dropout_prob
        self.tied = config.tie_dropout

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        if self.rate == 0 or not self.training:
            return hidden_states
        if not self.tied:
            return nn.functional.dropout(hidden_states, self.rate)
        keep = 1 - self.rate
        # [batch, 1, channels]: one draw for all positions
        return hidden_states * torch.empty_like(hidden_states[:, :1]).bernoulli_(keep).div_(keep)

    def extra_repr(self) -> str:
        return f"rate={self.rate}, tied={self.tied}"


class S4Mixer(nn.Module):
    """State spaces over positions with their activation, and a linear layer with or without gate over channels."""

    def __init__(self, config: S4Config) -> None:
        super().__init__()
        self.ssm: nn.Module = S4StateSpace(config)
        self.dropout = SequenceDropout(config)
        width = config.channels * config.hidden_size
        self.output = config.mixer_output
        if self.output != "none":
            self.out_proj = nn.Linear(width, config.hidden_size * (2 if self.output == "glu" else 1))

    def forward(
        self,
        hidden_states: torch.Tensor,
        state: torch.Tensor | None = None,
        return_state: bool = False,
        *,
        overwrite: bool = False,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        hidden_states, state = self.ssm(hidden_states, state, return_state, overwrite=overwrite)
        hidden_states = self.dropout(hidden_states)
        if self.output != "none":
            hidden_states = self.out_proj(hidden_states)
        return (nn.functional.glu(hidden_states) if self.output == "glu" else hidden_states), state


class S4FeedForward(nn.Module):
    """Two linear layers per position, which have no state."""

    def __init__(self, config: S4Config) -> None:
        super().__init__()
        self.fc1 = nn.Linear(config.hidden_size, cast(int, config.intermediate_size))
        self.activation = ACT2FN[config.hidden_act]
        self.dropout = SequenceDropout(config)
        self.fc2 = nn.Linear(cast(int, config.intermediate_size), config.hidden_size)

    def forward(
        self, hidden_states: torch.Tensor, state: None = None, return_state: bool = False, *, overwrite: bool = False
    ) -> tuple[torch.Tensor, None]:
        return self.fc2(self.dropout(self.activation(self.fc1(hidden_states)))), None


class S4Layer(GradientCheckpointingLayer):
    """A layer: `x + f(norm(x))`, or `norm(x + f(x))`, or both without `x +`, where f gets zeros for padding."""

    def __init__(self, config: S4Config, kind: str) -> None:
        super().__init__()
        self.prenorm = config.prenorm
        self.residual = config.residual
        self.norm = make_norm(config)
        self.mixer: nn.Module = S4Mixer(config) if kind == "s4" else S4FeedForward(config)
        self.dropout = SequenceDropout(config)

    def forward(
        self,
        hidden_states: torch.Tensor,
        mask: torch.Tensor | None = None,
        state: torch.Tensor | None = None,
        return_state: bool = False,
        *,
        overwrite: bool = False,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """
        Args:
            hidden_states: `[batch, length, hidden_size]`.
            mask: `[batch, length, 1]`, zero where state spaces must see zeros.
            state: of the state spaces before the first position.
            return_state: whether that after the last one is wanted.
            overwrite: whether it may be written over the one before.
        """
        if hidden_states.shape[1] == 0:  # no block of a pool is complete
            return hidden_states, state
        branch = self.norm(hidden_states) if self.prenorm else hidden_states
        # behind the norm, whose shift makes padding other than zero
        if mask is not None:
            branch = branch * mask
        branch, state = self.mixer(branch, state, return_state, overwrite=overwrite)
        branch = self.dropout(branch)
        hidden_states = hidden_states + branch if self.residual else branch
        return (hidden_states if self.prenorm else self.norm(hidden_states)), state


__all__ = ["S4Layer", "ScalarNorm", "make_norm"]
