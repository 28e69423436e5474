"""Dense models to start from: a folder, a name on the Hub, or a model at hand, which stays as it is."""

import copy
import dataclasses
import os
from collections.abc import Callable, Mapping
from typing import Any

import torch
import transformers
from torch import nn
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel
from transformers.utils import find_adapter_config_file

from .backbones import backbone_spec
from .completeness import check_complete, shared_prefixes
from .options import DOWNLOAD_ARGUMENTS, check_keys
from .positions import resize_positions_


LABEL_OPTIONS = ("num_labels", "id2label", "label2id")


def split_options(
    config_class: type[PreTrainedConfig], model: PreTrainedModel | str | os.PathLike, options: dict[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """
    The options of `from_dense`: those of the configuration, and those for loading the dense model.

    Args:
        config_class: whose fields are options.
        model: the dense model, or where it is.
        options: to be told apart.

    Raises:
        ValueError: for an option that neither knows, or one for loading if the model is at hand.
    """
    loading = {name: value for name, value in options.items() if name in (*DOWNLOAD_ARGUMENTS, "dtype")}
    own = {name: value for name, value in options.items() if name not in loading}
    fields = [field.name for field in dataclasses.fields(config_class)]
    # options for loading are not among `own`; they are here for the hint at what was meant
    check_keys(own, [*fields, *LABEL_OPTIONS, *DOWNLOAD_ARGUMENTS], config_class.__name__)
    if loading and isinstance(model, PreTrainedModel):
        raise ValueError(f"The dense model is at hand, so there is nothing to load with {', '.join(loading)}.")
    return own, loading


def dense_config(
    model: PreTrainedModel | str | os.PathLike, changes: Mapping[str, Any] | None = None, **download: Any
) -> PreTrainedConfig:
    """
    A configuration of one's own of a dense model; of a CLIP-like one that of its vision tower.

    Args:
        model: the dense model, or its folder or Hub repository.
        changes: options with other values, such as `image_size`.
        **download: as for `AutoConfig.from_pretrained`.

    Raises:
        ValueError: if there are changes of a model at hand, or of what the configuration does not have; if the model
            is a quantized one or has adapters.
    """
    check_plain(model, **download)
    if isinstance(model, PreTrainedModel):
        if changes:
            raise ValueError(
                f"The dense model is at hand; {', '.join(changes)} can be changed when it is loaded only."
            )
        config = copy.deepcopy(model.config)
    else:
        config = AutoConfig.from_pretrained(model, **download)
    check_not_quantized(model, config)
    return changed(config.vision_config if "vision_config" in config.sub_configs else config, changes)


def check_plain(model: PreTrainedModel | str | os.PathLike, **download: Any) -> None:
    """
    Refuses dense models with adapters.

    Args:
        model: the dense model, or its folder or Hub repository.
        **download: as for `AutoConfig.from_pretrained`.

    Raises:
        ValueError: if it has adapters, or is no model of transformers.
    """
    if isinstance(model, nn.Module):
        if not isinstance(model, PreTrainedModel) or hasattr(model, "peft_config"):
            raise ValueError(
                f"{type(model).__name__} is no plain model of transformers. Merge adapters into it first "
                "(merge_and_unload), or give the model inside."
            )
        return
    where = {name: value for name, value in download.items() if name in DOWNLOAD_ARGUMENTS}
    if find_adapter_config_file(str(model), **where) is not None:
        raise ValueError(
            f"{model} has an adapter (adapter_config.json). Merge it into its base model first (merge_and_unload) "
            "and save that."
        )


def check_not_quantized(model: PreTrainedModel | str | os.PathLike, config: PreTrainedConfig) -> None:
    """
    Refuses quantized dense models.

    Raises:
        ValueError: if the configuration says so, or weights at hand are of a quantized kind.
    """
    quantized = getattr(config, "quantization_config", None) is not None
    if isinstance(model, PreTrainedModel):
        # libraries that quantize a model in place leave no word in its configuration, but tensors of their own kinds
        quantized |= any(type(parameter.data) is not torch.Tensor for parameter in model.parameters())
    if quantized:
        raise ValueError(
            f"{_where(model)} is quantized. Convert the weights that it was made from, and quantize after."
        )


def _where(model: PreTrainedModel | str | os.PathLike) -> str:
    return f"The {type(model).__name__} at hand" if isinstance(model, PreTrainedModel) else str(model)


def dense_classifier(
    model: PreTrainedModel | str | os.PathLike, changes: Mapping[str, Any] | None = None, **loading: Any
) -> PreTrainedModel | None:
    """
    A dense image classifier with a linear head: the model at hand, or loaded; `None` if the model is none.

    Args:
        model: the dense model, or its folder or Hub repository.
        changes: options of its backbone with other values.
        **loading: as for `from_pretrained`.
    """
    suffix = "ForImageClassification"
    if not isinstance(model, PreTrainedModel):
        download = {name: value for name, value in loading.items() if name in DOWNLOAD_ARGUMENTS}
        config = AutoConfig.from_pretrained(model, **download)
        if not any(name.endswith(suffix) for name in config.architectures or ()):
            return None
        nested = "vision_config" in config.sub_configs
        loading |= {"config": changed(config, {"vision_config": dict(changes)} if nested and changes else changes)}
        model = load_dense(f"AutoModel{suffix}", model, ignore_mismatched_sizes=bool(changes), **loading)
    is_classifier = type(model).__name__.endswith(suffix) and isinstance(getattr(model, "classifier", None), nn.Linear)
    return model if is_classifier else None


def changed(config: PreTrainedConfig, changes: Mapping[str, Any] | None) -> PreTrainedConfig:
    """
    A configuration with other values of some options.

    Raises:
        ValueError: if it does not have them, or if they change the kind of model.
    """
    if not changes:
        return config
    values = config.to_dict()
    check_keys(changes, list(values), f"backbone_config of {config.model_type!r}")
    if changes.get("model_type", config.model_type) != config.model_type:
        raise ValueError(f"The dense model is a {config.model_type!r}, not a {changes['model_type']!r}.")
    parts = {name: {**values[name], **value} for name, value in changes.items() if isinstance(values[name], dict)}
    return type(config).from_dict({**values, **changes, **parts})


def load_dense(
    auto_class: str,
    model: PreTrainedModel | str | os.PathLike,
    find_spec: Callable[[PreTrainedConfig], Any] = backbone_spec,
    **loading: Any,
) -> PreTrainedModel:
    """
    A dense model of one's own, in eval mode: loaded, or a copy of a model at hand or of a part of it.

    Args:
        auto_class: name of the Auto class of transformers that gives its class.
        model: the dense model, one with more around it such as a head, or its folder or Hub repository.
        find_spec: gives the names inside a backbone.
        **loading: as for `from_pretrained`.

    Raises:
        ValueError: if the model at hand is or has none of this kind, or not with all of its parts; if weights are
            missing from the folder or repository, but for a head that its class has not.
    """
    auto = getattr(transformers, auto_class)
    if isinstance(model, PreTrainedModel):
        return _copy_part(model, auto, model.config)
    dense, info = auto.from_pretrained(model, output_loading_info=True, **loading)
    # heads may be new, blocks may not
    shared = shared_prefixes(dense, find_spec(dense.config).blocks(dense))
    same_class = type(dense).__name__ in (dense.config.architectures or ())
    check_complete(dense, str(model), info["missing_keys"], (), shared, same_class)
    resize_positions_(dense, info["mismatched_keys"], lambda: _as_saved(auto, model, False, loading))
    for part in dense.modules():
        part._is_hf_initialized = True  # not to be initialized again, also where a head is new
    return dense


def load_backbone(
    model: PreTrainedModel | str | os.PathLike, config: PreTrainedConfig, **loading: Any
) -> PreTrainedModel:
    """
    The backbone of a dense model, see `load_dense`, with the parts that its row of `BACKBONES` names.

    Raises:
        ValueError: if weights are missing.
    """
    options = backbone_spec(config).model_kwargs
    if isinstance(model, PreTrainedModel):
        return _copy_part(model, transformers.AutoModel, config, **options)
    # transformers draws missing weights at random and only warns
    loading = {**loading, **options, "output_loading_info": True}
    auto = transformers.AutoModel
    backbone, info = auto.from_pretrained(model, config=config, ignore_mismatched_sizes=True, **loading)
    check_complete(backbone, str(model), info["missing_keys"], ())
    resize_positions_(backbone, info["mismatched_keys"], lambda: _as_saved(auto, model, True, loading))
    return backbone


def _as_saved(auto: Any, model: str | os.PathLike, is_backbone: bool, loading: dict[str, Any]) -> PreTrainedModel:
    """A dense model in the sizes that its weights were saved with."""
    download = {name: value for name, value in loading.items() if name in DOWNLOAD_ARGUMENTS}
    options = {name: value for name, value in loading.items() if name not in ("config", "output_loading_info")}
    make = dense_config if is_backbone else AutoConfig.from_pretrained
    return auto.from_pretrained(model, config=make(model, **download), **{**options, "ignore_mismatched_sizes": True})


def _copy_part(model: PreTrainedModel, auto: Any, config: PreTrainedConfig, **options: Any) -> PreTrainedModel:
    """A copy of that part of a model that an Auto class builds for a configuration, without what it leaves out."""
    # () if the Auto class does not know the configuration: nothing is an instance of that
    kind = auto._model_mapping.get(type(config), ())
    parts = [module for module in model.modules() if isinstance(module, kind)]
    if not parts:
        raise ValueError(f"{type(model).__name__} is no dense model for {auto.__name__}, and has none inside.")
    config = copy.deepcopy(config)
    config.architectures = config.architectures or []  # Auto classes cannot choose between two of them without
    with torch.device("meta"):
        wanted = auto.from_config(config, **options)
    # `modules` begins with the outermost: the model itself if it is of this class
    dense = copy.deepcopy(parts[0]).eval()
    for name, _ in list(dense.named_children()):
        if getattr(wanted, name, dense) is None:  # such as a pooler
            setattr(dense, name, None)
    check_complete(dense, f"The {type(model).__name__} at hand", wanted.state_dict().keys() - dense.state_dict(), ())
    for part in (*dense.modules(), *dense.parameters()):
        part._is_hf_initialized = True  # not to be initialized again
    return dense


__all__ = [
    "LABEL_OPTIONS",
    "changed",
    "check_not_quantized",
    "check_plain",
    "dense_classifier",
    "dense_config",
    "load_backbone",
    "load_dense",
    "split_options",
]
