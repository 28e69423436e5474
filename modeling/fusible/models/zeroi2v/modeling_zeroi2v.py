"""ZeroI2V: image Transformers that take videos at no extra cost (https://huggingface.co/papers/2310.01324)."""

import math
import os
import re
from dataclasses import dataclass
from typing import Any, Self, cast

import torch
from torch import nn
from transformers import AutoModel, PreTrainedConfig, PreTrainedModel, initialization as init
from transformers.modeling_outputs import BaseModelOutputWithPooling, ImageClassifierOutput
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs
from transformers.utils.generic import can_return_tuple

from ...core.backbones import backbone_spec
from ...core.dense import load_backbone, split_options
from ...core.losses import classification_loss
from ...core.modeling import FusiblePreTrainedModel
from ...core.options import DOWNLOAD_ARGUMENTS
from ...core.subclassing import mix_in_
from .adapter_files import find_adapter, load_adapter_, write_adapter
from .adapters import LinearAdapter, adapt_
from .attention import ShiftedLinear, shift_heads_
from .configuration_zeroi2v import ZeroI2VConfig


@dataclass
class ZeroI2VModelOutput(BaseModelOutputWithPooling):
    """
    Outputs for videos.

    Args:
        last_hidden_state: `[batch, frames * tokens, hidden_size]`, the tokens of all frames, frame by frame.
        pooler_output: `[batch, hidden_size]`, the mean of `frame_features`.
        frame_features: `[batch, frames, hidden_size]`, the backbone's image feature of each frame.
    """

    frame_features: torch.Tensor | None = None


class FrameEmbeddings(nn.Module):
    """Mixed into a backbone's embeddings class: adds a learned vector per frame to all of its tokens."""

    temporal_embedding: nn.Parameter  # [1, frames, channels]

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        outputs = super().forward(*args, **kwargs)
        # Swin's embeddings also return the size of the grid
        tokens, *rest = outputs if isinstance(outputs, tuple) else (outputs,)
        # [clips, frames, tokens, channels] + [1, frames, 1, channels]
        clips = tokens.unflatten(0, (-1, self.temporal_embedding.shape[1]))
        tokens = (clips + self.temporal_embedding[:, :, None]).flatten(0, 1)
        return (tokens, *rest) if isinstance(outputs, tuple) else tokens


def add_temporal_embedding_(embeddings: nn.Module, num_frames: int, channels: int) -> None:
    """Makes a backbone's embeddings, in place, tell the frames of a clip apart; at first they do not."""
    mix_in_(embeddings, FrameEmbeddings)
    embeddings.temporal_embedding = nn.Parameter(torch.zeros(1, num_frames, channels))


class ZeroI2VPreTrainedModel(FusiblePreTrainedModel):
    config: ZeroI2VConfig
    config_class: type[ZeroI2VConfig]
    main_input_name = "pixel_values"
    input_modalities = ["video"]
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True
    model_tags = ["fusible", "zeroi2v"]

    def __init__(self, config: ZeroI2VConfig, image_model: PreTrainedModel | None = None) -> None:
        super().__init__(config)
        config.validate_architecture()
        self.backbone_spec = backbone_spec(config.backbone_config)
        if image_model is None:
            image_model = AutoModel.from_config(config.backbone_config, **self.backbone_spec.model_kwargs)
        self.backbone = image_model
        embeddings = self.backbone.get_submodule(self.backbone_spec.embeddings)
        add_temporal_embedding_(
            embeddings, config.num_frames, self.backbone_spec.stage_widths(self.backbone.config)[0]
        )
        for block in self.backbone_spec.blocks(self.backbone):
            attention = block.get_submodule(self.backbone_spec.projections)
            shift_heads_(block, attention, config.offsets, config.num_frames, self.backbone_spec.windowed)
            adapt_(block, self.backbone_spec, config)
        self.feature_size = self.backbone_spec.feature_size(self.backbone.config)

    def post_init(self) -> None:
        super().post_init()
        self._freeze()

    @torch.no_grad()
    def initialize_weights(self) -> None:
        """As for all models; what this one adds to the backbone is not initialized by the backbone's rules."""
        for module in self.modules():
            if isinstance(module, FrameEmbeddings):
                init.zeros_(module.temporal_embedding)
            elif isinstance(module, LinearAdapter | ShiftedLinear) and not getattr(
                module, "_is_hf_initialized", False
            ):
                if isinstance(module, LinearAdapter):
                    module.reset_parameters()
                else:
                    # the backbone's rules know linears only, so they get one with the same parameters
                    self.backbone._init_weights(module.as_linear())
                # the pass below would draw an adapter's linears again, by the backbone's rules
                for part in module.modules():
                    part._is_hf_initialized = True  # type: ignore[assignment]
        super().initialize_weights()

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Linear):  # the classifier, as the authors'
            init.normal_(module.weight, std=0.01)
            init.zeros_(module.bias)

    def trained_parameters(self) -> dict[str, nn.Parameter]:
        """All but the image model's: adapters, temporal embedding and classifier; and the image model's last norm."""
        norms = tuple(f"backbone.{norm}." for norm in self.backbone_spec.final_norms)
        # an inference form has no adapters: their folded weights count as the image model's
        adapters = re.compile(r"backbone\..*\.(adapter_(before|after)\..*|temporal_embedding)")
        return {
            name: parameter
            for name, parameter in self.named_parameters()
            if not name.startswith("backbone.") or name.startswith(norms) or adapters.fullmatch(name)
        }

    def frozen_parameters(self) -> list[nn.Parameter]:
        """The image model's parameters, but its last norm's."""
        trained = self.trained_parameters()
        return [parameter for name, parameter in self.named_parameters() if name not in trained]

    def _freeze(self) -> None:
        if self.config.freeze_backbone:
            for parameter in self.frozen_parameters():
                parameter.requires_grad_(False)

    @staticmethod
    def _load_pretrained_model(model: "ZeroI2VPreTrainedModel", *args: Any, **kwargs: Any) -> Any:  # type: ignore[override]
        result = FusiblePreTrainedModel._load_pretrained_model(model, *args, **kwargs)
        model._freeze()  # loading makes all parameters trainable
        return result

    @classmethod
    def from_dense(
        cls,
        model: PreTrainedModel | str | os.PathLike,
        *,
        adapter: str | os.PathLike | None = None,
        **kwargs: Any,
    ) -> Self:
        """
        A training form that starts from the weights of an image model. A head, if this class has one, is new.

        Args:
            model: the image model, which stays as it is, or its folder or Hub repository; see
                `ZeroI2VConfig.from_backbone`.
            adapter: folder or Hub repository of `save_adapter`, trained on this image model. It knows all options.
            **kwargs: options of `ZeroI2VConfig`, such as `num_frames`, and arguments for loading the image model, such
                as `revision` and `dtype`.

        Raises:
            ValueError: if the backbone is not supported, an option is wrong, or the adapter is of another image model.
            OSError: if a file is missing or cut off.
        """
        options, loading = split_options(cls.config_class, model, kwargs)
        download = {name: value for name, value in loading.items() if name in DOWNLOAD_ARGUMENTS}
        file = None
        if adapter is None:
            config = cls.config_class.from_backbone(model, **options, **download)
        elif options:
            raise ValueError(f"The adapter in {adapter} knows all options; leave out {', '.join(options)}.")
        else:
            # revision and subfolder are the image model's and mean nothing in the adapter's repository
            config, file = find_adapter(adapter, token=loading.get("token"), cache_dir=loading.get("cache_dir"))
        image_model: Any = load_backbone(model, cast(PreTrainedConfig, config.backbone_config), **loading)
        device, dtype = image_model.device, image_model.dtype  # before parameters of another dtype come in
        video_model = cls(config, image_model).to(device, dtype)
        if file is not None:
            load_adapter_(file, video_model.trained_parameters(), video_model.frozen_parameters())
        return video_model

    def save_adapter(self, folder: str | os.PathLike) -> None:
        """
        Saves what `freeze_backbone` leaves to train, and the configuration; `from_dense(..., adapter=folder)`
        puts it on the image model again.

        Args:
            folder: its other files stay as they are.

        Raises:
            ValueError: if there are no adapters any more, or the image model was trained too.
            OSError: if the folder cannot be written; it is then as it was.
        """
        if self.config.fused:
            raise ValueError("The adapters of a fused model are part of its weights; use save_pretrained.")
        if not self.config.freeze_backbone:
            raise ValueError("With freeze_backbone=False the image model is trained too; use save_pretrained.")
        write_adapter(folder, self.config, self.trained_parameters(), self.frozen_parameters())

    def _shared_parts(self) -> list[nn.Module]:
        return [self.backbone]

    @property
    def dummy_inputs(self) -> dict[str, torch.Tensor]:
        """Two random videos of the configured size, always the same ones."""
        images = self.backbone_spec.dummy_inputs(self.backbone)["pixel_values"]
        generator = torch.Generator().manual_seed(0)
        shape = (len(images), self.config.num_frames, *images.shape[1:])
        return {"pixel_values": torch.randn(shape, generator=generator, device="cpu")}

    def get_input_embeddings(self) -> nn.Module:
        return self.backbone.get_input_embeddings()

    def _forward_backbone(self, pixel_values: torch.Tensor, **kwargs: Any) -> ZeroI2VModelOutput:
        """
        Outputs for `[batch, frames, channels, height, width]`; `hidden_states` and `attentions` are the backbone's,
        whose batch axis holds the frames.

        Raises:
            ValueError: if the videos have another shape, or an argument is unknown.
        """
        self._check_arguments(kwargs)
        frames, channels = self.config.num_frames, self.backbone.config.num_channels
        if pixel_values.ndim != 5 or pixel_values.shape[1] != frames or pixel_values.shape[2] != channels:
            raise ValueError(
                f"pixel_values has shape {list(pixel_values.shape)}; this model takes [batch, frames, channels, "
                f"height, width] with {frames} frames and {channels} channels."
            )
        kwargs.setdefault("output_hidden_states", self.config.output_hidden_states)
        kwargs.setdefault("output_attentions", self.config.output_attentions)
        # [batch * frames, channels, height, width]: frames of a clip side by side, as the shift expects
        outputs = self.backbone(pixel_values.flatten(0, 1), **kwargs)
        # each frame is normed on its own and the mean comes after, as the authors'
        features = self.backbone_spec.pool(outputs).unflatten(0, (-1, frames))
        return ZeroI2VModelOutput(
            last_hidden_state=outputs.last_hidden_state.unflatten(0, (-1, frames)).flatten(1, 2),
            pooler_output=features.mean(1),
            hidden_states=outputs.hidden_states,
            attentions=outputs.get("attentions"),
            frame_features=features,
        )


class ZeroI2VModel(ZeroI2VPreTrainedModel):
    """ZeroI2V without a head; `pooler_output` is the video's feature `[batch, hidden_size]`."""

    def __init__(self, config: ZeroI2VConfig, image_model: PreTrainedModel | None = None) -> None:
        super().__init__(config, image_model)
        self.post_init()

    @can_return_tuple
    def forward(self, pixel_values: torch.Tensor, **kwargs: Unpack[TransformersKwargs]) -> ZeroI2VModelOutput:
        """
        Args:
            pixel_values: `[batch, frames, channels, height, width]`, normalized by the processor.
        """
        return self._forward_backbone(pixel_values, **kwargs)


class ZeroI2VForVideoClassification(ZeroI2VPreTrainedModel):
    """ZeroI2V with a linear classifier on the mean of the frames' features."""

    accepts_loss_kwargs = True

    def __init__(self, config: ZeroI2VConfig, image_model: PreTrainedModel | None = None) -> None:
        super().__init__(config, image_model)
        self.num_labels = config.num_labels or 0
        self.dropout = nn.Dropout(config.classifier_dropout)
        self.classifier = nn.Linear(self.feature_size, self.num_labels) if self.num_labels > 0 else nn.Identity()
        self.loss_function = classification_loss
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.Tensor,
        labels: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> ImageClassifierOutput:
        """
        Args:
            pixel_values: `[batch, frames, channels, height, width]`, normalized by the processor; or several views of
                each video, `[batch, views, frames, channels, height, width]`, whose results are averaged as
                `config.view_average` says.
            labels: `[batch]` class ids (int64), or targets in the form that `config.problem_type` names.
        """
        views = pixel_values.shape[1] if pixel_values.ndim == 6 else None
        # views are a batch of clips: [batch * views, frames, channels, height, width]
        outputs = self._forward_backbone(pixel_values if views is None else pixel_values.flatten(0, 1), **kwargs)
        logits = self.classifier(self.dropout(outputs.pooler_output))
        if views is not None:
            logits = self._average(logits.unflatten(0, (-1, views)))
        loss = None if labels is None else self.loss_function(labels, logits, self.config, **kwargs)
        return ImageClassifierOutput(
            loss=loss, logits=logits, hidden_states=outputs.hidden_states, attentions=outputs.attentions
        )

    def _average(self, logits: torch.Tensor) -> torch.Tensor:
        """`[batch, views, labels]` to `[batch, labels]`, whose softmax is the mean of the views' if so configured."""
        if self.config.view_average == "logits" or self.config.problem_type not in (
            None,
            "single_label_classification",
        ):
            return logits.mean(1)
        # log of the mean probability, without leaving the logarithm; cross entropy takes it as logits
        return logits.log_softmax(-1).logsumexp(1) - math.log(logits.shape[1])


__all__ = ["ZeroI2VForVideoClassification", "ZeroI2VModel", "ZeroI2VModelOutput", "ZeroI2VPreTrainedModel"]
