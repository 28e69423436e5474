"""RePaViT: vision Transformers with channel-idle FFNs (https://huggingface.co/papers/2505.21847)."""

import os
from collections.abc import MutableMapping
from typing import Any, Self, cast

import torch
from torch import nn
from transformers import AutoModel, PreTrainedConfig, PreTrainedModel
from transformers.backbone_utils import BackboneMixin, filter_output_hidden_states
from transformers.modeling_outputs import BackboneOutput, BaseModelOutputWithPooling, ImageClassifierOutput
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs, logging
from transformers.utils.generic import can_return_tuple

from ...core.backbones import backbone_spec
from ...core.dense import LABEL_OPTIONS, dense_classifier, dense_config, load_backbone, split_options
from ...core.drop_path import DropPath
from ...core.losses import classification_loss
from ...core.modeling import FusiblePreTrainedModel
from ...core.options import DOWNLOAD_ARGUMENTS
from .blocks import RePaBlock, convert_block_
from .budget import take_speedup
from .configuration_repavit import RePaViTConfig
from .conversion import ConvertedBlock
from .earlier_format import load_earlier_format
from .feed_forward import ChannelIdleFeedForward
from .from_dense import convert_dense


logger = logging.get_logger(__name__)


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
    starts_from_data = True

    def __init__(self, config: RePaViTConfig, dense_backbone: PreTrainedModel | None = None) -> None:
        super().__init__(config)
        self.backbone_spec = backbone_spec(config.backbone_config)
        if dense_backbone is None:
            dense_backbone = AutoModel.from_config(config.backbone_config, **self.backbone_spec.model_kwargs)
        self.backbone = dense_backbone
        # points for a backbone of point clouds
        self.main_input_name = self.backbone.main_input_name
        blocks = list(self.backbone_spec.blocks(self.backbone))
        # output channels of the first linear or 1x1 convolution; Swin's differ from stage to stage
        widths = [len(self.backbone_spec.ffn_parts(block)[0].get_parameter("weight")) for block in blocks]
        # on the CPU, as a model that is built on the meta device has no values to list
        rates = torch.linspace(0, config.drop_path_rate, len(blocks), dtype=torch.float32, device="cpu").tolist()
        for block, active_channels, rate in zip(blocks, config.active_channels_of(widths), rates, strict=True):
            # the same module in all blocks, also where the rate is 0, so that they compile to one graph
            drop_path = DropPath(rate) if config.drop_path_rate > 0 else nn.Identity()
            convert_block_(block, self.backbone_spec, config, active_channels, drop_path)
            cast(RePaBlock, block).is_last = block is blocks[-1]
        self.feature_size = self.backbone_spec.feature_size(self.backbone.config, config.pooling)
        self.final_norm = nn.GroupNorm(1, self.feature_size) if self.backbone_spec.needs_final_norm else nn.Identity()

    @classmethod
    def from_dense(
        cls,
        model: PreTrainedModel | str | os.PathLike,
        calibration: Any = None,
        *,
        device: torch.device | str | None = None,
        seed: int = 0,
        speedup: float | None = None,
        finished: MutableMapping[int, dict[str, torch.Tensor]] | None = None,
        **kwargs: Any,
    ) -> Self:
        """
        A training form that computes about what a dense model does, which stays as it is.

        With calibration data, some hundred inputs without labels, each FFN is refitted in closed form, in float64 and
        block by block: those channels become idle that a linear map of the input explains best. Without, channels and
        slopes follow from the weights, under a normal distribution of what the norms give; this is much worse.

        Args:
            model: the dense model, or its folder or Hub repository; see `RePaViTConfig.from_backbone`.
            calibration: a batch with the main input, such as `pixel_values`; a tensor of it; an iterable of batches or
                examples; a `DataLoader` or a data set.
            device: where the conversion runs, and the new model is; by default where the dense model is.
            seed: of the choice of tokens that the fit reads.
            speedup: with `idle_ratio="auto"` and calibration data: multiply-adds of the whole dense model over those
                of the whole fused one, for an input of the data's size (of a CLIP: of its vision tower). Active
                channels are distributed over the blocks by measured errors; `config.active_channels` has them.
            finished: to go on with an interrupted conversion of the same arguments: what it had fitted of each block,
                by number; such as a `dict` or something that keeps it in files. What is fitted now is added.
            **kwargs: options of `RePaViTConfig`, and arguments for loading the dense model, such as `revision`.
                `ffn_norm` is `"layer"` by default where the norm is a LayerNorm: that is exact. `"batch"` is faster.

        Raises:
            ValueError: if the backbone is not supported, an option is wrong, the calibration is empty, too small, not
                finite, or of another kind than the model's inputs, or the speedup is out of reach.
        """
        speedup = take_speedup(kwargs, speedup, calibration)
        options, loading = split_options(cls.config_class, model, kwargs)
        download = {name: value for name, value in loading.items() if name in DOWNLOAD_ARGUMENTS}
        config = cls.config_class.from_backbone(model, **options, **download)
        spec = backbone_spec(config.backbone_config)
        if "ffn_norm" not in options:
            # feature maps have GroupNorms, which depend on all tokens
            config.ffn_norm = "batch" if spec.channels_first else "layer"
        dense: Any = load_backbone(model, cast(PreTrainedConfig, config.backbone_config), **loading)
        return convert_dense(
            cls, config, dense, calibration, device, seed, speedup, cls._whole_dense(model, dense), finished
        )

    @classmethod
    def _whole_dense(cls, model: Any, dense: PreTrainedModel) -> PreTrainedModel:
        """Of a dense model and its backbone, what a model of this class is compared with."""
        return dense

    def converted_parts(self, dense: Any) -> tuple[Any, Any, list[ConvertedBlock]]:
        """The dense model, what of this one starts as its copy, and the blocks of both."""
        spec = self.backbone_spec
        blocks = [
            ConvertedBlock(
                block,
                own,
                ffn=cast(ChannelIdleFeedForward, own.get_submodule("feed_forward")),
                end=own.get_submodule("feed_forward"),
                stream=block,
                norm=block.get_submodule(spec.ffn_norm),
                channels_first=spec.channels_first,
            )
            for block, own in zip(spec.blocks(dense), spec.blocks(self.backbone), strict=True)
        ]
        return dense, self.backbone, blocks

    def _load_earlier_format(self, files: list[str]) -> dict[str, torch.Tensor] | None:
        return load_earlier_format(files) if self.config.fused else None

    def _shared_parts(self) -> list[nn.Module]:
        return [self.backbone, self.final_norm]

    @property
    def dummy_inputs(self) -> dict[str, torch.Tensor]:
        """Two random inputs of the configured size, always the same ones."""
        return self.backbone_spec.dummy_inputs(self.backbone)

    def get_input_embeddings(self) -> nn.Module:
        return self.backbone.get_input_embeddings()

    def _forward_backbone(
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
        self._check_arguments(kwargs)
        # most backbones take no patches
        kwargs = {name: value for name, value in kwargs.items() if value is not None}
        pooling = self.config.pooling
        if class_token_only and self.backbone_spec.pools_class_token and pooling is None:
            kwargs["class_token_only"] = True
        # this model's configuration decides, not the one of the backbone inside
        kwargs.setdefault("output_hidden_states", self.config.output_hidden_states)
        kwargs.setdefault("output_attentions", self.config.output_attentions)
        outputs = self.backbone(inputs, **kwargs)
        hidden_states = self.final_norm(outputs.last_hidden_state)
        # one class for all backbones; PoolFormer's outputs have neither pooler_output nor attentions
        outputs = BaseModelOutputWithPooling(
            hidden_states, outputs.get("pooler_output"), outputs.hidden_states, outputs.get("attentions")
        )
        outputs.pooler_output = self._pool(outputs)
        return outputs

    def _pool(self, outputs: Any) -> torch.Tensor:
        if self.config.pooling is None:
            return self.backbone_spec.pool(outputs)
        return self.backbone_spec.pooled_patches(outputs.last_hidden_state, self.backbone.config, self.config.pooling)

    def feature(self, outputs: Any) -> torch.Tensor | None:
        # with a norm of its own it is none of the dense model
        return None if self.backbone_spec.needs_final_norm else self._pool(outputs)


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
        pixel_attention_mask: torch.Tensor | None = None,
        spatial_shapes: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> BaseModelOutputWithPooling:
        """
        Args:
            pixel_values: `[batch, channels, height, width]`, normalized by the image processor.
            points: `[batch, points, channels]`, instead of images, for backbones of point clouds.
            pixel_attention_mask: `[batch, patches]`, 0 for padding, for backbones that take patches as `pixel_values`:
                `[batch, patches, channels * patch_size**2]`.
            spatial_shapes: `[batch, 2]`, rows and columns of these patches.
        """
        return self._forward_backbone(
            points if pixel_values is None else pixel_values,
            pixel_attention_mask=pixel_attention_mask,
            spatial_shapes=spatial_shapes,
            **kwargs,
        )


class RePaViTForImageClassification(RePaViTPreTrainedModel):
    """RePaViT with a linear classifier on the image feature."""

    accepts_loss_kwargs = True

    def __init__(self, config: RePaViTConfig, dense_backbone: PreTrainedModel | None = None) -> None:
        super().__init__(config, dense_backbone)
        self.num_labels = config.num_labels or 0
        self.classifier: nn.Module = nn.Identity()
        if self.backbone_spec.classifier is not None:
            # point clouds have an MLP as head
            self.classifier = getattr(self.backbone, self.backbone_spec.classifier)(self.num_labels)
        elif self.num_labels > 0:
            self.classifier = nn.Linear(self.feature_size, self.num_labels)
        self.loss_function = classification_loss
        self.post_init()

    @classmethod
    def from_dense(cls, model: PreTrainedModel | str | os.PathLike, calibration: Any = None, **kwargs: Any) -> Self:
        """
        As `RePaViTModel.from_dense`. A linear head of the dense model, and what it pools, are kept with its labels.

        With other labels, or of a model without such a head, the head is new; a warning says so.
        """
        take_speedup(dict(kwargs), kwargs.get("speedup"), calibration)  # before the dense model is loaded
        loading = {name: kwargs[name] for name in (*DOWNLOAD_ARGUMENTS, "dtype") if name in kwargs}
        spec = backbone_spec(dense_config(model, **{n: value for n, value in loading.items() if n != "dtype"}))
        keeps_labels = not any(name in kwargs for name in LABEL_OPTIONS)
        dense: Any = None
        if spec.classifier is None:
            dense = dense_classifier(model, kwargs.get("backbone_config"), **loading)
        if dense is not None and not keeps_labels:
            # other options of labels than names, such as their number, say less than the dense model knows
            names = kwargs.get("id2label", dense.config.id2label)
            keeps_labels = {int(label): name for label, name in names.items()} == dense.config.id2label
            keeps_labels &= kwargs.get("num_labels", dense.config.num_labels) == dense.config.num_labels
        # a loaded model is not loaded again
        done = () if dense is None else (*loading, "backbone_config")
        options = {name: value for name, value in kwargs.items() if name not in done}
        keeps_pooling = kwargs.get("pooling", spec.classifier_pooling) == spec.classifier_pooling
        if dense is None or not (keeps_labels and keeps_pooling):
            why = "has no linear classifier" if dense is None else f"has other {'pooling' * keeps_labels or 'labels'}"
            logger.warning(f"The classifier is new and has to be trained: the dense model {why}.")
            return super().from_dense(model if dense is None else dense, calibration, **options)
        options = {name: value for name, value in options.items() if name not in (*LABEL_OPTIONS, "pooling")}
        # of a CLIP-like classifier they are not in the vision tower's configuration
        options |= {"id2label": dense.config.id2label, "label2id": kwargs.get("label2id", dense.config.label2id)}
        repavit = super().from_dense(dense, calibration, pooling=spec.classifier_pooling, **options)
        repavit.classifier.load_state_dict(dense.classifier.state_dict())
        if spec.needs_final_norm:
            repavit.final_norm.load_state_dict(dense.norm.state_dict())
        repavit.config.problem_type = dense.config.problem_type
        return repavit

    @classmethod
    def _whole_dense(cls, model: Any, dense: PreTrainedModel) -> PreTrainedModel:
        return model if isinstance(getattr(model, "classifier", None), nn.Linear) else dense

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        points: torch.Tensor | None = None,
        pixel_attention_mask: torch.Tensor | None = None,
        spatial_shapes: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> ImageClassifierOutput:
        """
        Args:
            pixel_values: `[batch, channels, height, width]`, normalized by the image processor.
            labels: `[batch]` class ids (int64), or targets in the form that `config.problem_type` names.
            points: `[batch, points, channels]`, instead of images, for backbones of point clouds.
            pixel_attention_mask: `[batch, patches]`, 0 for padding, for backbones that take patches as `pixel_values`:
                `[batch, patches, channels * patch_size**2]`.
            spatial_shapes: `[batch, 2]`, rows and columns of these patches.
        """
        # recorded outputs of the last block have all tokens; without them the class token is enough
        needs_all_tokens = (
            kwargs.get(name, getattr(self.config, name)) for name in ("output_hidden_states", "output_attentions")
        )
        inputs = points if pixel_values is None else pixel_values
        outputs = self._forward_backbone(
            inputs,
            class_token_only=not (self.training or any(needs_all_tokens)),
            pixel_attention_mask=pixel_attention_mask,
            spatial_shapes=spatial_shapes,
            **kwargs,
        )
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
        spec = self.backbone_spec
        if spec.channels_first or spec.takes_patches or self.main_input_name != "pixel_values":
            raise ValueError(f"RePaViTBackbone has no feature maps of {self.backbone.config.model_type!r}.")
        self.num_features = self.backbone_spec.stage_widths(self.backbone.config)
        widths = dict(zip(self.out_features, self.channels, strict=True))
        self.feature_norms = nn.ModuleDict({stage: nn.LayerNorm(width) for stage, width in widths.items()})
        self.post_init()

    def hidden_maps(self, pixel_values: torch.Tensor, **kwargs: Any) -> tuple[Any, tuple[torch.Tensor, ...]]:
        """The backbone's outputs, and `[batch, height, width, channels]` of the embedding and each stage."""
        if not self.backbone_spec.patch_grid:
            # as transformers' SwinBackbone: fixed windows at all sizes, and maps before patches are merged
            outputs = self.backbone(
                pixel_values, always_partition=True, output_hidden_states_before_downsampling=True, **kwargs
            )
            return outputs, tuple(hidden.movedim(1, -1) for hidden in outputs.reshaped_hidden_states)
        config, size = self.backbone.config, list(pixel_values.shape[-2:])
        trained, patch = (
            list(value) if isinstance(value, list | tuple) else [value] * 2
            for value in (config.image_size, config.patch_size)
        )
        if self.backbone_spec.needs_interpolate_pos_encoding and size != trained:
            kwargs["interpolate_pos_encoding"] = True
        outputs = self.backbone(pixel_values, **kwargs)
        grid = (size[0] // patch[0], size[1] // patch[1])
        # class and register tokens come first
        patches = (hidden[:, -grid[0] * grid[1] :] for hidden in outputs.hidden_states)
        return outputs, tuple(hidden.unflatten(1, grid) for hidden in patches)

    @can_return_tuple
    @filter_output_hidden_states
    def forward(self, pixel_values: torch.Tensor, **kwargs: Unpack[TransformersKwargs]) -> BackboneOutput:
        """
        Args:
            pixel_values: `[batch, channels, height, width]`, of any size that the backbone takes.
        """
        self._check_arguments(kwargs)
        outputs, maps = self.hidden_maps(pixel_values, **kwargs)
        feature_maps = tuple(
            self.feature_norms[stage](hidden).movedim(-1, 1).contiguous()
            for stage, hidden in zip(self.stage_names, maps, strict=True)
            if stage in self.out_features
        )
        return BackboneOutput(feature_maps, outputs.hidden_states, outputs.get("attentions"))


__all__ = ["RePaViTBackbone", "RePaViTForImageClassification", "RePaViTModel", "RePaViTPreTrainedModel"]
