"""Checks of the keyword arguments of forward passes, most of which models hand on without a look at them."""

import inspect
from collections.abc import Collection, Mapping
from typing import Any

from torch import nn
from transformers import PreTrainedModel
from transformers.utils import TransformersKwargs

from .options import check_keys


# what losses of transformers take besides logits and labels
LOSS_ARGUMENTS = frozenset({"ignore_index", "num_items_in_batch", "shift_labels"})
COMMON_ARGUMENTS = LOSS_ARGUMENTS | {*TransformersKwargs.__optional_keys__, "return_dict"}


def forward_arguments(model: nn.Module) -> frozenset[str]:
    """Names that the forward passes of a model and of the models of transformers directly inside have."""
    models = [model, *(child for child in model.children() if isinstance(child, PreTrainedModel))]
    names = {name for inner in models for name in inspect.signature(type(inner).forward).parameters}
    return frozenset(names - {"self", "args", "kwargs"})


def check_arguments(model: nn.Module, given: Mapping[str, Any], known: Collection[str]) -> None:
    """Raises `ValueError` for the first argument that is given and not known."""
    for name, value in given.items():
        # callers give None for what they leave out
        if value is not None and name not in known:
            check_keys({name: value}, known, f"The forward pass of {type(model).__name__}")


__all__ = ["COMMON_ARGUMENTS", "LOSS_ARGUMENTS", "check_arguments", "forward_arguments"]
