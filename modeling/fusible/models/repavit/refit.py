"""A dense FFN made channel-idle in closed form, from second moments of what it sees."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from .feed_forward import ChannelIdleFeedForward


# of the variance of each feature: what keeps weights that the data do not determine close to the dense ones
RIDGE = 1e-3
# of singular values: beyond it, fc1's old rows magnify rounding when the linear part is written into them
LARGEST_CONDITION = 1e3


class Moments:
    """Means and covariances, in float64, of rows `[n, ...]` that come in parts; memory does not grow with them."""

    def __init__(self) -> None:
        self.count = 0
        self.sum = torch.tensor(0.0)
        self.products = torch.tensor(0.0)

    def add(self, rows: torch.Tensor) -> None:
        """Adds `[n, features]`."""
        rows = rows.double()
        self.count += len(rows)
        self.sum = self.sum.to(rows.device) + rows.sum(0)
        self.products = self.products.to(rows.device) + rows.T @ rows

    @property
    def mean(self) -> torch.Tensor:
        return self.sum / self.count

    @property
    def covariance(self) -> torch.Tensor:
        return self.products / self.count - torch.outer(self.mean, self.mean)


@dataclass
class Refit:
    """
    The closest FFN with so many active channels: `down act(h[active]) + linear u + bias` of normed inputs `u`.

    `active` and `idle` are indices of hidden channels. `down` is `[out, active]`, `linear` `[out, in]` of at most so
    high a rank as there are idle channels, `bias` `[out]`; all in float64, layer scale included. `error` is the
    squared error over the variance of the target.
    """

    active: torch.Tensor
    idle: torch.Tensor
    down: torch.Tensor
    linear: torch.Tensor
    bias: torch.Tensor
    error: float

    def branch(self, ffn: ChannelIdleFeedForward, inputs: torch.Tensor) -> torch.Tensor:
        """What it adds to the shortcut of `[..., in]`, which come to the FFN that it was fitted to."""
        normed = ffn.input_norm(inputs.flatten(0, -2)).view_as(inputs)
        bias = None if ffn.fc1.bias is None else ffn.fc1.bias[self.active]
        hidden = ffn.activation(F.linear(normed, ffn.fc1.weight[self.active], bias))
        down, linear, shift = (part.to(normed.dtype) for part in (self.down, self.linear, self.bias))
        return F.linear(hidden, down) + F.linear(normed, linear, shift)


def solve(products: torch.Tensor, targets: torch.Tensor, start: torch.Tensor) -> torch.Tensor:
    """Least squares for centered features: weights `[features, out]`, pulled towards `start` where data are few."""
    ridge = RIDGE * products.diag()
    # a feature that never changes has no variance to take a share of
    ridge = ridge.clamp_min(1e-12 * ridge.max().clamp_min(1e-300))
    return start + torch.linalg.solve(products + torch.diag(ridge), targets - products @ start)


class RefitStatistics:
    """What calibration data say about one FFN, enough to refit it with any number of active channels."""

    def __init__(self, ffn: ChannelIdleFeedForward) -> None:
        self.ffn = ffn
        self.moments = Moments()  # of all hidden channels after the activation, the normed inputs, and the targets

    def add(self, inputs: torch.Tensor, targets: torch.Tensor) -> None:
        """
        Adds rows.

        Args:
            inputs: `[n, in]`, what comes to the FFN, before its norm.
            targets: `[n, out]`, what its branch is to add to the shortcut.
        """
        ffn = self.ffn
        for rows, wanted in zip(inputs.split(2048), targets.split(2048), strict=True):
            normed = ffn.input_norm(rows)
            hidden = ffn.activation(F.linear(normed.double(), *_double(ffn.fc1)))
            self.moments.add(torch.cat([hidden, normed.double(), wanted.double()], dim=1))

    def refit(self, active_channels: int) -> Refit:
        """
        The best FFN with so many active channels.

        Those stay active of which a linear map of the input explains least: the variance of what it leaves, times the
        squared norm of their weights in `fc2`. The weights are the ridge regression of the targets on active channels
        and inputs, towards the dense weights.
        """
        hidden, width = self.ffn.fc1.weight.shape
        mean, covariance = self._fitted_moments()
        inputs, outputs = slice(hidden, hidden + width), slice(hidden + width, None)
        gain, fc2, _ = _scaled_fc2(self.ffn)
        # of every hidden channel: the weights with which the input explains it, [in, hidden]
        explained = solve(covariance[inputs, inputs], covariance[inputs, :hidden], covariance.new_zeros(width, hidden))
        left = covariance.diag()[:hidden] - (covariance[:hidden, inputs] * explained.T).sum(1)
        # stable: channels that tie stay in their order, on any device
        order = (left * fc2.square().sum(0)).argsort(descending=True, stable=True)
        active, idle = order[:active_channels].sort().values, order[active_channels:].sort().values
        features = torch.cat([active, torch.arange(hidden, hidden + width, device=active.device)])
        products, targets = covariance[features][:, features], covariance[features][:, outputs]
        start = torch.cat([fc2[:, active].T, explained[:, idle] @ fc2[:, idle].T])
        weights = solve(products, targets, start)
        if len(idle) < width:
            weights = _of_rank(weights, len(idle), active_channels, products, targets, start)
        variance = covariance.diag()[outputs].sum()
        rest = variance - (weights * (2 * targets - products @ weights)).sum()
        return Refit(
            active,
            idle,
            weights[:active_channels].T,
            weights[active_channels:].T,
            mean[outputs] - mean[features] @ weights,
            float(rest / variance.clamp_min(1e-300)),
        )

    def _fitted_moments(self) -> tuple[torch.Tensor, torch.Tensor]:
        moments = self.moments
        if self.ffn.fc2.bias is None:
            # nothing can hold a constant, so the fit goes through the origin
            return torch.zeros_like(moments.mean), moments.products / moments.count
        return moments.mean, moments.covariance


def _double(linear: nn.Linear) -> tuple[torch.Tensor, torch.Tensor | None]:
    return linear.weight.double(), None if linear.bias is None else linear.bias.double()


def _scaled_fc2(ffn: ChannelIdleFeedForward) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Layer scale `[out]`, and weight and bias of `fc2` with it, in float64."""
    fc2 = ffn.fc2
    gain = ffn.scale(fc2.weight.new_ones(fc2.out_features)).double()
    bias = torch.zeros_like(gain) if fc2.bias is None else fc2.bias.double()
    return gain, gain[:, None] * fc2.weight.double(), gain * bias


def _of_rank(
    weights: torch.Tensor,
    rank: int,
    active_channels: int,
    products: torch.Tensor,
    targets: torch.Tensor,
    start: torch.Tensor,
) -> torch.Tensor:
    """The same regression with a linear part of a lower rank (reduced-rank regression)."""
    a, linear = active_channels, weights[active_channels:]
    # inputs without what the active channels know of them
    rest = products[a:, a:]
    if a > 0:
        known = solve(products[:a, :a], products[:a, a:], products.new_zeros(a, len(rest)))
        rest = rest - products[a:, :a] @ known
    # the directions [rank, out] of the output in which the linear part does most
    values = linear.T @ rest @ linear
    directions = torch.linalg.eigh(values).eigenvectors.flip(1)[:, :rank]
    linear = linear @ directions @ directions.T
    if a == 0:
        return linear
    down = solve(products[:a, :a], targets[:a] - products[:a, a:] @ linear, start[:a])
    return torch.cat([down, linear])


@torch.no_grad()
def write_back_(ffn: ChannelIdleFeedForward, refit: Refit, statistics: RefitStatistics) -> None:
    """
    Makes an FFN's training form the function of a `Refit`: active channels first, the linear part in the idle ones.

    Idle channels keep their rows of `fc1` where these are at least as many as the inputs and well conditioned; else
    they get orthonormal rows. `fc2` follows. The second norm, if it is a BatchNorm, becomes the identity on the
    calibration data.
    """
    gain, _, _ = _scaled_fc2(ffn)
    # a channel that the scale silences takes any weight
    unscale = torch.where(gain == 0, gain, 1 / gain)[:, None]
    fc1, (weight, bias) = ffn.fc1, _double(ffn.fc1)
    rows, columns = _factors(refit.linear, weight[refit.idle])
    idle_bias = weight.new_zeros(len(rows))
    if ffn.fc2.bias is not None:
        idle_bias = idle_bias if bias is None else bias[refit.idle]
        ffn.fc2.bias.copy_(unscale[:, 0] * (refit.bias - columns @ idle_bias))
    fc1.weight.copy_(torch.cat([weight[refit.active], rows]))
    if fc1.bias is not None and bias is not None:
        fc1.bias.copy_(torch.cat([bias[refit.active], idle_bias]))
    ffn.fc2.weight.copy_(unscale * torch.cat([refit.down, columns], dim=1))
    if isinstance(ffn.hidden_norm, nn.modules.batchnorm._BatchNorm):
        mean, covariance = statistics.moments.mean, statistics.moments.covariance
        inputs = slice(fc1.out_features, fc1.out_features + fc1.in_features)
        # idle channels are affine in the inputs; moments of the others were summed up
        idle_mean = rows @ mean[inputs] + idle_bias
        idle_variance = ((rows @ covariance[inputs, inputs]) * rows).sum(1)
        mean = torch.cat([mean[refit.active], idle_mean])
        variance = torch.cat([covariance.diag()[refit.active], idle_variance]).clamp_min(0)
        set_batch_norm_(ffn.hidden_norm, mean, variance, torch.ones_like(mean), mean)


def _factors(linear: torch.Tensor, old_rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """`linear` `[out, in]` as columns `[out, idle]` times rows `[idle, in]`, the old rows if they are fit for it."""
    idle, width = old_rows.shape
    if idle < width:
        # its rank is at most `idle`
        left, values, right = torch.linalg.svd(linear, full_matrices=False)
        size = values[:idle].sqrt()
        return size[:, None] * right[:idle], left[:, :idle] * size
    left, values, right = torch.linalg.svd(old_rows, full_matrices=False)
    if values[0] > LARGEST_CONDITION * values[-1]:
        # the closest orthonormal rows, of the old ones' mean size
        values = values.mean().clamp_min(1e-12).expand_as(values)
        old_rows = left * values @ right
    return old_rows, linear @ (right.T / values) @ left.T


@torch.no_grad()
def linearize_norm_(ffn: ChannelIdleFeedForward, norm: nn.Module, parts: Sequence[torch.Tensor]) -> None:
    """
    Puts a BatchNorm where a norm was that depends on the data, and moves what it cannot express into `fc1`.

    The BatchNorm is the least-squares line of each channel through what the norm makes of it. `fc1` then reads the
    best affine map of all channels.

    Args:
        ffn: its `input_norm` is a BatchNorm; in place.
        norm: what it stands for.
        parts: inputs `[n, in]` of the norm.
    """
    width = ffn.fc1.in_features
    moments = Moments()
    for rows in parts:
        moments.add(torch.cat([rows, norm(rows)], dim=1))
    mean, covariance = moments.mean, moments.covariance
    variance = covariance.diag()[:width]
    between = covariance[:width, width:]
    # slope cov(x, norm(x)) / var(x), through both means
    slope = between.diag() / variance.clamp_min(1e-12)
    set_batch_norm_(ffn.input_norm, mean[:width], variance, slope, mean[width:])
    # normed channels from those that the BatchNorm gives, [in, in]: the identity, and what other channels know
    seen = slope[:, None] * covariance[:width, :width] * slope
    mixing = solve(seen, slope[:, None] * between, torch.eye(width, dtype=seen.dtype, device=seen.device)).T
    weight, bias = _double(ffn.fc1)
    if bias is not None and ffn.fc1.bias is not None:
        ffn.fc1.bias.copy_(bias + weight @ (mean[width:] - mixing @ mean[width:]))
    ffn.fc1.weight.copy_(weight @ mixing)


def set_batch_norm_(
    norm: Any, mean: torch.Tensor, variance: torch.Tensor, slope: torch.Tensor, value_at_mean: torch.Tensor
) -> None:
    """Makes a frozen BatchNorm the map `slope * (x - mean) + value_at_mean`."""
    norm.running_mean.copy_(mean)
    norm.running_var.copy_(variance)
    # BatchNorm divides by this root, eps included; the product is the slope again
    norm.weight.copy_(slope * (variance + norm.eps).sqrt())
    norm.bias.copy_(value_at_mean)


@torch.no_grad()
def idle_without_data_(ffn: ChannelIdleFeedForward, gamma: torch.Tensor, beta: torch.Tensor) -> None:
    """
    Chooses active channels and the slopes of the others without data, in place.

    After a norm with weight gamma and bias beta an input channel is taken as normal with this mean and deviation. A
    hidden channel h is then normal too, and the line closest to its activation has slope E[act'(h)] (Stein's lemma).

    Args:
        ffn: holds the dense weights.
        gamma: `[in]`.
        beta: `[in]`.
    """
    weight, bias = _double(ffn.fc1)
    mean = weight @ beta.double() + (0 if bias is None else bias)
    deviation = (weight.square() @ gamma.double().square()).sqrt().clamp_min(1e-12)
    # the normal distribution as 129 points with weights, [hidden, points]
    points = torch.linspace(-6, 6, 129, dtype=torch.float64, device=weight.device)
    density = torch.exp(-points.square() / 2)
    density = density / density.sum()
    values = ffn.activation(mean[:, None] + deviation[:, None] * points)
    average = values @ density
    slope = (values * points) @ density / deviation
    left = (values.square() @ density - average.square() - (slope * deviation).square()).clamp_min(0)
    order = (left * ffn.fc2.weight.double().square().sum(0)).argsort(descending=True, stable=True)
    active, idle = order[: ffn.active_channels].sort().values, order[ffn.active_channels :].sort().values
    order = torch.cat([active, idle])
    slope[active], average[active], mean[active] = 1, 0, 0
    fc2 = ffn.fc2.weight.double()
    if ffn.fc2.bias is not None:
        ffn.fc2.bias.copy_(ffn.fc2.bias.double() + fc2 @ (average - slope * mean))
    ffn.fc2.weight.copy_((fc2 * slope)[:, order])
    ffn.fc1.weight.copy_(weight[order])
    if ffn.fc1.bias is not None and bias is not None:
        ffn.fc1.bias.copy_(bias[order])


__all__ = [
    "Refit",
    "RefitStatistics",
    "idle_without_data_",
    "linearize_norm_",
    "set_batch_norm_",
    "write_back_",
]
