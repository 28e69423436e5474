"""Configuration of RePaViT (https://huggingface.co/papers/2505.21847)."""

from typing import Any, ClassVar, Literal, cast

from huggingface_hub.dataclasses import strict
from transformers import AutoConfig, PreTrainedConfig
from transformers.backbone_utils import BackboneConfigMixin
from transformers.configuration_utils import SubConfigSpec

from ...core.backbones import backbone_spec
from .configuration_idle_channels import IdleChannelsConfig


@strict
class RePaViTConfig(BackboneConfigMixin, IdleChannelsConfig):
    r"""
    A vision backbone whose FFNs let most hidden channels skip the activation ("channel idle").

    Args:
        backbone_config (`PreTrainedConfig` or `dict`, *optional*):
            Configuration of the backbone; a `dict` needs `model_type`. Defaults to `ViTConfig()`.
        idle_ratio, idle_schedule, active_channels: see `IdleChannelsConfig`.
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
        pooling (`"mean"` or `"class_token_and_mean"`, *optional*):
            The image feature is the mean of the patches' tokens, or the class token beside it, as in transformers' own
            classifiers on CLIP, SigLIP and DINOv2. By default it is the backbone's own.
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
    non_structural_fields: ClassVar[frozenset[str]] = IdleChannelsConfig.non_structural_fields | {
        "batch_norm_momentum",
        "sync_batch_norm",
        "drop_path_rate",
        "_out_features",
        "_out_indices",
    }
    later_fields: ClassVar[frozenset[str]] = frozenset({"pooling"})
    derived_fields: ClassVar[frozenset[str]] = frozenset({"out_features", "out_indices", "stage_names"})

    ffn_norm: Literal["batch", "layer"] = "batch"
    batch_norm_eps: float = 1e-5
    batch_norm_momentum: float | int = 0.1
    sync_batch_norm: bool = False
    block_norm_eps: float | None = None
    pooling: Literal["mean", "class_token_and_mean"] | None = None
    drop_path_rate: float | int = 0.0
    _out_features: list[str] | None = None
    _out_indices: list[int] | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        # before the base class builds it: the error for an unknown type names the supported ones
        if isinstance(self.backbone_config, dict):
            backbone_spec(self.backbone_config)
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
        spec = backbone_spec(dense)
        spec.check_ffn(dense)
        if self.pooling is not None and (not spec.patch_grid or spec.classifier):
            raise ValueError(f"pooling={self.pooling!r} needs tokens of patches, which {dense.model_type!r} has not.")
        if not 0 <= self.batch_norm_momentum <= 1:
            raise ValueError(f"batch_norm_momentum is {self.batch_norm_momentum}; it must be in [0, 1].")
        for name in ("batch_norm_eps", "block_norm_eps"):
            if (getattr(self, name) or 0) < 0:
                raise ValueError(f"{name} is {getattr(self, name)}; it must not be negative.")
        if not 0 <= self.drop_path_rate < 1:
            raise ValueError(f"drop_path_rate is {self.drop_path_rate}; it must be in [0, 1).")


__all__ = ["RePaViTConfig"]
