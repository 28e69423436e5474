"""Base class of the configurations of models with two forms."""

import copy
import dataclasses
import hashlib
import importlib
import json
import math
import os
from pathlib import Path
from typing import Any, ClassVar

from huggingface_hub.dataclasses import strict
from transformers import GenerationConfig, PreTrainedConfig
from transformers.utils import CONFIG_NAME, logging

from .options import canonical, check_keys, similar


logger = logging.get_logger(__name__)

# of `PreTrainedConfig`, which takes them without a field or writes them under another name
COMMON_OPTIONS = (
    "_attn_implementation",
    "_attn_implementation_internal",
    "_commit_hash",
    "_experts_implementation_internal",
    "attn_implementation",
    "auto_map",
    "custom_pipelines",
    "experts_implementation",
    "name_or_path",
    "num_labels",
    "output_attentions",
    "per_layer_config",
    "quantization_config",
    "torch_dtype",
)
_KNOWN_OPTIONS: dict[type, set[str]] = {}


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

    # of weight files. Headers do not say 1, whose digests have a rule of their own; since 3, fused FFNs with idle
    # channels have the shortcut beside their linears and not in them
    format_number: ClassVar[int] = 3
    # fields that came after the first rule of digests, which counts all
    later_fields: ClassVar[frozenset[str]] = frozenset()
    # fields in which weights and configuration may differ
    non_structural_fields: ClassVar[frozenset[str]] = frozenset()
    # what the constructor takes or files hold besides fields
    derived_fields: ClassVar[frozenset[str]] = frozenset()

    fused: bool = False

    def __post_init__(self, **kwargs: Any) -> None:
        check_keys(kwargs, self._known_options(), type(self).__name__)
        for name in self.sub_configs_defaults:
            # of one's own: what is written into it, such as labels, is no business of whoever gave it
            setattr(self, name, copy.deepcopy(getattr(self, name)))
        super().__post_init__(**kwargs)

    def validate_architecture(self) -> None:
        """Raises `ValueError` for numbers that are NaN or infinite, which comparisons with bounds would let pass."""
        super().validate_architecture()
        for field in self.own_fields():
            value = getattr(self, field.name)
            if isinstance(value, float) and not math.isfinite(value):
                raise ValueError(f"{field.name} is {value}; it must be finite.")

    @classmethod
    def _known_options(cls) -> set[str]:
        """Names that the constructor takes, and those that transformers writes into files beside them."""
        if cls not in _KNOWN_OPTIONS:
            written = PreTrainedConfig().to_dict()
            fields = {field.name for field in dataclasses.fields(cls)}
            _KNOWN_OPTIONS[cls] = {*fields, *written, *cls.derived_fields, *COMMON_OPTIONS} | {
                *GenerationConfig().to_dict()
            }
        return _KNOWN_OPTIONS[cls]

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """
        As for all configurations; what is not known, such as notes of the user's, is kept and has no effect.

        Raises:
            ValueError: for a configuration of another kind of model.
        """
        found = config_dict.get("model_type", cls.model_type)
        if found != cls.model_type:  # transformers only warns, and makes a model of random weights
            raise ValueError(
                f"This is a model of type {found!r}, not {cls.model_type!r}. An Auto class loads it as it is; "
                "from_dense() starts from its weights."
            )
        known = cls._known_options()
        notes = {name: value for name, value in config_dict.items() if name not in known}
        for name in notes:
            if hint := similar(name, known):
                logger.warning(f"{CONFIG_NAME} has {name!r}, which {cls.__name__} does not know. {hint}")
        config_dict = {name: value for name, value in config_dict.items() if name in known}
        # for a model's from_pretrained: `fused` is the form that is wanted, and the configuration says the stored one
        asks_unused = kwargs.pop("return_unused_kwargs", False)
        wanted = {"fused": kwargs.pop("fused")} if asks_unused and "fused" in kwargs else {}
        config, unused = super().from_dict(config_dict, return_unused_kwargs=True, **kwargs)
        for name, value in notes.items():
            setattr(config, name, value)
        return (config, unused | wanted) if asks_unused else config

    def structure_digest(self, format_number: int = format_number) -> str:
        """
        Fingerprint (16 hex digits) of the form and of the options that tensor shapes do not show.

        It is written into the weight files, so that weights are never read with another model's configuration.

        Args:
            format_number: the rule to go by: that of the weight files to compare with.
        """
        if format_number < 2:
            return self._first_digest()
        return _digest(self.structure())

    def structure(self) -> dict[str, Any]:
        """
        The options that the digest is over: those that differ from their defaults.

        A field that is added with a default, or one that is removed, leaves the digests of saved models as they are.
        Another default for an old field would change them.
        """
        options: dict[str, Any] = {}
        for field in self.own_fields():
            value = self.__dict__[field.name]
            if isinstance(value, FusibleConfig):
                options[field.name] = value.structure()
            elif isinstance(value, PreTrainedConfig):
                options[field.name] = self._structure_of(value)
            elif field.name not in self.non_structural_fields and canonical(value) != canonical(field.default):
                options[field.name] = canonical(value)
        return {"model_type": self.model_type, **options}

    def _structure_of(self, config: PreTrainedConfig) -> Any:
        """The same of a configuration without forms."""
        return config.model_type

    def own_fields(self) -> list[Any]:
        """The method's fields: without the options that all models have, such as labels and recorded outputs."""
        inherited = {field.name for field in dataclasses.fields(PreTrainedConfig)}
        return [field for field in dataclasses.fields(self) if field.name not in inherited]

    def _first_digest(self, unused: frozenset[str] = frozenset()) -> str:
        """The rule of weight files without a format number: over all options but those that are not to count."""

        def of(value: Any) -> Any:
            if isinstance(value, FusibleConfig):
                return value._first_digest()
            if not isinstance(value, PreTrainedConfig):
                return value
            if value.model_type != "point_vit":
                return value.model_type
            points: Any = value
            return [value.model_type, points.num_groups, points.group_size]

        skipped = self.non_structural_fields | self.later_fields | unused
        values = {field.name: self.__dict__[field.name] for field in self.own_fields()}
        structure = {name: of(value) for name, value in values.items() if name not in skipped}
        return _digest({"model_type": self.model_type, **structure})


def _digest(structure: dict[str, Any]) -> str:
    # sorted, so that neither the order of fields nor that of a file's keys counts
    return hashlib.sha256(json.dumps(structure, sort_keys=True).encode()).hexdigest()[:16]


__all__ = ["FusibleConfig"]
