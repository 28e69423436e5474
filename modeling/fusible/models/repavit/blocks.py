"""RePaViT's blocks: a backbone's own, whose FFN sub-layer is replaced."""

from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import nn
from transformers import PreTrainedConfig
from transformers.modeling_layers import GradientCheckpointingLayer

from ...core.backbones import BackboneSpec
from ...core.batch_norm import RecomputeSafeBatchNorm1d, RecomputeSafeSyncBatchNorm
from ...core.fusion import make_linear
from ...core.subclassing import mix_in_
from .configuration_repavit import RePaViTConfig
from .feed_forward import ChannelIdleFeedForward
from .zero_branch import ZeroBranch


class ChannelScale(nn.Module):
    """Layer scale, for backbones that have it as a bare parameter: a factor per channel."""

    def __init__(self, weight: nn.Parameter, channels_first: bool) -> None:
        super().__init__()
        self.weight = weight
        self.channels_first = channels_first

    def forward(self, branch: torch.Tensor) -> torch.Tensor:
        return branch * (self.weight[:, None, None] if self.channels_first else self.weight)


def attend_from_class_token(attention: nn.Module, output: str, hidden_states: torch.Tensor) -> torch.Tensor:
    """The first row `[batch, 1, channels]` of a stock attention's output, without the products for the others."""

    def project(name: str, tokens: torch.Tensor) -> torch.Tensor:
        heads = attention.get_submodule(name)(tokens).unflatten(-1, (-1, attention.head_dim))
        # [batch, tokens, heads, head_dim] to [batch, heads, tokens, head_dim]
        return heads.transpose(1, 2)

    # keys and values of all tokens, but one query: the class token alone is read after the last block
    query = project("q_proj", hidden_states[:, :1])
    key, value = project("k_proj", hidden_states), project("v_proj", hidden_states)
    # [batch, heads, 1, head_dim]; no dropout, as only inference gets here
    mixed = F.scaled_dot_product_attention(query, key, value)
    return attention.get_submodule(output)(mixed.transpose(1, 2).flatten(2))


def uses_sdpa(attention: nn.Module) -> bool:
    """Whether a stock attention runs torch's own; others, such as one that is registered, have to run as they are."""
    return cast(PreTrainedConfig, attention.config)._attn_implementation == "sdpa"


class RePaBlock(GradientCheckpointingLayer):
    """Forward of a pre-norm block whose FFN sub-layer contains the shortcut; mixed into the backbone's block class."""

    backbone_spec: BackboneSpec
    attention_branch_scale: nn.Module
    drop_path: nn.Module
    feed_forward: nn.Module
    is_last: bool

    def forward(self, hidden_states: torch.Tensor, *args: Any, class_token_only: bool = False, **kwargs: Any) -> Any:
        normed = self.get_submodule(self.backbone_spec.attention_norm)(hidden_states)
        attention = self.get_submodule(str(self.backbone_spec.attention))
        class_token_only = class_token_only and self.is_last  # tokens of other blocks are read by the next one
        is_masked = (args[0] if args else kwargs.get("attention_mask")) is not None
        if class_token_only and self.backbone_spec.plain_attention and not is_masked and uses_sdpa(attention):
            branch = attend_from_class_token(attention, self.backbone_spec.attention_output, normed)
        else:
            branch = attention(normed, *args, **kwargs)
            # attentions give their weights too, PoolFormer's pooling a tensor alone
            branch = branch[0] if isinstance(branch, tuple) else branch
        if class_token_only:
            # what follows works on each token alone: BatchNorms are affine maps at inference
            hidden_states, branch = hidden_states[:, :1], branch[:, :1]
        hidden_states = hidden_states + self.drop_path(self.attention_branch_scale(branch))
        if self.backbone_spec.channels_first:
            # the FFN's linears take channels last; PoolFormer's encoder reads the first of a tuple
            return (self.feed_forward(hidden_states.movedim(1, -1)).movedim(-1, 1),)
        return self.feed_forward(hidden_states)


class RePaStockBlock(GradientCheckpointingLayer):
    """The same around the block's own forward, in which the FFN does nothing."""

    feed_forward: nn.Module

    def forward(self, hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        # with an FFN that adds zero, what the stock forward returns is the attention's residual stream
        outputs = super().forward(hidden_states, *args, **kwargs)
        # Swin's blocks return their attention weights beside it
        if isinstance(outputs, tuple):
            return (self.feed_forward(outputs[0]), *outputs[1:])
        return self.feed_forward(outputs)


def as_linear(layer: nn.Module) -> nn.Linear:
    """A linear layer, or a 1x1 convolution as the linear layer that it is over channels."""
    if isinstance(layer, nn.Conv2d):
        bias = None if layer.bias is None else layer.bias.detach()
        # [out, in, 1, 1] to [out, in]
        linear = make_linear(layer.weight.detach().flatten(1), bias)
        # weights that were loaded are not initialized again
        linear._is_hf_initialized = getattr(layer, "_is_hf_initialized", False)  # type: ignore[assignment]
        return linear
    return cast(nn.Linear, layer)


def pop_layer_scale(block: nn.Module, name: str | None, channels_first: bool) -> nn.Module:
    """Removes a layer scale from a block, in whatever form the block has it, if any, and returns it as a module."""
    scale = None if name is None else getattr(block, name, None)
    if isinstance(scale, nn.Parameter):
        scale = ChannelScale(scale, channels_first)
    # off the block before the FFN takes it, so that its parameter has one name in the state dict
    if scale is not None:
        delattr(block, str(name))
    # a number is BEiT's 1.0, for no layer scale
    return scale if isinstance(scale, nn.Module) else nn.Identity()


def convert_block_(
    block: nn.Module, spec: BackboneSpec, config: RePaViTConfig, active_channels: int, drop_path: nn.Module
) -> None:
    """Turns a backbone's block, in place, into a RePaViT block; attention and its norm stay as they are."""
    fc1, activation, fc2 = spec.ffn_parts(block)
    fc1, fc2 = as_linear(fc1), as_linear(fc2)
    norms = [block.get_submodule(spec.ffn_norm), nn.Identity()]  # before the first and before the second linear
    if config.block_norm_eps is not None:
        for norm in (norms[0], block.get_submodule(spec.attention_norm)):
            norm.eps = config.block_norm_eps  # type: ignore[assignment]
    if config.ffn_norm == "batch":
        eps, momentum = config.batch_norm_eps, config.batch_norm_momentum
        batch_norm = RecomputeSafeSyncBatchNorm if config.sync_batch_norm else RecomputeSafeBatchNorm1d
        # the second one comes after the activation and covers active and idle channels (Eq. 2)
        norms = [batch_norm(n, eps, momentum) for n in (fc1.in_features, fc1.out_features)]
    elif not isinstance(norms[0], nn.LayerNorm):
        raise ValueError(f"ffn_norm='layer' needs a backbone with LayerNorms; {spec.block} has another norm.")
    dropout = nn.Identity() if spec.dropout is None else block.get_submodule(spec.dropout)
    # without parameters, so one module can serve both branches
    drop = nn.Sequential(dropout, drop_path)
    scale = pop_layer_scale(block, spec.ffn_scale, channels_first=False)  # the FFN sees channels last
    block.feed_forward = ChannelIdleFeedForward(norms[0], fc1, activation, norms[1], fc2, active_channels, scale, drop)
    delattr(block, spec.ffn)
    delattr(block, spec.ffn_norm)
    if spec.attention is None:
        # the block's own forward goes on to run, so all that it calls must be there and change nothing
        setattr(block, spec.ffn, ZeroBranch())
        setattr(block, spec.ffn_norm, nn.Identity())
        if spec.ffn_scale is not None:
            setattr(block, spec.ffn_scale, 1.0)
        # the stock forward has a dropout of its own for the attention's branch
        block.drop_path = drop_path
        mixin: type[nn.Module] = RePaStockBlock
    else:
        block.attention_branch_scale = pop_layer_scale(block, spec.attention_scale, spec.channels_first)
        block.drop_path = drop
        mixin = RePaBlock
    block.backbone_spec = spec  # type: ignore[assignment]
    mix_in_(block, mixin)


__all__ = ["RePaBlock", "convert_block_"]
