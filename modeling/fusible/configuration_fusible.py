"""What every fusible configuration has in common."""

import copy
import dataclasses
import hashlib
import importlib
import json
import os
from pathlib import Path
from typing import Any, ClassVar, Self

from huggingface_hub.dataclasses import strict
from transformers import AutoConfig, PreTrainedConfig

from .backbones import SITES


def _fingerprint(value: Any) -> Any:
    if isinstance(value, FusibleConfig):
        return value.structure_digest()
    if not isinstance(value, PreTrainedConfig):
        return value
    names = SITES[value.model_type].structure_fields if value.model_type in SITES else ()
    return [value.model_type, *(value.to_dict()[name] for name in names)] if names else value.model_type


class PortableConfig(PreTrainedConfig):
    """Base class of configurations that are saved with the code of their models, for `trust_remote_code=True`."""

    def save_pretrained(self, save_directory: str | os.PathLike, push_to_hub: bool = False, **kwargs: Any) -> None:
        """As for all configurations, with the code beside it that `auto_map` names."""
        config = copy.copy(self)
        try:
            code = importlib.import_module("fusible.code")
        except ImportError:
            pass  # this is remote code itself, which transformers copies
        else:
            os.makedirs(save_directory, exist_ok=True)
            config.auto_map = code.write_code(save_directory, self) or config.auto_map
        PreTrainedConfig.save_pretrained(config, save_directory)
        if push_to_hub:
            self.push_to_hub(kwargs.pop("repo_id", Path(save_directory).name), **kwargs)


@strict
class FusibleConfig(PortableConfig):
    r"""
    Base class of the configurations of models that have a training form and an inference form.

    Args:
        fused (`bool`, *optional*, defaults to `False`):
            Which of the two forms the model has. Fused weights cannot be turned back into the training form.
    """

    free_fields: ClassVar[frozenset[str]] = frozenset()  # fields in which weights and configuration may differ

    fused: bool = False

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """As for all configurations; raises `ValueError` for a configuration of another kind of model."""
        found = config_dict.get("model_type", cls.model_type)
        if found != cls.model_type:  # transformers only warns, and makes a model of random weights
            raise ValueError(
                f"This is a model of type {found!r}, not {cls.model_type!r}. An Auto class loads it as it is; "
                "from_dense() starts from its weights."
            )
        return super().from_dict(config_dict, **kwargs)

    def structure_digest(self) -> str:
        """
        Fingerprint (16 hex digits) of the form and of the options that tensor shapes do not show.

        It is written into the weight files, so that weights are never read with another model's configuration.
        """
        inherited = {field.name for field in dataclasses.fields(PreTrainedConfig)}
        own = {field.name: self.__dict__[field.name] for field in dataclasses.fields(self)}
        structure = {
            name: _fingerprint(value) for name, value in own.items() if name not in inherited | self.free_fields
        }
        text = json.dumps({"model_type": self.model_type, **structure}, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


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


__all__ = ["BackboneFusibleConfig", "FusibleConfig"]
