"""Configuration of a CLIP whose vision tower is a RePaViT."""

import copy
import os
from typing import Any, Self, cast

from huggingface_hub.dataclasses import strict
from transformers import CLIPConfig, CLIPTextConfig, PreTrainedConfig, PreTrainedModel
from transformers.configuration_utils import SubConfigSpec

from ...core.backbones import structure_of
from ...core.configuration import FusibleConfig
from ...core.options import DOWNLOAD_ARGUMENTS
from .configuration_repavit import RePaViTConfig


@strict
class RePaViTCLIPConfig(FusibleConfig):
    r"""
    A CLIP with a RePaViT as vision tower; the text tower is CLIP's own.

    Args:
        text_config (`CLIPTextConfig` or `dict`, *optional*): the text tower.
        vision_config (`RePaViTConfig` or `dict`, *optional*): the vision tower.
        projection_dim (`int`, *optional*, defaults to 512): width of the space that both are projected to.
        logit_scale_init_value (`float`, *optional*, defaults to 2.6592): initial logarithm of the logits' scale.
        initializer_factor (`float`, *optional*, defaults to 1.0): factor on the initial weights, as in `CLIPConfig`.
    """

    model_type = "repavit_clip"
    sub_configs_defaults = {
        "text_config": SubConfigSpec(CLIPTextConfig),
        "vision_config": SubConfigSpec(RePaViTConfig),
    }

    text_config: dict[str, Any] | PreTrainedConfig | None = None
    vision_config: dict[str, Any] | PreTrainedConfig | None = None
    projection_dim: int = 512
    logit_scale_init_value: float | int = 2.6592
    initializer_factor: float | int = 1.0

    @classmethod
    def from_clip(cls, model: PreTrainedModel | str | os.PathLike, **kwargs: Any) -> Self:
        """
        The configuration of a CLIP checkpoint with its vision tower made a RePaViT.

        Args:
            model: a CLIP model, or its folder or Hub repository.
            **kwargs: options of `RePaViTConfig`, and those for the download, such as `revision`.
        """
        download = {name: kwargs[name] for name in DOWNLOAD_ARGUMENTS if name in kwargs}
        if isinstance(model, PreTrainedModel):
            # the text tower's configuration becomes part of the new one and must not be shared
            clip = cast(CLIPConfig, copy.deepcopy(model.config))
        else:
            clip = CLIPConfig.from_pretrained(model, **download)
        return cls(
            text_config=clip.text_config,
            vision_config=RePaViTConfig.from_backbone(model, **kwargs),
            projection_dim=cast(int, clip.projection_dim),
            logit_scale_init_value=cast(float, clip.logit_scale_init_value),
            initializer_factor=cast(float, clip.initializer_factor),
        )

    def _structure_of(self, config: PreTrainedConfig) -> Any:
        return structure_of(config)


__all__ = ["RePaViTCLIPConfig"]
