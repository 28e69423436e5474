"""RePaViT: vision Transformers with channel-idle FFNs (https://huggingface.co/papers/2505.21847)."""

import os
from collections.abc import Iterable, Mapping
from typing import Any, Self, cast

import torch
import torch.nn.functional as F
from torch import nn
from transformers import AutoModel, PreTrainedModel
from transformers.backbone_utils import BackboneMixin, filter_output_hidden_states
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BackboneOutput, BaseModelOutputWithPooling, ImageClassifierOutput
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs
from transformers.utils.generic import can_return_tuple

from .backbones import Site, site_of
from .batch_norm_repavit import RecomputeSafeBatchNorm1d, RecomputeSafeSyncBatchNorm
from .calibration_repavit import calibrate_, collect_statistics
from .configuration_point_vit import PointViTConfig
from .configuration_repavit import RePaViTConfig
from .ffn_repavit import DropPath, IdleFeedForward
from .fusion import FusiblePreTrainedModel, make_linear
from .modeling_point_vit import make_classifier


class ChannelScale(nn.Module):
    """Layer scale, for backbones that have it as a bare parameter: a factor per channel."""

    def __init__(self, weight: nn.Parameter, channels_first: bool) -> None:
        super().__init__()
        self.weight, self.channels_first = weight, channels_first

    def forward(self, branch: torch.Tensor) -> torch.Tensor:
        return branch * (self.weight[:, None, None] if self.channels_first else self.weight)


class Nothing(nn.Module):
    """Stands where a block's FFN was: adds zero to the residual stream."""

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return hidden_states.new_zeros([1] * hidden_states.ndim)


def attend_from_class_token(attention: nn.Module, output: str, hidden_states: torch.Tensor) -> torch.Tensor:
    """The first row `[batch, 1, channels]` of a stock attention's output, without the products for the others."""

    def project(name: str, tokens: torch.Tensor) -> torch.Tensor:
        heads = attention.get_submodule(name)(tokens).unflatten(-1, (-1, attention.head_dim))
        return heads.transpose(1, 2)

    query = project("q_proj", hidden_states[:, :1])
    key, value = project("k_proj", hidden_states), project("v_proj", hidden_states)
    mixed = F.scaled_dot_product_attention(query, key, value)
    return attention.get_submodule(output)(mixed.transpose(1, 2).flatten(2))


class RePaBlock(GradientCheckpointingLayer):
    """Forward of a pre-norm block whose FFN sub-layer contains the shortcut; mixed into the backbone's block class."""

    site: Site
    attention_branch_scale: nn.Module
    drop_path: nn.Module
    feed_forward: nn.Module
    is_last: bool

    def forward(self, hidden_states: torch.Tensor, *args: Any, class_token_only: bool = False, **kwargs: Any) -> Any:
        normed = self.get_submodule(self.site.attention_norm)(hidden_states)
        attention = self.get_submodule(str(self.site.attention))
        class_token_only = class_token_only and self.is_last
        if class_token_only and self.site.plain_attention:
            branch = attend_from_class_token(attention, self.site.attention_output, normed)
        else:
            branch = attention(normed, *args, **kwargs)
            branch = branch[0] if isinstance(branch, tuple) else branch
        if class_token_only:
            hidden_states, branch = hidden_states[:, :1], branch[:, :1]
        hidden_states = hidden_states + self.drop_path(self.attention_branch_scale(branch))
        if self.site.channels_first:
            return (self.feed_forward(hidden_states.movedim(1, -1)).movedim(-1, 1),)
        return self.feed_forward(hidden_states)


class RePaStockBlock(GradientCheckpointingLayer):
    """The same around the block's own forward, in which the FFN does nothing."""

    feed_forward: nn.Module

    def forward(self, hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        outputs = super().forward(hidden_states, *args, **kwargs)
        if isinstance(outputs, tuple):
            return (self.feed_forward(outputs[0]), *outputs[1:])
        return self.feed_forward(outputs)


def as_linear(layer: nn.Module) -> nn.Linear:
    """A linear layer, or a 1x1 convolution as the linear layer that it is over channels."""
    if isinstance(layer, nn.Conv2d):
        bias = None if layer.bias is None else layer.bias.detach()
        linear = make_linear(layer.weight.detach().flatten(1), bias)
        # weights that were loaded are not initialised again
        linear.__dict__.update({k: v for k, v in layer.__dict__.items() if k == "_is_hf_initialized"})
        return linear
    return cast(nn.Linear, layer)


def take_scale(block: nn.Module, name: str | None, channels_first: bool) -> nn.Module:
    """Removes a layer scale from a block, in whatever form the block has it, if any, and returns it as a module."""
    scale = None if name is None else getattr(block, name, None)
    if isinstance(scale, nn.Parameter):
        scale = ChannelScale(scale, channels_first)
    if scale is not None:
        delattr(block, str(name))
    return scale if isinstance(scale, nn.Module) else nn.Identity()


def make_idle_(block: nn.Module, site: Site, config: RePaViTConfig, active_channels: int, drop_path: float) -> None:
    """Turns a backbone's block, in place, into a RePaViT block; attention and its norm stay as they are."""
    fc1, activation, fc2 = site.ffn_parts(block)
    fc1, fc2 = as_linear(fc1), as_linear(fc2)
    norms = [block.get_submodule(site.ffn_norm), nn.Identity()]
    if config.block_norm_eps is not None:
        for norm in (norms[0], block.get_submodule(site.attention_norm)):
            norm.eps = config.block_norm_eps  # type: ignore[assignment]
    if config.ffn_norm == "batch":
        eps, momentum = config.batch_norm_eps, config.batch_norm_momentum
        batch_norm = RecomputeSafeSyncBatchNorm if config.sync_batch_norm else RecomputeSafeBatchNorm1d
        norms = [batch_norm(n, eps, momentum) for n in (fc1.in_features, fc1.out_features)]
    elif not isinstance(norms[0], nn.LayerNorm):
        raise ValueError(f"ffn_norm='layer' needs a backbone with LayerNorms; {site.block} has another norm.")
    dropout = nn.Identity() if site.dropout is None else block.get_submodule(site.dropout)
    drop = nn.Sequential(dropout, DropPath(drop_path))
    scale = take_scale(block, site.ffn_scale, channels_first=False)  # the FFN sees channels last
    block.feed_forward = IdleFeedForward(norms[0], fc1, activation, norms[1], fc2, active_channels, scale, drop)
    delattr(block, site.ffn)
    delattr(block, site.ffn_norm)
    if site.attention is None:
        setattr(block, site.ffn, Nothing())
        setattr(block, site.ffn_norm, nn.Identity())
        if site.ffn_scale is not None:
            setattr(block, site.ffn_scale, 1.0)
        block.drop_path = DropPath(drop_path)
        mixin: type[nn.Module] = RePaStockBlock
    else:
        block.attention_branch_scale = take_scale(block, site.attention_scale, site.channels_first)
        block.drop_path = drop
        mixin = RePaBlock
    # a subclass of the stock block, and of its name: transformers finds blocks by class and by class name
    stock = type(block)
    block.__class__ = type(stock.__name__, (mixin, stock), {"site": site, "__module__": stock.__module__})


class RePaViTPreTrainedModel(FusiblePreTrainedModel):
    config: RePaViTConfig
    config_class: type[RePaViTConfig]
    main_input_name = "pixel_values"
    input_modalities = ["image"]
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True
    model_tags = ["fusible", "repavit"]

    def __init__(self, config: RePaViTConfig, dense_backbone: PreTrainedModel | None = None) -> None:
        super().__init__(config)
        self.site = site_of(config.backbone_config)
        if dense_backbone is None:
            dense_backbone = AutoModel.from_config(config.backbone_config, **self.site.model_kwargs)
        self.backbone = dense_backbone
        self.main_input_name = self.backbone.main_input_name
        blocks = list(self.site.blocks(self.backbone))
        widths = [len(self.site.ffn_parts(block)[0].get_parameter("weight")) for block in blocks]
        rates = torch.linspace(0, config.drop_path_rate, len(blocks), device="cpu").tolist()
        for block, active_channels, rate in zip(blocks, config.active_channels_of(widths), rates, strict=True):
            make_idle_(block, self.site, config, active_channels, rate)
            cast(RePaBlock, block).is_last = block is blocks[-1]
        self.feature_size = self.site.feature_size(self.backbone.config)
        self.final_norm = nn.GroupNorm(1, self.feature_size) if self.site.needs_final_norm else nn.Identity()

    @classmethod
    def from_dense(
        cls,
        pretrained_model_name_or_path: str | os.PathLike,
        calibration: Iterable[Mapping[str, Any]] | None = None,
        **kwargs: Any,
    ) -> Self:
        """
        A training form that starts from the weights of a dense checkpoint; a head, if this class has one, is new.

        Args:
            pretrained_model_name_or_path: as for `RePaViTConfig.from_backbone`.
            calibration: some batches with the main input, such as `pixel_values`. They choose which channels stay
                active (those whose pre-activation is positive least often) and make the BatchNorms start as close to
                the dense LayerNorms as they can. Without it, the first channels stay active and the BatchNorms have
                unit statistics.
            **kwargs: options of `RePaViTConfig`, and `revision`, `token` and `cache_dir` for the download.

        Raises:
            ValueError: if the backbone is not supported, an option is wrong, or the calibration is empty.
        """
        hub = {name: kwargs[name] for name in ("revision", "token", "cache_dir") if name in kwargs}
        config = cls.config_class.from_backbone(pretrained_model_name_or_path, **kwargs)
        site = site_of(config.backbone_config)
        dense = AutoModel.from_pretrained(
            pretrained_model_name_or_path, config=config.backbone_config, **hub, **site.model_kwargs
        )
        statistics = None if calibration is None else collect_statistics(dense, site, calibration)
        affine = [block.get_submodule(site.ffn_norm).state_dict() for block in site.blocks(dense)]
        model = cls(config, dense)
        ffns = [module for module in model.modules() if isinstance(module, IdleFeedForward)]
        for ffn, values in zip(ffns, affine, strict=True):
            ffn.input_norm.load_state_dict(values, strict=False)
        for ffn, found in zip(ffns, statistics or [], strict=statistics is not None):
            calibrate_(ffn, found)
        return model

    @property
    def dummy_inputs(self) -> dict[str, torch.Tensor]:
        """Two random inputs of the configured size, always the same ones."""
        return self.site.dummy_inputs(self.backbone)

    def get_input_embeddings(self) -> nn.Module:
        return self.backbone.get_input_embeddings()

    def encode(
        self, inputs: torch.Tensor | None, class_token_only: bool = False, **kwargs: Any
    ) -> BaseModelOutputWithPooling:
        """
        The backbone's outputs, with the feature that heads read as `pooler_output`.

        Args:
            inputs: the backbone's main input: `[batch, channels, height, width]`, or `[batch, points, channels]`.
            class_token_only: leave out what the last block computes for the other tokens, where the feature does not
                depend on it.
            **kwargs: for the backbone.
        """
        if class_token_only and self.site.reads_class_token:
            kwargs["class_token_only"] = True
        kwargs.setdefault("output_hidden_states", self.config.output_hidden_states)
        kwargs.setdefault("output_attentions", self.config.output_attentions)
        outputs = self.backbone(inputs, **kwargs)
        hidden_states = self.final_norm(outputs.last_hidden_state)
        outputs = BaseModelOutputWithPooling(
            hidden_states, outputs.get("pooler_output"), outputs.hidden_states, outputs.get("attentions")
        )
        outputs.pooler_output = self.site.pool(outputs)
        return outputs


class RePaViTModel(RePaViTPreTrainedModel):
    """RePaViT without a head; `pooler_output` is the image feature `[batch, hidden_size]`."""

    def __init__(self, config: RePaViTConfig, dense_backbone: PreTrainedModel | None = None) -> None:
        super().__init__(config, dense_backbone)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.Tensor | None = None,
        points: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> BaseModelOutputWithPooling:
        """
        Args:
            pixel_values: `[batch, channels, height, width]`, normalised by the image processor.
            points: `[batch, points, channels]`, instead of images, for backbones of point clouds.
        """
        return self.encode(points if pixel_values is None else pixel_values, **kwargs)


class RePaViTForImageClassification(RePaViTPreTrainedModel):
    """RePaViT with a linear classifier on the image feature."""

    def __init__(self, config: RePaViTConfig, dense_backbone: PreTrainedModel | None = None) -> None:
        super().__init__(config, dense_backbone)
        self.num_labels = config.num_labels or 0
        self.classifier: nn.Module = nn.Identity()
        if self.main_input_name == "points":
            self.classifier = make_classifier(cast(PointViTConfig, self.backbone.config), self.num_labels)
        elif self.num_labels > 0:
            self.classifier = nn.Linear(self.feature_size, self.num_labels)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        points: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> ImageClassifierOutput:
        """
        Args:
            pixel_values: `[batch, channels, height, width]`, normalised by the image processor.
            labels: `[batch]` class ids (int64), or targets in the form that `config.problem_type` names.
            points: `[batch, points, channels]`, instead of images, for backbones of point clouds.
        """
        asked = (
            kwargs.get(name, getattr(self.config, name)) for name in ("output_hidden_states", "output_attentions")
        )
        inputs = points if pixel_values is None else pixel_values
        outputs = self.encode(inputs, class_token_only=not (self.training or any(asked)), **kwargs)
        logits = self.classifier(outputs.pooler_output)
        loss = None if labels is None else self.loss_function(labels, logits, self.config, **kwargs)
        return ImageClassifierOutput(
            loss=loss, logits=logits, hidden_states=outputs.hidden_states, attentions=outputs.attentions
        )


class RePaViTBackbone(BackboneMixin, RePaViTPreTrainedModel):
    """
    RePaViT as a backbone for detection and segmentation: normed feature maps of the stages in `config.out_features`.

    It takes the weights of a classifier; the norms of the feature maps are new.
    """

    def __init__(self, config: RePaViTConfig) -> None:
        super().__init__(config)
        if self.site.channels_first or self.main_input_name != "pixel_values":
            raise ValueError(f"RePaViTBackbone has no feature maps of {self.backbone.config.model_type!r}.")
        self.num_features = self.site.stage_widths(self.backbone.config)
        widths = dict(zip(self.out_features, self.channels, strict=True))
        self.feature_norms = nn.ModuleDict({stage: nn.LayerNorm(width) for stage, width in widths.items()})
        self.post_init()

    def hidden_maps(self, pixel_values: torch.Tensor, **kwargs: Any) -> tuple[Any, tuple[torch.Tensor, ...]]:
        """The backbone's outputs, and `[batch, height, width, channels]` of the embedding and each stage."""
        if not self.site.patch_grid:
            outputs = self.backbone(
                pixel_values, always_partition=True, output_hidden_states_before_downsampling=True, **kwargs
            )
            return outputs, tuple(hidden.movedim(1, -1) for hidden in outputs.reshaped_hidden_states)
        config, size = self.backbone.config, list(pixel_values.shape[-2:])
        trained, patch = (
            list(value) if isinstance(value, list | tuple) else [value] * 2
            for value in (config.image_size, config.patch_size)
        )
        if self.site.resizes_on_request and size != trained:
            kwargs["interpolate_pos_encoding"] = True
        outputs = self.backbone(pixel_values, **kwargs)
        grid = (size[0] // patch[0], size[1] // patch[1])
        patches = (hidden[:, -grid[0] * grid[1] :] for hidden in outputs.hidden_states)
        return outputs, tuple(hidden.unflatten(1, grid) for hidden in patches)

    @can_return_tuple
    @filter_output_hidden_states
    def forward(self, pixel_values: torch.Tensor, **kwargs: Unpack[TransformersKwargs]) -> BackboneOutput:
        """
        Args:
            pixel_values: `[batch, channels, height, width]`, of any size that the backbone takes.
        """
        outputs, maps = self.hidden_maps(pixel_values, **kwargs)
        feature_maps = tuple(
            self.feature_norms[stage](hidden).movedim(-1, 1).contiguous()
            for stage, hidden in zip(self.stage_names, maps, strict=True)
            if stage in self.out_features
        )
        return BackboneOutput(feature_maps, outputs.hidden_states, outputs.get("attentions"))


RePaViTModel.register_for_auto_class("AutoModel")
RePaViTBackbone.register_for_auto_class("AutoBackbone")
RePaViTForImageClassification.register_for_auto_class("AutoModelForImageClassification")

__all__ = ["RePaViTBackbone", "RePaViTForImageClassification", "RePaViTModel", "RePaViTPreTrainedModel"]
