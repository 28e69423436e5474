"""ZeroI2V's linear adapters around attention and FFN, and their folding into the linears beside them."""

import copy
from collections.abc import Callable, Mapping
from typing import Any, cast

import torch
from torch import nn
from transformers import initialization as init

from ...core.backbones import BackboneSpec
from ...core.fusion import Fusible, check_part, make_linear
from .attention import ShiftedLinear
from .configuration_zeroi2v import ZeroI2VConfig


PROJECTIONS = ("q_proj", "k_proj", "v_proj")  # in all of transformers' attentions
Affine = tuple[torch.Tensor, torch.Tensor | None]  # weight [out, in] and bias [out]


class LinearAdapter(nn.Module):
    """
    `A(x) = x + scale * (up(dropout(down(x))))` without an activation: in eval mode one linear map.

    It starts as the identity. The authors draw `down` from a truncated normal distribution of deviation 0.02.

    Args:
        channels: width of its input and output.
        rank: width in between.
        scale: of the branch.
        dropout: probability, in between.
        bias: whether its linears have biases.
    """

    def __init__(self, channels: int, rank: int, scale: float, dropout: float, bias: bool) -> None:
        super().__init__()
        self.down = nn.Linear(channels, rank, bias=bias)
        self.up = nn.Linear(rank, channels, bias=bias)
        self.dropout = nn.Dropout(dropout)
        self.scale = scale

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draws the weights, except loaded ones."""
        init.trunc_normal_(self.down.weight, std=0.02)
        # with up at 0 the branch is 0, and A is the identity
        for tensor in (self.down.bias, self.up.weight, self.up.bias):
            if tensor is not None:
                init.zeros_(tensor)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return torch.add(hidden_states, self.up(self.dropout(self.down(hidden_states))), alpha=self.scale)

    def extra_repr(self) -> str:
        return f"scale={self.scale}"


def constant_of(adapter: LinearAdapter) -> torch.Tensor | None:
    """`A(0) = s (U c + e)`, `[channels]` in float64; `None` without biases."""
    if adapter.up.bias is None:
        return None
    return adapter.scale * (adapter.up.weight.double() @ adapter.down.bias.double() + adapter.up.bias.double())


def fold_before(adapter: LinearAdapter, weight: torch.Tensor, bias: torch.Tensor | None) -> Affine:
    """A linear with an adapter in front of it as one linear, in float64: `W (I + s U D)` and `b + W A(0)`."""
    weight, up, down = weight.double(), adapter.up.weight.double(), adapter.down.weight.double()
    # (W U) D and not W (U D), which costs more: the rank is small
    folded, constant = weight + adapter.scale * (weight @ up) @ down, constant_of(adapter)
    added = None if constant is None else weight @ constant
    if bias is None or added is None:
        # one of the two biases alone, or none
        return folded, added if bias is None else bias.double()
    return folded, bias.double() + added


def fold_after(adapter: LinearAdapter, weight: torch.Tensor, bias: torch.Tensor | None) -> Affine:
    """A linear with an adapter behind it as one linear, in float64: `(I + s U D) W` and `(I + s U D) b + A(0)`."""
    weight, up, down = weight.double(), adapter.up.weight.double(), adapter.down.weight.double()
    # U (D W) and not (U D) W, which costs more
    folded, added = weight + adapter.scale * up @ (down @ weight), constant_of(adapter)
    if bias is None:
        return folded, added
    # the adapter also acts on the linear's bias
    moved = bias.double() + adapter.scale * up @ (down @ bias.double())
    return folded, moved if added is None else moved + added


def folded_layer(layer: nn.Module, adapter: nn.Module, fold: Callable[..., Affine]) -> nn.Module:
    """
    A linear with the adapter beside it, as a layer of its own kind, dtype and device, frozen if it is.

    A layer without bias stays without: adapters are made such that nothing is lost, see `adapt_`.
    """
    if not isinstance(adapter, LinearAdapter):
        return layer
    weight, bias = layer.get_parameter("weight"), cast(torch.Tensor | None, layer.bias)
    if weight.is_meta:
        return layer  # of the same shapes, and there is nothing to compute
    new_weight, new_bias = fold(adapter, weight, bias)
    linear = make_linear(new_weight.to(weight), None if bias is None or new_bias is None else new_bias.to(bias))
    linear.requires_grad_(weight.requires_grad)
    # keys and values keep their shift, which comes after the projection
    return layer.like(linear) if isinstance(layer, ShiftedLinear) else linear


def check_parts(fusible: Fusible, *layers: str) -> None:
    """Raises `TypeError` for adapters of a `Fusible`, or linear layers beside them, that folding does not cover."""
    for name in ("adapter_before", "adapter_after"):
        check_part(fusible, name, LinearAdapter, nn.Identity)
        if isinstance(fusible.get_submodule(name), LinearAdapter):
            check_part(fusible, f"{name}.down", nn.Linear)
            check_part(fusible, f"{name}.up", nn.Linear)
            check_part(fusible, f"{name}.dropout", nn.Dropout, nn.Identity)
    for name in layers:
        check_part(fusible, name, nn.Linear, ShiftedLinear)


def with_children(module: nn.Module, children: Mapping[str, nn.Module]) -> nn.Module:
    """A copy of a module that shares everything with it but some of its children."""
    copied = copy.copy(module)
    copied._modules = {**module._modules, **children}  # a new dict: the copy would share the module's own
    return copied


class AdaptedAttention(Fusible):
    """
    An attention with a linear adapter before queries, keys and values, and one after its output projection.

    Args:
        attention: with `q_proj`, `k_proj`, `v_proj`; its first output is that of its output projection.
        output: name of the output projection.
        before: the adapter of its input.
        after: the adapter of its output, or the identity.
    """

    def __init__(self, attention: nn.Module, output: str, before: nn.Module, after: nn.Module) -> None:
        super().__init__()
        self.adapter_before = before
        self.attention = attention
        self.adapter_after = after
        self.output = output

    def forward(self, hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> tuple[Any, ...]:
        # the block's norm feeds queries, keys and values only, so one adapter in front covers all three
        outputs = self.attention(self.adapter_before(hidden_states), *args, **kwargs)
        return self.adapter_after(outputs[0]), *outputs[1:]

    @torch.no_grad()
    def fuse(self) -> nn.Module:
        """The attention, whose projections contain the adapters."""
        check_parts(self, *(f"attention.{name}" for name in (*PROJECTIONS, self.output)))
        # dropout inside the adapters is off in eval mode, where this is exact up to rounding
        child = self.attention.get_submodule
        folded = {name: folded_layer(child(name), self.adapter_before, fold_before) for name in PROJECTIONS}
        folded[self.output] = folded_layer(child(self.output), self.adapter_after, fold_after)
        return with_children(self.attention, folded)


class AdaptedFeedForward(Fusible):
    """
    An FFN with a linear adapter before its first linear, and one after its second.

    Args:
        ffn: the FFN.
        fc1: name of its first linear.
        fc2: name of its second one, whose output is the FFN's.
        before: the adapter of its input.
        after: the adapter of its output, or the identity.
    """

    def __init__(self, ffn: nn.Module, fc1: str, fc2: str, before: nn.Module, after: nn.Module) -> None:
        super().__init__()
        self.adapter_before = before
        self.ffn = ffn
        self.adapter_after = after
        self.fc1 = fc1
        self.fc2 = fc2

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.adapter_after(self.ffn(self.adapter_before(hidden_states)))

    @torch.no_grad()
    def fuse(self) -> nn.Module:
        """The FFN, whose linears contain the adapters."""
        check_parts(self, f"ffn.{self.fc1}", f"ffn.{self.fc2}")
        first = folded_layer(self.ffn.get_submodule(self.fc1), self.adapter_before, fold_before)
        second = folded_layer(self.ffn.get_submodule(self.fc2), self.adapter_after, fold_after)
        return with_children(self.ffn, {self.fc1: first, self.fc2: second})


def adapt_(block: nn.Module, spec: BackboneSpec, config: ZeroI2VConfig) -> None:
    """
    Puts adapters around attention and FFN of a backbone's block, in place.

    An adapter has biases if the linears that it will be folded into have them, as all of the authors' have. Keys are
    an exception: a vector added to all keys changes no softmax, unless they are turned by their positions afterwards.
    """

    def adapter(channels: int, *targets: nn.Module) -> LinearAdapter:
        bias = all(target.bias is not None for target in targets)
        # rounded down, as by the authors: checkpoints depend on it
        rank = int(config.adapter_ratio * channels)
        return LinearAdapter(channels, rank, config.adapter_scale, config.adapter_dropout, bias)

    attention, ffn = block.get_submodule(spec.projections), block.get_submodule(spec.ffn)
    # BEiT's keys have no bias; the constant that they would need is left out when folding
    inputs = [name for name in PROJECTIONS if name != "k_proj" or not spec.plain_attention]
    output, (fc1, _, fc2) = attention.get_submodule(spec.attention_output), spec.ffn_parts(block)
    # of this block: Swin's grow from stage to stage
    width = output.get_parameter("weight").shape[0]
    before_attention = adapter(width, *(attention.get_submodule(name) for name in inputs))
    before_ffn = adapter(width, fc1)
    after_attention = adapter(width, output) if config.num_adapters > 2 else nn.Identity()
    after_ffn = adapter(width, fc2) if config.num_adapters > 3 else nn.Identity()
    adapted = AdaptedAttention(attention, spec.attention_output, before_attention, after_attention)
    block.set_submodule(spec.projections, adapted)
    block.set_submodule(spec.ffn, AdaptedFeedForward(ffn, spec.fc1, spec.fc2, before_ffn, after_ffn))


__all__ = ["AdaptedAttention", "AdaptedFeedForward", "LinearAdapter", "adapt_", "fold_after", "fold_before"]
