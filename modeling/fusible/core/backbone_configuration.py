"""Base class of the configurations of models on a backbone of transformers."""

import os
from typing import Any, ClassVar, Self

from huggingface_hub.dataclasses import strict
from transformers import AutoConfig, PreTrainedConfig

from .backbones import SITES
from .configuration import FusibleConfig


@strict
class BackboneFusibleConfig(FusibleConfig):
    r"""
    Base class of the configurations of models on a backbone of transformers, in their field `backbone_config`.
    """

    keeps_labels: ClassVar[bool] = True  # those of a classifier on the backbone

    backbone_config: dict[str, Any] | PreTrainedConfig | None = None

    @classmethod
    def from_backbone(cls, pretrained_model_name_or_path: str | os.PathLike, **kwargs: Any) -> Self:
        """
        The configuration of a model on the backbone of any checkpoint that is supported.

        Args:
            pretrained_model_name_or_path: folder or Hub repository, of the backbone, of a model with a head on it, or
                of a CLIP-like model, whose vision tower is taken.
            **kwargs: options of this class, and `revision`, `token` and `cache_dir` for the download.

        Raises:
            ValueError: if the backbone is not supported, or an option is wrong.
        """
        hub = {name: kwargs.pop(name) for name in ("revision", "token", "cache_dir") if name in kwargs}
        dense = AutoConfig.from_pretrained(pretrained_model_name_or_path, **hub)
        if "vision_config" in dense.sub_configs:
            dense = dense.vision_config
        if cls.keeps_labels and "num_labels" not in kwargs:
            kwargs = {"id2label": dense.id2label, "label2id": dense.label2id, **kwargs}
        return cls(backbone_config=dense, **kwargs)

    def _fingerprint(self, value: Any) -> Any:
        """Of a backbone, its type and the options that its row of `SITES` names."""
        if not isinstance(value, PreTrainedConfig) or value.model_type not in SITES:
            return super()._fingerprint(value)
        options = [value.to_dict()[name] for name in SITES[value.model_type].structure_fields]
        return [value.model_type, *options] if options else value.model_type


__all__ = ["BackboneFusibleConfig"]
