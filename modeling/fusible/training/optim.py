"""Optimizers whose parameters learn at different rates, as the recipes of the methods need."""

import re
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from transformers import Trainer, TrainingArguments


# as in timm: what stands for a place or a whole, and no matrix that a feature passes
NO_DECAY = r"(class|position|temporal)_embeddings?|(cls|distillation|mask|register)_tokens?|relative_position_bias"


def param_groups(
    model: nn.Module,
    learning_rate: float,
    weight_decay: float = 0.0,
    *,
    ssm_learning_rate: float | None = None,
    ssm_parameters: Sequence[str] | None = None,
    no_decay: str = NO_DECAY,
) -> list[dict[str, Any]]:
    """
    The trainable parameters in groups of equal learning rate and weight decay, for any optimizer of torch.

    Vectors and scalars, such as biases and norms, have no weight decay, nor have parameters whose name `no_decay`
    finds. State spaces of S4 learn slowly and without decay, as the authors' do: which of their parameters, their
    modules say in `slow_parameters`. All follows from names and modules, so that a loaded model has the same groups.

    Args:
        model: also one that is wrapped for several processes or compiled.
        learning_rate: of all parameters but those of state spaces.
        weight_decay: of all parameters that have one.
        ssm_learning_rate: of the state spaces; by default `learning_rate`, but at most 1e-3.
        ssm_parameters: names of those that have it, such as `("A_real", "A_imag", "B", "P")` to leave out the step
            sizes; by default all `slow_parameters`. These have no decay in any case.
        no_decay: regular expression that is searched in names.

    Raises:
        ValueError: if no parameter is trainable, or if a name in `ssm_parameters` is that of none.
    """
    if ssm_learning_rate is None:
        ssm_learning_rate = min(learning_rate, 1e-3)
    undecayed: set[int] = set()
    slow: set[int] = set()
    known: set[str] = set()
    for module in model.modules():
        names = getattr(module, "slow_parameters", ())
        if not names:
            continue
        own = dict(module.named_parameters(recurse=False))
        known |= own.keys()
        undecayed |= {id(own[name]) for name in names if name in own}
        slow |= {id(own[name]) for name in (names if ssm_parameters is None else ssm_parameters) if name in own}
    if unknown := sorted(set(ssm_parameters or ()) - known):
        has = ", ".join(sorted(known)) or "no state spaces"
        raise ValueError(f"ssm_parameters names {', '.join(unknown)}; the model has {has}.")
    groups: dict[tuple[float, float], dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        # DeepSpeed flattens what it shards
        is_vector = len(getattr(parameter, "ds_shape", parameter.shape)) < 2
        free = is_vector or id(parameter) in undecayed or re.search(no_decay, name)
        rate = ssm_learning_rate if id(parameter) in slow else learning_rate
        decay = 0.0 if free else weight_decay
        group = groups.setdefault((rate, decay), {"params": [], "lr": rate, "weight_decay": decay})
        group["params"].append(parameter)
    if not groups:
        raise ValueError(f"{type(model).__name__} has no parameter that is to be trained.")
    return list(groups.values())


class GroupedOptimizer:
    """What `Trainer` makes an optimizer of `param_groups` with."""

    def __call__(
        self, model: nn.Module, optimizer_class: type[torch.optim.Optimizer], options: dict[str, Any], **kwargs: Any
    ) -> torch.optim.Optimizer:
        """
        Args:
            model: the model.
            optimizer_class: the optimizer.
            options: of `param_groups`.
            **kwargs: of the optimizer.
        """
        return optimizer_class(param_groups(model, **options), **kwargs)


def optimizer_cls_and_kwargs(
    arguments: TrainingArguments, optimizer_class: type[torch.optim.Optimizer] | None = None, **options: Any
) -> tuple[type, dict[str, Any]]:
    """
    `Trainer`'s argument of that name, for `param_groups` with the learning rate and weight decay of its arguments.

    `Trainer(model, arguments, optimizer_cls_and_kwargs=optimizer_cls_and_kwargs(arguments))`

    Args:
        arguments: of the `Trainer`.
        optimizer_class: the optimizer; by default the one that `arguments.optim` names.
        **options: further ones of `param_groups`.
    """
    kwargs: dict[str, Any] = {"lr": arguments.learning_rate}
    if optimizer_class is None:
        optimizer_class, kwargs = Trainer.get_optimizer_cls_and_kwargs(arguments)
    options = {"learning_rate": arguments.learning_rate, "weight_decay": arguments.weight_decay, **options}
    return GroupedOptimizer, {**kwargs, "optimizer_class": optimizer_class, "options": options}


__all__ = ["NO_DECAY", "GroupedOptimizer", "optimizer_cls_and_kwargs", "param_groups"]
