"""A plain vision Transformer on point clouds: groups of points become tokens for transformers' own ViT blocks."""

from collections import OrderedDict
from typing import Any, cast

import torch
from torch import nn
from transformers import PreTrainedModel, initialization as init
from transformers.modeling_outputs import BaseModelOutputWithPooling, ImageClassifierOutput
from transformers.models.vit.modeling_vit import ViTAttention, ViTLayer
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs
from transformers.utils.generic import can_return_tuple, merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from ...core.arguments import COMMON_ARGUMENTS, check_arguments
from ...core.batch_norm import RecomputeSafeBatchNorm1d
from ...core.losses import classification_loss
from .configuration_point_vit import PointViTConfig
from .embeddings import PointLinear, PointViTEmbeddings


class PointViTPreTrainedModel(PreTrainedModel):
    config: PointViTConfig
    config_class: type[PointViTConfig]
    base_model_prefix = "point_vit"
    main_input_name = "points"
    input_modalities = ["points"]
    supports_gradient_checkpointing = True
    _no_split_modules = ["PointViTEmbeddings", "ViTLayer"]
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True
    _can_record_outputs = {"hidden_states": ViTLayer, "attentions": ViTAttention}
    _input_embed_layer = "patch_embeddings"

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, PointLinear):
            # transformers guards torch's initializers while this runs, so that loaded tensors stay
            module.reset_parameters()
            return
        super()._init_weights(module)
        if isinstance(module, PointViTEmbeddings):
            init.trunc_normal_(module.cls_token, std=self.config.initializer_range)
            init.trunc_normal_(module.cls_position, std=self.config.initializer_range)

    @property
    def dummy_inputs(self) -> dict[str, torch.Tensor]:
        """Two random clouds of the configured size, always the same ones."""
        generator = torch.Generator().manual_seed(0)
        shape = (2, self.config.num_points, self.config.num_channels)
        return {"points": torch.randn(shape, generator=generator, device="cpu")}


class PointViTModel(PointViTPreTrainedModel):
    """The Transformer without a head; its first token is the class token."""

    def __init__(self, config: PointViTConfig) -> None:
        super().__init__(config)
        self.embeddings = PointViTEmbeddings(config)
        self.layers = nn.ModuleList([ViTLayer(cast(Any, config)) for _ in range(config.num_hidden_layers)])
        self.layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.post_init()

    @merge_with_config_defaults
    @capture_outputs(tie_last_hidden_states=False)
    def forward(self, points: torch.Tensor, **kwargs: Unpack[TransformersKwargs]) -> BaseModelOutputWithPooling:
        """
        Args:
            points: `[batch, points, channels]`, coordinates first, scaled to about the unit sphere.
        """
        # use_cache is what merge_with_config_defaults adds in training
        check_arguments(self, kwargs, COMMON_ARGUMENTS | {"use_cache"})
        hidden_states = self.embeddings(points)
        for layer in self.layers:
            # no mask: all clouds of a batch have as many groups
            hidden_states = layer(hidden_states, None, **kwargs)
        # normed; of the recorded hidden states the last one is not, as in ViT
        return BaseModelOutputWithPooling(last_hidden_state=self.layernorm(hidden_states))

    def make_classifier(self, num_labels: int) -> nn.Sequential:
        """
        Point-BERT's head, `[batch, 2 * hidden_size]` to `[batch, num_labels]`.

        It keeps the BatchNorms. Most of its input is the same for all clouds, which they take away and LayerNorm would
        not. So a batch to train on needs two clouds.
        """
        config = self.config
        width = config.classifier_hidden_size
        hidden_layers = [
            nn.Sequential(
                OrderedDict(
                    dense=nn.Linear(size, width),
                    norm=RecomputeSafeBatchNorm1d(width),
                    activation=nn.ReLU(),
                    dropout=nn.Dropout(config.classifier_dropout),
                )
            )
            for size in (2 * config.hidden_size, width)
        ]
        return nn.Sequential(*hidden_layers, nn.Linear(width, num_labels))


class PointViTForPointCloudClassification(PointViTPreTrainedModel):
    """The Transformer with an MLP on the class token beside the maximum over the other tokens, as in Point-BERT."""

    accepts_loss_kwargs = True

    def __init__(self, config: PointViTConfig) -> None:
        super().__init__(config)
        self.num_labels = config.num_labels or 0
        self.loss_function = classification_loss
        self.point_vit = PointViTModel(config)
        self.classifier = self.point_vit.make_classifier(self.num_labels)
        self.post_init()

    @can_return_tuple
    def forward(
        self, points: torch.Tensor, labels: torch.Tensor | None = None, **kwargs: Unpack[TransformersKwargs]
    ) -> ImageClassifierOutput:
        """
        Args:
            points: `[batch, points, channels]`, coordinates first, scaled to about the unit sphere.
            labels: `[batch]` class ids (int64), or targets in the form that `config.problem_type` names.
        """
        outputs = self.point_vit(points, **kwargs)
        tokens = outputs.last_hidden_state
        logits = self.classifier(torch.cat([tokens[:, 0], tokens[:, 1:].amax(1)], dim=-1))
        loss = None if labels is None else self.loss_function(labels, logits, self.config, **kwargs)
        return ImageClassifierOutput(
            loss=loss, logits=logits, hidden_states=outputs.hidden_states, attentions=outputs.attentions
        )


__all__ = ["PointViTForPointCloudClassification", "PointViTModel", "PointViTPreTrainedModel"]
