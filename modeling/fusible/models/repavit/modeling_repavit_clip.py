"""CLIP with a RePaViT as vision tower, for zero-shot image classification (section 4 of the RePaViT paper)."""

import os
from typing import Any, Self

import torch
from torch import nn
from transformers import CLIPModel, CLIPTextModel, PreTrainedModel

from ...core.dense import load_dense, split_options
from ...core.modeling import FusiblePreTrainedModel
from .budget import take_speedup
from .configuration_repavit import RePaViTConfig
from .configuration_repavit_clip import RePaViTCLIPConfig
from .earlier_format import load_earlier_format
from .modeling_repavit import RePaViTModel


class RePaViTForZeroShotImageClassification(FusiblePreTrainedModel, CLIPModel):
    """A CLIP that scores images against texts; forward, losses and feature methods are `CLIPModel`'s."""

    config: RePaViTCLIPConfig  # type: ignore[assignment]
    config_class: type[RePaViTCLIPConfig]
    base_model_prefix = ""
    model_tags = ["fusible", "repavit", "clip"]
    starts_from_data = True

    def __init__(self, config: RePaViTCLIPConfig) -> None:
        PreTrainedModel.__init__(self, config)  # CLIPModel's would build its own vision tower
        self.text_model = CLIPTextModel._from_config(config.text_config)
        self.vision_model = RePaViTModel._from_config(config.vision_config)
        self.projection_dim = config.projection_dim
        self.text_embed_dim = self.text_model.config.hidden_size
        self.vision_embed_dim = self.vision_model.feature_size
        self.visual_projection = nn.Linear(self.vision_embed_dim, self.projection_dim, bias=False)
        self.text_projection = nn.Linear(self.text_embed_dim, self.projection_dim, bias=False)
        self.logit_scale = nn.Parameter(torch.tensor(float(config.logit_scale_init_value)))
        self.post_init()

    @classmethod
    def from_dense(
        cls,
        model: PreTrainedModel | str | os.PathLike,
        calibration: Any = None,
        *,
        device: torch.device | str | None = None,
        seed: int = 0,
        speedup: float | None = None,
        **kwargs: Any,
    ) -> Self:
        """
        A training form that starts from the weights of a CLIP, whose text tower stays as it is.

        Args:
            model: a CLIP model, which stays as it is, or its folder or Hub repository.
            calibration: as for `RePaViTModel.from_dense`.
            device: where the conversion runs, and the new model is.
            seed: of the choice of tokens that the fit reads.
            speedup: as for `RePaViTModel.from_dense`, of the vision tower.
            **kwargs: options of `RePaViTConfig`, and arguments for loading the CLIP, such as `revision`.
        """
        take_speedup(dict(kwargs), speedup, calibration)  # before the CLIP is loaded
        options, loading = split_options(RePaViTConfig, model, kwargs)
        clip: Any = load_dense("AutoModel", model, **loading)
        # it finds the vision tower inside the CLIP
        vision: Any = RePaViTModel.from_dense(clip, calibration, device=device, seed=seed, speedup=speedup, **options)
        # which depend on the dense tower and the data
        for name in ("ffn_norm", "idle_ratio", "active_channels", "conversion"):
            options[name] = getattr(vision.config, name)
        repavit = cls(RePaViTCLIPConfig.from_clip(clip, **options)).to(vision.device, vision.dtype)
        repavit.vision_model = vision
        own = {name: tensor for name, tensor in clip.state_dict().items() if not name.startswith("vision_model.")}
        # not strict: the vision tower's weights are in place already
        repavit.load_state_dict(own, strict=False)
        return repavit.eval()

    def _load_earlier_format(self, files: list[str]) -> dict[str, torch.Tensor] | None:
        return load_earlier_format(files) if self.config.fused else None

    @property
    def dummy_inputs(self) -> dict[str, torch.Tensor]:
        """The vision tower's two random images, and two texts of the last two tokens."""
        # CLIP reads a text at its end token, which is the last of the vocabulary
        last = self.text_model.config.vocab_size - 1
        return {
            **self.vision_model.dummy_inputs,
            "input_ids": torch.tensor([[last - 1, last], [last, last]], device="cpu"),
        }

    def get_input_embeddings(self) -> nn.Module:
        return self.text_model.get_input_embeddings()


__all__ = ["RePaViTForZeroShotImageClassification"]
