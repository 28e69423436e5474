"""RePaViT: vision Transformers with channel-idle FFNs (https://huggingface.co/papers/2505.21847)."""

import copy
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from transformers import AutoModel
from transformers.modeling_outputs import BaseModelOutputWithPooling, ImageClassifierOutput
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs
from transformers.utils.generic import can_return_tuple

from .backbones import Site, site_of
from .configuration_repavit import RePaViTConfig
from .fusion import Fusible, FusiblePreTrainedModel, make_linear


class DropPath(nn.Module):
    """Stochastic depth: drops a residual branch per sample, with probability `rate` (arXiv 1603.09382)."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, branch: torch.Tensor) -> torch.Tensor:
        if self.rate == 0 or not self.training:
            return branch
        keep = 1 - self.rate
        return branch * branch.new_empty(len(branch), *[1] * (branch.ndim - 1)).bernoulli_(keep).div_(keep)

    def extra_repr(self) -> str:
        return f"rate={self.rate:.3f}"


class RecomputeSafeBatchNorm1d(nn.BatchNorm1d):
    """BatchNorm that updates its running statistics once per step, also under activation checkpointing."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        # the id of the running backward pass; -1 outside of one, where this is not a recomputation
        if not self.training or torch._C._current_graph_task_id() == -1:
            return super().forward(input)
        thrown_away = copy.copy(self)
        thrown_away._buffers = {name: buffer.clone() for name, buffer in self.named_buffers()}
        return nn.BatchNorm1d.forward(thrown_away, input)


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
    if isinstance(norm, nn.LayerNorm):
        return norm.weight.double(), norm.bias.double()
    if isinstance(norm, nn.modules.batchnorm._BatchNorm):
        mean, var = norm.get_buffer("running_mean").double(), norm.get_buffer("running_var").double()
        scale = norm.weight.double() * (var + norm.eps).rsqrt()
        return scale, norm.bias.double() - scale * mean
    raise TypeError(f"{type(norm).__name__} has no affine form.")


def _slices(start: int, stop: int, length: int = 128) -> Iterator[slice]:
    return (slice(first, min(first + length, stop)) for first in range(start, stop, length))


class IdleFeedForward(Fusible):
    """
    FFN sub-layer, shortcut included, of which only the first `active_channels` hidden channels are activated.

    Training form (Eq. 2 of the paper), with layer scale and drop path where the backbone has them:
    `Y = X + drop(scale(fc2(norm2([act(h[:a]), h[a:]]))))` with `h = fc1(norm1(X))`.
    """

    def __init__(
        self,
        norm1: nn.Module,
        fc1: nn.Linear,
        activation: nn.Module,
        norm2: nn.Module,
        fc2: nn.Linear,
        active_channels: int,
        scale: nn.Module,
        drop: nn.Module,
    ) -> None:
        super().__init__()
        self.norm1, self.fc1, self.activation = norm1, fc1, activation
        self.norm2, self.fc2 = norm2, fc2
        self.active_channels = active_channels
        self.scale, self.drop = scale, drop

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """`[batch, tokens, channels]` to the same shape."""
        hidden = self.fc1(self.norm1(hidden_states.flatten(0, -2)))  # BatchNorm takes all tokens as one batch
        active, idle = hidden.tensor_split([self.active_channels], dim=-1)
        hidden = torch.cat([self.activation(active), idle], dim=-1)
        branch = self.fc2(self.norm2(hidden)).view_as(hidden_states)
        return hidden_states + self.drop(self.scale(branch))

    @torch.no_grad()
    def fuse(self) -> nn.Module:
        """
        Inference form (Eq. 3 to 6, with biases): the idle path and the shortcut become one linear.

        `Y = shortcut(X) + down(act(up(X)))`; without active channels `shortcut` alone. With a LayerNorm in front,
        which depends on the data, norm and shortcut stay: `Y = X + f(norm(X))`. Works on slices of the hidden
        channels, to need no float64 copy of the layer.
        """
        fc1, fc2, a = self.fc1, self.fc2, self.active_channels
        scale1, shift1 = as_affine(self.norm1, fc1.weight[0])
        scale2, shift2 = as_affine(self.norm2, fc2.weight[0])
        gain = self.scale(fc2.weight.new_ones(fc2.out_features)).double()
        up, down = torch.empty_like(fc1.weight[:a]), torch.empty_like(fc2.weight[:, :a])
        up_bias = torch.empty_like(fc1.bias[:a])
        linear = fc2.weight.new_zeros(fc2.out_features, fc1.in_features, dtype=torch.float64)
        bias = gain * fc2.bias.double()
        for rows in (*_slices(0, a), *_slices(a, fc1.out_features)):
            w1, w2 = fc1.weight[rows].double(), gain[:, None] * fc2.weight[:, rows].double()
            b1 = fc1.bias[rows].double() + (w1 * shift1).sum(1)
            w1 = w1 * scale1
            bias += (w2 * shift2[rows]).sum(1)
            w2 *= scale2[rows]
            if rows.start < a:
                up[rows], up_bias[rows], down[:, rows] = w1, b1, w2
            else:
                linear.addmm_(w2, w1)
                bias += w2 @ b1
        if not isinstance(self.norm1, nn.LayerNorm):
            linear.diagonal().add_(1)
        shortcut = make_linear(linear.to(fc2.weight), bias.to(fc2.weight))
        fused: nn.Module = shortcut
        if a > 0:
            fused = FusedFeedForward(shortcut, make_linear(up, up_bias), self.activation, make_linear(down))
        if isinstance(self.norm1, nn.LayerNorm):
            fused = NormedResidual(nn.LayerNorm(fc1.in_features, self.norm1.eps, elementwise_affine=False), fused)
        return fused

    def extra_repr(self) -> str:
        return f"active_channels={self.active_channels}/{self.fc1.out_features}"


class FusedFeedForward(nn.Module):
    """Inference form: a linear path over all channels beside a small FFN over the active ones."""

    def __init__(self, shortcut: nn.Linear, up: nn.Linear, activation: nn.Module, down: nn.Linear) -> None:
        super().__init__()
        self.shortcut, self.up, self.activation, self.down = shortcut, up, activation, down

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.shortcut(hidden_states) + self.down(self.activation(self.up(hidden_states)))


class NormedResidual(nn.Module):
    """`X + ffn(norm(X))`: what is left around a fused FFN whose norm depends on the data."""

    def __init__(self, norm: nn.Module, ffn: nn.Module) -> None:
        super().__init__()
        self.norm, self.ffn = norm, ffn

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return hidden_states + self.ffn(self.norm(hidden_states))


class RePaBlock(nn.Module):
    """Forward of a pre-norm block whose FFN sub-layer contains the shortcut; mixed into the backbone's block class."""

    site: Site
    drop_path: nn.Module

    def forward(self, hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        normed = self.get_submodule(self.site.attention_norm)(hidden_states)
        branch = self.get_submodule(self.site.attention)(normed, *args, **kwargs)[0]
        if self.site.attention_scale is not None:
            branch = self.get_submodule(self.site.attention_scale)(branch)
        return self.get_submodule(self.site.ffn)(hidden_states + self.drop_path(branch))


def make_idle_(block: nn.Module, site: Site, config: RePaViTConfig, active_channels: int, drop_path: float) -> None:
    """Turns a backbone's block, in place, into a RePaViT block; attention and its norm stay as they are."""
    fc1, activation, fc2 = site.ffn_parts(block)
    norms = [block.get_submodule(site.ffn_norm), nn.Identity()]
    if config.block_norm_eps is not None:
        for norm in (norms[0], block.get_submodule(site.attention_norm)):
            norm.eps = config.block_norm_eps  # type: ignore[assignment]
    if config.ffn_norm == "batch":
        eps, momentum = config.batch_norm_eps, config.batch_norm_momentum
        norms = [RecomputeSafeBatchNorm1d(n, eps, momentum) for n in (fc1.in_features, fc1.out_features)]
    dropout = nn.Identity() if site.dropout is None else block.get_submodule(site.dropout)
    drop = nn.Sequential(dropout, DropPath(drop_path))
    scale = nn.Identity() if site.ffn_scale is None else block.get_submodule(site.ffn_scale)
    for name in filter(None, (site.ffn_norm, site.ffn_scale, site.dropout)):
        delattr(block, name)
    block.drop_path = drop
    setattr(block, site.ffn, IdleFeedForward(norms[0], fc1, activation, norms[1], fc2, active_channels, scale, drop))
    # a subclass of the stock block, and of its name: transformers finds blocks by class and by class name
    stock = type(block)
    block.__class__ = type(stock.__name__, (RePaBlock, stock), {"site": site, "__module__": stock.__module__})


class RePaViTPreTrainedModel(FusiblePreTrainedModel):
    config: RePaViTConfig
    main_input_name = "pixel_values"
    input_modalities = ["image"]
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True
    model_tags = ["fusible", "repavit"]

    def __init__(self, config: RePaViTConfig) -> None:
        super().__init__(config)
        self.site = site_of(config.backbone_config)
        self.backbone = AutoModel.from_config(config.backbone_config, **self.site.model_kwargs)
        blocks = list(self.site.blocks(self.backbone))
        widths = [self.site.ffn_parts(block)[0].out_features for block in blocks]
        rates = torch.linspace(0, config.drop_path_rate, len(blocks), device="cpu").tolist()
        for block, active_channels, rate in zip(blocks, config.active_channels_of(widths), rates, strict=True):
            make_idle_(block, self.site, config, active_channels, rate)

    @property
    def dummy_inputs(self) -> dict[str, torch.Tensor]:
        """Two random images of the configured size, always the same ones."""
        config = self.backbone.config
        size = config.image_size if isinstance(config.image_size, list | tuple) else [config.image_size] * 2
        generator = torch.Generator().manual_seed(0)
        return {"pixel_values": torch.randn(2, config.num_channels, *size, generator=generator, device="cpu")}

    def get_input_embeddings(self) -> nn.Module:
        return self.backbone.get_input_embeddings()

    def encode(
        self, pixel_values: torch.Tensor | None, **kwargs: Unpack[TransformersKwargs]
    ) -> BaseModelOutputWithPooling:
        """The backbone's outputs, with the feature that heads read as `pooler_output`."""
        kwargs.setdefault("output_hidden_states", self.config.output_hidden_states)
        kwargs.setdefault("output_attentions", self.config.output_attentions)
        outputs = self.backbone(pixel_values, **kwargs)
        outputs.pooler_output = self.site.pool(outputs)
        return outputs


class RePaViTModel(RePaViTPreTrainedModel):
    """RePaViT without a head; `pooler_output` is the image feature `[batch, hidden_size]`."""

    def __init__(self, config: RePaViTConfig) -> None:
        super().__init__(config)
        self.post_init()

    @can_return_tuple
    def forward(
        self, pixel_values: torch.Tensor | None = None, **kwargs: Unpack[TransformersKwargs]
    ) -> BaseModelOutputWithPooling:
        """
        Args:
            pixel_values: `[batch, channels, height, width]`, normalised by the image processor.
        """
        return self.encode(pixel_values, **kwargs)


class RePaViTForImageClassification(RePaViTPreTrainedModel):
    """RePaViT with a linear classifier on the image feature."""

    def __init__(self, config: RePaViTConfig) -> None:
        super().__init__(config)
        self.num_labels = config.num_labels or 0
        width = self.backbone.config.hidden_size
        self.classifier = nn.Linear(width, self.num_labels) if self.num_labels > 0 else nn.Identity()
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> ImageClassifierOutput:
        """
        Args:
            pixel_values: `[batch, channels, height, width]`, normalised by the image processor.
            labels: `[batch]` class ids (int64), or targets in the form that `config.problem_type` names.
        """
        outputs = self.encode(pixel_values, **kwargs)
        logits = self.classifier(outputs.pooler_output)
        loss = None if labels is None else self.loss_function(labels, logits, self.config, **kwargs)
        return ImageClassifierOutput(
            loss=loss, logits=logits, hidden_states=outputs.hidden_states, attentions=outputs.attentions
        )


RePaViTModel.register_for_auto_class("AutoModel")
RePaViTForImageClassification.register_for_auto_class("AutoModelForImageClassification")

__all__ = ["RePaViTForImageClassification", "RePaViTModel", "RePaViTPreTrainedModel"]
