"""Configuration of text encoders with RePaViT's FFNs."""

from typing import Any, cast

from huggingface_hub.dataclasses import strict
from transformers import AutoConfig, PreTrainedConfig
from transformers.configuration_utils import SubConfigSpec

from ...core.backbone_configuration import StockModelFusibleConfig
from ...core.text_backbones import text_backbone_spec
from .configuration_idle_channels import IdleChannelsConfig


@strict
class RePaTextConfig(IdleChannelsConfig, StockModelFusibleConfig):
    r"""
    A text encoder with post-norm blocks whose FFNs let most hidden channels skip the activation ("channel idle").

    Args:
        backbone_config (`PreTrainedConfig` or `dict`, *optional*):
            Configuration of the text encoder; a `dict` needs `model_type`. Defaults to `BertConfig()`.
        idle_ratio, idle_schedule, active_channels: see `IdleChannelsConfig`.
    """

    model_type = "repa_text"
    sub_configs_defaults = {"backbone_config": SubConfigSpec(AutoConfig, model_type="bert")}

    def __post_init__(self, **kwargs: Any) -> None:
        # before the base class builds it: the error for an unknown type names the supported ones
        if self.backbone_config is not None:
            text_backbone_spec(self.backbone_config)
        super().__post_init__(**kwargs)

    def validate_architecture(self) -> None:
        """Raises `ValueError` for a text encoder that is not supported, and for ratios outside their range."""
        super().validate_architecture()
        text_backbone_spec(self.backbone_config)

    def get_text_config(self, decoder: bool | None = None, encoder: bool | None = None) -> PreTrainedConfig:
        """The text encoder's, which has the sizes: of the vocabulary, for one."""
        return cast(PreTrainedConfig, self.backbone_config)


__all__ = ["RePaTextConfig"]
