"""Base classes of the configurations of models on a backbone, or around a whole model, of transformers."""

import os
from typing import Any, ClassVar, Self, cast

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig, PreTrainedModel

from .backbones import structure_of
from .configuration import FusibleConfig
from .dense import dense_config
from .options import DOWNLOAD_ARGUMENTS


@strict
class BackboneFusibleConfig(FusibleConfig):
    r"""
    Base class of the configurations of models on a backbone of transformers, in their field `backbone_config`.
    """

    inherits_labels: ClassVar[bool] = True  # those of a classifier on the backbone

    backbone_config: dict[str, Any] | PreTrainedConfig | None = None

    @classmethod
    def from_backbone(cls, model: PreTrainedModel | str | os.PathLike, **kwargs: Any) -> Self:
        """
        The configuration of a model on the backbone of any model that is supported.

        Args:
            model: the backbone, a model with a head on it, or a CLIP-like model, whose vision tower is taken; or its
                folder or Hub repository.
            **kwargs: options of this class, of which `backbone_config` has those of the backbone that are to differ,
                such as `{"image_size": 384}`; and those for the download, such as `revision`.

        Raises:
            ValueError: if the backbone is not supported, or an option is wrong.
        """
        # options for the download, such as `revision`, are no fields of a configuration
        download = {name: kwargs.pop(name) for name in DOWNLOAD_ARGUMENTS if name in kwargs}
        dense = dense_config(model, kwargs.pop("backbone_config", None), **download)
        if cls.inherits_labels and "num_labels" not in kwargs:
            # a number of the caller's own would contradict these names; names of the caller's own come last and win
            kwargs = {"id2label": dense.id2label, "label2id": dense.label2id, **kwargs}
        return cls(backbone_config=dense, **kwargs)

    def _structure_of(self, config: PreTrainedConfig) -> Any:
        return structure_of(config)


@strict
class StockModelFusibleConfig(BackboneFusibleConfig):
    r"""
    Base class of the configurations of models around a whole model of transformers: labels that are not given are its.
    """

    def __post_init__(self, **kwargs: Any) -> None:
        # asked first, as the base class fills labels in
        has_labels = self.id2label is not None or "num_labels" in kwargs
        super().__post_init__(**kwargs)
        stock = cast(PreTrainedConfig, self.backbone_config)
        if not has_labels and stock.id2label is not None:
            self.id2label = stock.id2label
            self.label2id = stock.label2id
        self.problem_type = self.problem_type or stock.problem_type


__all__ = ["BackboneFusibleConfig", "StockModelFusibleConfig"]
