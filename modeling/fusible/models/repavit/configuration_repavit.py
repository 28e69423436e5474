"""Configuration of RePaViT (https://huggingface.co/papers/2505.21847)."""

import math
from typing import Any, ClassVar, Literal, cast

from huggingface_hub.dataclasses import strict
from transformers import AutoConfig, PreTrainedConfig
from transformers.backbone_utils import BackboneConfigMixin
from transformers.configuration_utils import SubConfigSpec

from ...core.backbone_configuration import BackboneFusibleConfig
from ...core.backbones import backbone_spec


@strict
class RePaViTConfig(BackboneConfigMixin, BackboneFusibleConfig):
    r"""
    A vision backbone whose FFNs let most hidden channels skip the activation ("channel idle").

    Args:
        backbone_config (`PreTrainedConfig` or `dict`, *optional*):
            Configuration of the backbone; a `dict` needs `model_type`. Defaults to `ViTConfig()`.
        idle_ratio (`float`, *optional*):
            Share of each FFN's hidden channels that skip the activation, in [0, 1]. Defaults to 0.75, unless
            `active_channels` is given.
        idle_schedule (`"static"` or `"linear"`, *optional*, defaults to `"static"`):
            The same ratio in all blocks, or a ratio that grows with depth around `idle_ratio` and is 0 in the last
            block (the authors' heuristic; needs `idle_ratio` >= 0.5).
        active_channels (`list[int]`, *optional*):
            Number of active channels of each block, instead of `idle_ratio`; the first ones of the hidden width.
        ffn_norm (`"batch"` or `"layer"`, *optional*, defaults to `"batch"`):
            BatchNorm before both linears of the FFN (the paper's), or LayerNorm before the first one only (the
            paper's baseline; it fuses as exactly, but the norm remains).
        batch_norm_eps (`float`, *optional*, defaults to 1e-5): epsilon of the BatchNorms.
        batch_norm_momentum (`float`, *optional*, defaults to 0.1): momentum of their running statistics.
        sync_batch_norm (`bool`, *optional*, defaults to `False`):
            Take their statistics over the tokens of all processes (`torch.distributed`) instead of each one's own.
        block_norm_eps (`float`, *optional*):
            Epsilon of the LayerNorms inside the blocks. Defaults to the backbone's. The authors' ViT has 1e-5 there
            and 1e-6 outside.
        drop_path_rate (`float`, *optional*, defaults to 0.0):
            Stochastic depth of the last block, for both branches; grows linearly from 0 in the first. It replaces the
            backbone's own.
        out_features (`list[str]`, *optional*):
            For `RePaViTBackbone`: which of "stem", "stage1", ... it returns; stages are blocks, or Swin's stages. The
            last one by default.
        out_indices (`list[int]`, *optional*): the same by number.
    """

    model_type = "repavit"
    sub_configs_defaults = {"backbone_config": SubConfigSpec(AutoConfig, model_type="vit")}
    non_structural_fields: ClassVar[frozenset[str]] = frozenset(
        {"batch_norm_momentum", "sync_batch_norm", "drop_path_rate", "_out_features", "_out_indices"}
    )

    derived_fields: ClassVar[frozenset[str]] = frozenset({"out_features", "out_indices", "stage_names"})

    idle_ratio: float | int | None = None
    idle_schedule: Literal["static", "linear"] = "static"
    active_channels: list[int] | tuple[int, ...] | None = None
    ffn_norm: Literal["batch", "layer"] = "batch"
    batch_norm_eps: float = 1e-5
    batch_norm_momentum: float | int = 0.1
    sync_batch_norm: bool = False
    block_norm_eps: float | None = None
    drop_path_rate: float | int = 0.0
    _out_features: list[str] | None = None
    _out_indices: list[int] | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        # before the base class builds it: the error for an unknown type names the supported ones
        if isinstance(self.backbone_config, dict):
            backbone_spec(self.backbone_config)
        if self.idle_ratio is None and self.active_channels is None:
            self.idle_ratio = 0.75
        if self.idle_ratio is not None:
            self.idle_ratio = float(self.idle_ratio)
        out_features, out_indices = kwargs.pop("out_features", None), kwargs.pop("out_indices", None)
        # saved files have it, but it follows from the backbone
        kwargs.pop("stage_names", None)
        super().__post_init__(**kwargs)
        # the first width is the embedding's, which is the stem
        num_stages = (
            len(backbone_spec(self.backbone_config).stage_widths(cast(PreTrainedConfig, self.backbone_config))) - 1
        )
        self.stage_names = ["stem", *(f"stage{i}" for i in range(1, num_stages + 1))]
        self.set_output_features_output_indices(out_features, out_indices)

    def validate_architecture(self) -> None:
        """Raises `ValueError` for an unknown backbone and for ratios and rates outside their range."""
        super().validate_architecture()
        dense = cast(PreTrainedConfig, self.backbone_config)
        backbone_spec(dense).check_ffn(dense)
        if self.idle_ratio is not None and self.active_channels is not None:
            raise ValueError(
                "Give idle_ratio or active_channels, not both: set idle_ratio=None or active_channels=None."
            )
        if self.idle_ratio is not None and not 0 <= self.idle_ratio <= 1:
            raise ValueError(f"idle_ratio is {self.idle_ratio}; it is a share and must be in [0, 1].")
        if self.idle_schedule == "linear" and (self.idle_ratio is None or self.idle_ratio < 0.5):
            raise ValueError(f"idle_schedule='linear' needs an idle_ratio in [0.5, 1], not {self.idle_ratio}.")
        if not 0 <= self.drop_path_rate < 1:
            raise ValueError(f"drop_path_rate is {self.drop_path_rate}; it must be in [0, 1).")

    def active_channels_of(self, hidden_channels: list[int]) -> list[int]:
        """
        Number of active channels of each block, given the hidden width of its FFN.

        Raises:
            ValueError: if `active_channels` has another length or exceeds a width, or if a changed `idle_ratio`
                contradicts it.
        """
        self.validate_architecture()
        depth = len(hidden_channels)
        if self.active_channels is not None:
            if len(self.active_channels) != depth:
                raise ValueError(f"active_channels has {len(self.active_channels)} entries for {depth} blocks.")
            if any(not 0 <= a <= h for a, h in zip(self.active_channels, hidden_channels, strict=True)):
                raise ValueError(f"active_channels {self.active_channels} must be in [0, hidden]: {hidden_channels}.")
            return list(self.active_channels)
        r = float(self.idle_ratio or 0)
        ratios = [r] * depth
        if self.idle_schedule == "linear":
            # from about 2r - 1 to 1 over all blocks but the last, whose channels are all active
            ratios = [(2 * r - 1) + (2 - 2 * r) * (i + 1) / (depth - 1) for i in range(depth - 1)] + [0.0]
        # plain float arithmetic, then ceil: the authors' checkpoints depend on its rounding
        return [math.ceil(h * (1 - ratio)) for h, ratio in zip(hidden_channels, ratios, strict=True)]


__all__ = ["RePaViTConfig"]
