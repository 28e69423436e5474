"""RePaViT's FFN: its training form, its inference forms, and the algebra between them."""

from collections.abc import Iterator

import torch
from torch import nn

from ...core.batch_norm import RecomputeSafeBatchNorm1d, RecomputeSafeSyncBatchNorm
from ...core.drop_path import DropPath
from ...core.fusion import Fusible, check_part, make_linear


BATCH_NORMS = (nn.BatchNorm1d, nn.SyncBatchNorm, RecomputeSafeBatchNorm1d, RecomputeSafeSyncBatchNorm)


def as_affine(norm: nn.Module, channels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """
    The map `x -> scale * x + shift` that a norm is (frozen BatchNorm, identity) or ends with (LayerNorm).

    Args:
        norm: the module.
        channels: any tensor `[channels]` on the norm's device.

    Returns:
        Scale and shift, `[channels]` in float64.

    Raises:
        TypeError: for other modules.
    """
    if isinstance(norm, nn.Identity):
        return torch.ones_like(channels, dtype=torch.float64), torch.zeros_like(channels, dtype=torch.float64)
    if not isinstance(norm, nn.LayerNorm | nn.modules.batchnorm._BatchNorm):
        raise TypeError(f"{type(norm).__name__} has no affine form.")
    gamma = torch.ones_like(channels).double() if norm.weight is None else norm.weight.double()
    beta = torch.zeros_like(gamma) if norm.bias is None else norm.bias.double()
    if isinstance(norm, nn.LayerNorm):
        # only its end, the affine map of the normed values; the normalization itself depends on the data
        return gamma, beta
    if norm.running_mean is None or norm.running_var is None:
        raise TypeError(f"{type(norm).__name__} without running statistics has no affine form.")
    mean, var = norm.running_mean.double(), norm.running_var.double()
    # s = gamma / sqrt(var + eps) and t = beta - s mean
    scale = gamma * (var + norm.eps).rsqrt()
    return scale, beta - scale * mean


def _slices(start: int, stop: int, length: int = 128) -> Iterator[slice]:
    return (slice(first, min(first + length, stop)) for first in range(start, stop, length))


def _empty_linear(in_features: int, out_features: int, like: torch.Tensor, bias: bool = True) -> nn.Linear:
    """A linear of another tensor's dtype and device, whose weights are to be written."""
    return make_linear(like.new_empty(out_features, in_features), like.new_empty(out_features) if bias else None)


def activate_first(hidden: torch.Tensor, activation: nn.Module, active_channels: int) -> torch.Tensor:
    """`[..., hidden]`, of which only the first channels go through the activation."""
    if active_channels == hidden.shape[-1]:
        return activation(hidden)
    # [..., a] and [..., hidden - a]
    active, idle = hidden.tensor_split([active_channels], dim=-1)
    return torch.cat([activation(active), idle], dim=-1)


class ChannelIdleFeedForward(Fusible):
    """
    FFN sub-layer, shortcut included, of which only the first `active_channels` hidden channels are activated.

    Training form (Eq. 2 of the paper), with layer scale and drop path where the backbone has them:
    `Y = X + drop(scale(fc2(hidden_norm([act(h[:a]), h[a:]]))))` with `h = fc1(input_norm(X))`.
    """

    def __init__(
        self,
        input_norm: nn.Module,
        fc1: nn.Linear,
        activation: nn.Module,
        hidden_norm: nn.Module,
        fc2: nn.Linear,
        active_channels: int,
        scale: nn.Module,
        drop: nn.Module,
    ) -> None:
        super().__init__()
        self.input_norm = input_norm
        self.fc1 = fc1
        self.activation = activation
        self.hidden_norm = hidden_norm
        self.fc2 = fc2
        self.active_channels = active_channels
        self.scale = scale
        self.drop = drop

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """`[batch, tokens, channels]` to the same shape."""
        hidden = self.fc1(self.input_norm(hidden_states.flatten(0, -2)))  # BatchNorm takes all tokens as one batch
        hidden = activate_first(hidden, self.activation, self.active_channels)
        branch = self.fc2(self.hidden_norm(hidden)).view_as(hidden_states)
        return hidden_states + self.drop(self.scale(branch))

    @torch.no_grad()
    def fuse(self) -> nn.Module:
        """
        Inference form (Eq. 3 to 6, with biases): the idle path becomes one linear, and the norms go into the linears.

        `Y = X + linear(N) + down(act(up(N)))` with `N = norm(X)`; without active channels `Y = X + linear(N)`. `norm`
        is what a LayerNorm leaves, which depends on the data, or nothing. The shortcut stays an addition: inside the
        linear its ones would be far larger than the other weights, which then lose digits in few bits. Where so many
        channels are active that the merged linear is larger than what it replaces, the two linears stay.
        """
        self._check_parts()
        fc1, fc2, a = self.fc1, self.fc2, self.active_channels
        # weights of the merged linear against those of the two it replaces: an idle ratio over 1 / (2 * expansion)
        merges = fc2.out_features * fc1.in_features < (fc1.out_features - a) * (fc1.in_features + fc2.out_features)
        kept = a if merges else fc1.out_features
        up = _empty_linear(fc1.in_features, kept, fc1.weight)
        # fc2's bias counts once: where idle channels merge, it is in the merged linear's
        down = _empty_linear(kept, fc2.out_features, fc2.weight, bias=not merges)
        linear = _empty_linear(fc1.in_features, fc2.out_features, fc2.weight)
        if not fc1.weight.is_meta:
            bias, weight = self._fold(up, down)
            (linear if merges else down).bias.copy_(bias)
            # all zeros, and not used, without merging
            linear.weight.copy_(weight)
        ffn: nn.Module = linear
        if not merges:
            ffn = FeedForward(up, self.activation, down, a)
        elif a > 0:
            ffn = FusedFeedForward(linear, up, self.activation, down)
        norm: nn.Module = nn.Identity()
        if isinstance(self.input_norm, nn.LayerNorm):
            # its weight and bias are in the linears after it
            norm = nn.LayerNorm(fc1.in_features, self.input_norm.eps, elementwise_affine=False)
        return Residual(norm, ffn)

    def _check_parts(self) -> None:
        """Raises `TypeError` for modules that the algebra of `fuse` does not cover."""
        for name in ("fc1", "fc2"):
            check_part(self, name, nn.Linear)
        check_part(self, "input_norm", *BATCH_NORMS, nn.LayerNorm, nn.Identity)
        check_part(self, "hidden_norm", *BATCH_NORMS, nn.Identity)
        for name, module in self.drop.named_modules(prefix="drop"):
            if not isinstance(module, nn.Sequential):
                check_part(self, name, DropPath, nn.Dropout, nn.Identity)
        # transformers has a class for it in each modeling file
        if not type(self.scale).__name__.endswith(("LayerScale", "ChannelScale", "Identity")):
            kind = type(self.scale).__name__
            raise TypeError(f"scale of a {type(self).__name__} is a {kind} and no layer scale, so it cannot be fused.")

    def _fold(self, up: nn.Linear, down: nn.Linear) -> tuple[torch.Tensor, torch.Tensor]:
        """
        Writes the weights of the kept channels into `up` and `down`.

        Returns:
            What the others add, in float64: bias `[out]` and weight `[out, in]` of a linear.
        """
        fc1, fc2, kept = self.fc1, self.fc2, up.out_features
        scale1, shift1 = as_affine(self.input_norm, fc1.weight[0])
        scale2, shift2 = as_affine(self.hidden_norm, fc2.weight[0])
        # layer scale comes after fc2, so it multiplies the rows of fc2's weight and its bias
        gain = self.scale(fc2.weight.new_ones(fc2.out_features)).double()
        linear = fc2.weight.new_zeros(fc2.out_features, fc1.in_features, dtype=torch.float64)
        bias = gain * (0 if fc2.bias is None else fc2.bias.double())
        # in slices of the hidden channels, to need no float64 copy of the layer; none crosses from kept to merged
        for rows in (*_slices(0, kept), *_slices(kept, fc1.out_features)):
            w1, w2 = fc1.weight[rows].double(), gain[:, None] * fc2.weight[:, rows].double()
            # b1' = b1 + W1 t1 and W1' = W1 diag(s1): the shift takes W1 before it is scaled
            b1 = (w1 * shift1).sum(1) + (0 if fc1.bias is None else fc1.bias[rows].double())
            w1 = w1 * scale1
            # likewise W2 t2, of kept channels too: the second norm shifts all of them
            bias += (w2 * shift2[rows]).sum(1)
            w2 *= scale2[rows]
            if rows.start < kept:
                up.weight[rows], up.bias[rows], down.weight[:, rows] = w1, b1, w2
            else:
                # idle channels: W2' W1' and W2' b1', with nothing nonlinear in between
                linear.addmm_(w2, w1)
                bias += w2 @ b1
        return bias, linear

    def extra_repr(self) -> str:
        return f"active_channels={self.active_channels}/{self.fc1.out_features}"


class FeedForward(nn.Module):
    """Inference form where merging does not pay: an FFN whose first channels are activated."""

    def __init__(self, fc1: nn.Linear, activation: nn.Module, fc2: nn.Linear, active_channels: int) -> None:
        super().__init__()
        self.fc1 = fc1
        self.activation = activation
        self.fc2 = fc2
        self.active_channels = active_channels

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.fc2(activate_first(self.fc1(hidden_states), self.activation, self.active_channels))


class FusedFeedForward(nn.Module):
    """Inference form: a linear path over all channels beside a small FFN over the active ones."""

    def __init__(self, linear: nn.Linear, up: nn.Linear, activation: nn.Module, down: nn.Linear) -> None:
        super().__init__()
        self.linear = linear
        self.up = up
        self.activation = activation
        self.down = down

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        # in place, in the new tensor that the first linear made: one buffer of activations less
        return self.linear(hidden_states).add_(self.down(self.activation(self.up(hidden_states))))


class Residual(nn.Module):
    """`X + ffn(norm(X))`, around each of the inference forms."""

    def __init__(self, norm: nn.Module, ffn: nn.Module) -> None:
        super().__init__()
        self.norm = norm
        self.ffn = ffn

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return hidden_states + self.ffn(self.norm(hidden_states))


__all__ = [
    "ChannelIdleFeedForward",
    "FeedForward",
    "FusedFeedForward",
    "Residual",
    "activate_first",
    "as_affine",
]
