"""Whole models of transformers, head included, around which models with two forms are built."""

import copy
import os
from collections.abc import Callable
from typing import Any, cast

import transformers
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel

from .backbone_configuration import BackboneFusibleConfig
from .backbones import backbone_spec
from .dense import LABEL_OPTIONS, changed, check_not_quantized, check_plain, load_dense, split_options
from .options import DOWNLOAD_ARGUMENTS


def build_stock(
    config: BackboneFusibleConfig, auto_class: str, stock: PreTrainedModel | None = None
) -> PreTrainedModel:
    """
    The stock model of a configuration, which gets its labels.

    Args:
        config: its `backbone_config` becomes the stock model's configuration.
        auto_class: name of the Auto class of transformers that gives the stock model.
        stock: one to take instead of a new one.
    """
    inner = cast(PreTrainedConfig, config.backbone_config if stock is None else stock.config)
    inner.id2label = config.id2label
    inner.label2id = config.label2id
    inner.problem_type = config.problem_type
    inner.architectures = inner.architectures or []  # the Auto classes cannot choose between two of them without
    stock = getattr(transformers, auto_class).from_config(inner) if stock is None else stock
    # one object, not two that can come to differ
    config.backbone_config = stock.config
    return stock


def load_stock(
    config_class: type[BackboneFusibleConfig],
    auto_class: str,
    model: PreTrainedModel | str | os.PathLike,
    arguments: dict[str, Any],
    find_spec: Callable[[PreTrainedConfig], Any] = backbone_spec,
) -> tuple[Any, PreTrainedModel]:
    """
    A configuration and the stock model for it, from a dense model.

    Args:
        config_class: of the configuration.
        auto_class: name of the Auto class of transformers that gives the stock model.
        model: the dense model, which stays as it is, or its folder or Hub repository.
        arguments: of `from_dense`: options of the configuration, and arguments for loading.
        find_spec: gives the names inside a backbone, or raises.

    Raises:
        ValueError: if the backbone is not supported, an option is wrong, the model is quantized or has adapters, or a
            model at hand has other labels.
    """
    options, loading = split_options(config_class, model, arguments)
    download = {name: value for name, value in loading.items() if name in DOWNLOAD_ARGUMENTS}
    check_plain(model, **download)
    labels = {name: options.pop(name) for name in LABEL_OPTIONS if name in options}
    changes = options.pop("backbone_config", None)
    if isinstance(model, PreTrainedModel):
        if changes:
            raise ValueError(
                f"The dense model is at hand; {', '.join(changes)} can be changed when it is loaded only."
            )
        found = model.config
    else:
        found = changed(AutoConfig.from_pretrained(model, **labels, **download), changes)
        # other labels make a head of another size, which transformers loads only if told to
        loading |= {"config": found, "ignore_mismatched_sizes": bool(labels or changes)}
    check_not_quantized(model, found)
    find_spec(found)  # before the weights are read
    stock = load_dense(auto_class, model, find_spec, **loading)
    config = config_class(backbone_config=copy.deepcopy(stock.config), **labels, **options)
    if config.num_labels != stock.config.num_labels:
        raise ValueError(
            f"The model at hand has {stock.config.num_labels} labels, not {config.num_labels}; change its head."
        )
    return config, stock


__all__ = ["build_stock", "load_stock"]
