"""Starting RePaViT from dense weights: what calibration data say about norms and channels, and how it is used."""

import inspect
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from ...core.backbones import BackboneSpec
from ...hub.form_facts import moved
from .feed_forward import ChannelIdleFeedForward


class Moments:
    """Running mean and variance per channel, in float64, of values `[rows, channels]`."""

    def __init__(self) -> None:
        self.count = 0
        self.sum = torch.tensor(0.0)
        self.square = torch.tensor(0.0)

    def add(self, values: torch.Tensor) -> None:
        # sums over all tokens of all batches: in float32 late values would round away
        values = values.double()
        self.count += len(values)
        self.sum = self.sum.to(values.device) + values.sum(0)
        self.square = self.square.to(values.device) + values.square().sum(0)

    @property
    def mean(self) -> torch.Tensor:
        return self.sum / self.count

    @property
    def variance(self) -> torch.Tensor:
        # rounding can take the variance of a constant channel below 0
        return (self.square / self.count - self.mean.square()).clamp_min(0)


class BlockStatistics:
    """What one dense FFN sees: its input before and after the norm, and its hidden channels, active and idle."""

    def __init__(self, activation: nn.Module, channels_first: bool) -> None:
        self.activation = activation
        self.channels_first = channels_first
        self.inputs = Moments()
        self.product = Moments()
        self.normed = Moments()
        self.idle = Moments()
        self.active = Moments()
        self.positive = Moments()

    def _rows(self, values: torch.Tensor) -> torch.Tensor:
        return (values.movedim(1, -1) if self.channels_first else values).flatten(0, -2)

    def see_norm(self, norm: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        before, after = self._rows(inputs[0]), self._rows(output)
        self.inputs.add(before)
        self.normed.add(after)
        # its mean gives the covariance of a channel before and after the norm
        self.product.add(before.double() * after.double())

    def see_hidden(self, fc1: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        hidden = self._rows(output)
        self.idle.add(hidden)
        # the hook sees the hidden channels before the activation, which only some will keep
        self.active.add(self._rows(self.activation(output)))
        self.positive.add(hidden > 0)


@torch.no_grad()
def collect_statistics(
    backbone: PreTrainedModel, spec: BackboneSpec, batches: Iterable[Mapping[str, Any]]
) -> list[BlockStatistics]:
    """
    Runs a dense backbone on calibration data.

    Args:
        backbone: in eval mode, on any device.
        spec: its row of `BACKBONES`.
        batches: the backbone's inputs, such as `pixel_values`, and anything else, which is left out.

    Raises:
        ValueError: if there are no batches.
    """
    names = inspect.signature(backbone.forward).parameters
    statistics, hooks = [], []
    for block in spec.blocks(backbone):
        ffn = block.get_submodule(spec.ffn)
        found = BlockStatistics(ffn.get_submodule(spec.activation), spec.channels_first)
        hooks.append(block.get_submodule(spec.ffn_norm).register_forward_hook(found.see_norm))
        hooks.append(ffn.get_submodule(spec.fc1).register_forward_hook(found.see_hidden))
        statistics.append(found)
    try:
        for batch in batches:
            given = {name: value for name, value in batch.items() if name in names and value is not None}
            backbone(**moved(given, backbone.device, backbone.dtype))
    finally:
        for hook in hooks:
            hook.remove()
    if not statistics[0].inputs.count:
        raise ValueError(f"calibration is empty; give at least one batch with {backbone.main_input_name}.")
    return statistics


@torch.no_grad()
def calibrate_(ffn: ChannelIdleFeedForward, statistics: BlockStatistics) -> None:
    """
    Chooses the active channels and sets the norms of an FFN that holds dense weights, in place.

    Those hidden channels stay active that are positive least often, as the activation is closest to linear where its
    input is positive. They move to the front. The first BatchNorm becomes the affine map per channel that is closest
    to the dense LayerNorm; the second one changes nothing until training moves it.
    """
    # stable: channels that tie stay in their order, on any device
    order = statistics.positive.mean.argsort(stable=True)
    active = order[: ffn.active_channels].sort().values
    idle = order[ffn.active_channels :].sort().values
    # hidden channels in another order are the same function if fc1's rows and fc2's columns move together
    order = torch.cat([active, idle]).to(ffn.fc1.weight.device)
    for parameter, dimension in ((ffn.fc1.weight, 0), (ffn.fc1.bias, 0), (ffn.fc2.weight, 1)):
        if parameter is not None:
            parameter.copy_(parameter.index_select(dimension, order))
    if not isinstance(ffn.input_norm, nn.modules.batchnorm._BatchNorm):
        return
    # the least-squares line per channel: slope cov(x, LN(x)) / var(x), through both means
    inputs, normed = statistics.inputs, statistics.normed
    covariance = statistics.product.mean - inputs.mean * normed.mean
    _set_batch_norm(
        ffn.input_norm, inputs.mean, inputs.variance, covariance / inputs.variance.clamp_min(1e-12), normed.mean
    )
    # what the second norm will see: channels in their new order, only the active ones activated
    mean = torch.cat([statistics.active.mean[active], statistics.idle.mean[idle]])
    variance = torch.cat([statistics.active.variance[active], statistics.idle.variance[idle]])
    _set_batch_norm(ffn.hidden_norm, mean, variance, torch.ones_like(mean), mean)


def _set_batch_norm(
    norm: Any, mean: torch.Tensor, variance: torch.Tensor, slope: torch.Tensor, value_at_mean: torch.Tensor
) -> None:
    """Makes a frozen BatchNorm the map `slope * (x - mean) + value_at_mean`."""
    norm.running_mean.copy_(mean)
    norm.running_var.copy_(variance)
    # BatchNorm divides by this root, eps included; the product is the slope again
    norm.weight.copy_(slope * (variance + norm.eps).sqrt())
    norm.bias.copy_(value_at_mean)


__all__ = ["BlockStatistics", "calibrate_", "collect_statistics"]
