"""Base class of the configurations of models with two forms."""

import copy
import dataclasses
import hashlib
import importlib
import json
import os
from pathlib import Path
from typing import Any, ClassVar

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig


class PortableConfig(PreTrainedConfig):
    """Base class of configurations that are saved with the code of their models, for `trust_remote_code=True`."""

    def save_pretrained(self, save_directory: str | os.PathLike, push_to_hub: bool = False, **kwargs: Any) -> None:
        """As for all configurations, with the code beside it that `auto_map` names."""
        # `auto_map` is for the folder; the configuration in memory goes on to mean the classes at hand
        config = copy.copy(self)
        try:
            # by name: this also runs as remote code, where fusible may be missing and one file has no relative imports
            code = importlib.import_module("fusible.hub.code")
        except ImportError:
            pass  # this is remote code itself, which transformers copies
        else:
            os.makedirs(save_directory, exist_ok=True)
            auto_map = code.write_code(save_directory, self)
            if auto_map:
                config.auto_map = auto_map
        PreTrainedConfig.save_pretrained(config, save_directory)
        if push_to_hub:
            # which saves again by this method, so the code is pushed as well
            self.push_to_hub(kwargs.pop("repo_id", Path(save_directory).name), **kwargs)


@strict
class FusibleConfig(PortableConfig):
    r"""
    Base class of the configurations of models that have a training form and an inference form.

    Args:
        fused (`bool`, *optional*, defaults to `False`):
            Which of the two forms the model has. Fused weights cannot be turned back into the training form.
    """

    # fields in which weights and configuration may differ
    non_structural_fields: ClassVar[frozenset[str]] = frozenset()

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
        if not kwargs.get("return_unused_kwargs"):
            return super().from_dict(config_dict, **kwargs)
        # for a model's from_pretrained: `fused` is the form that is wanted, and the configuration says the stored one
        wanted = {"fused": kwargs.pop("fused")} if "fused" in kwargs else {}
        config, unused = super().from_dict(config_dict, **kwargs)
        return config, unused | wanted

    def structure_digest(self) -> str:
        """
        Fingerprint (16 hex digits) of the form and of the options that tensor shapes do not show.

        It is written into the weight files, so that weights are never read with another model's configuration.
        """
        # options that all models have, such as labels and recorded outputs, say nothing of the structure
        inherited = {field.name for field in dataclasses.fields(PreTrainedConfig)}
        own = {field.name: self.__dict__[field.name] for field in dataclasses.fields(self)}
        structure = {
            name: self._fingerprint(value)
            for name, value in own.items()
            if name not in inherited | self.non_structural_fields
        }
        # sorted, so that neither the order of fields nor that of a file's keys counts
        text = json.dumps({"model_type": self.model_type, **structure}, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def _fingerprint(self, value: Any) -> Any:
        """A field's value as the digest takes it: of a configuration without forms, its type alone."""
        if isinstance(value, FusibleConfig):
            return value.structure_digest()
        return value.model_type if isinstance(value, PreTrainedConfig) else value


__all__ = ["FusibleConfig"]
