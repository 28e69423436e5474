"""Optimizers whose parameters learn at different rates, as the recipes of the methods need."""

import re
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel, Trainer, TrainingArguments

from ..core.backbones import BACKBONES
from ..core.text_backbones import TEXT_BACKBONES


# as in timm: what stands for a place or a whole, and no matrix that a feature passes
NO_DECAY = r"(class|position|temporal)_embeddings?|(cls|distillation|mask|register)_tokens?|relative_position_bias"


def param_groups(
    model: nn.Module,
    learning_rate: float,
    weight_decay: float = 0.0,
    *,
    ssm_learning_rate: float | None = None,
    ssm_parameters: Sequence[str] | None = None,
    backbone_learning_rate_factor: float = 1.0,
    layer_decay: float | None = None,
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
        backbone_learning_rate_factor: of what is in the model's `backbone`.
        layer_decay: factor of the learning rates from each block of the vision backbone to the one before it, as in
            BEiT: the last block has the factor once, what comes before the first block once more than that one.
        no_decay: regular expression that is searched in names.

    Raises:
        ValueError: if no parameter is trainable, if a name in `ssm_parameters` is that of none, or if a model without
            backbone or blocks is to have factors for them.
    """
    if ssm_learning_rate is None:
        ssm_learning_rate = min(learning_rate, 1e-3)
    # ids, as wrappers for several processes change names, and tied parameters have several
    undecayed: set[int] = set()
    slow: set[int] = set()
    known: set[str] = set()
    for module in model.modules():
        names = getattr(module, "slow_parameters", ())
        if not names:
            continue
        own = dict(module.named_parameters(recurse=False))
        # all names that could be given, for the error below
        known |= own.keys()
        # these two differ if ssm_parameters is given: what then learns fast still has no decay
        undecayed |= {id(own[name]) for name in names if name in own}
        slow |= {id(own[name]) for name in (names if ssm_parameters is None else ssm_parameters) if name in own}
    if unknown := sorted(set(ssm_parameters or ()) - known):
        has = ", ".join(sorted(known)) or "no state spaces"
        raise ValueError(f"ssm_parameters names {', '.join(unknown)}; the model has {has}.")
    factors = _factors(model, backbone_learning_rate_factor, layer_decay)
    groups: dict[tuple[float, float], dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        # DeepSpeed flattens what it shards
        is_vector = len(getattr(parameter, "ds_shape", parameter.shape)) < 2
        free = is_vector or id(parameter) in undecayed or re.search(no_decay, name)
        rate = (ssm_learning_rate if id(parameter) in slow else learning_rate) * factors.get(id(parameter), 1.0)
        decay = 0.0 if free else weight_decay
        group = groups.setdefault((rate, decay), {"params": [], "lr": rate, "weight_decay": decay})
        group["params"].append(parameter)
    if not groups:
        raise ValueError(f"{type(model).__name__} has no parameter that is to be trained.")
    return list(groups.values())


def _factors(model: nn.Module, backbone_factor: float, layer_decay: float | None) -> dict[int, float]:
    """Factors of the learning rate, by the parameters' ids; see `param_groups`."""
    factors = {id(parameter): 1.0 for parameter in model.parameters()}
    if backbone_factor != 1:
        # anywhere in the name, as wrappers put prefixes such as `module.` in front
        inside = [p for name, p in model.named_parameters() if re.search(r"(^|\.)backbone\.", name)]
        if not inside:
            raise ValueError(f"{type(model).__name__} has no backbone, whose learning rate could have a factor.")
        factors |= {id(parameter): backbone_factor for parameter in inside}
    if layer_decay is not None:
        specs: dict[str, Any] = {**BACKBONES, **TEXT_BACKBONES}
        models = [m for m in model.modules() if isinstance(m, PreTrainedModel) and m.config.model_type in specs]
        if not models:
            raise ValueError(f"{type(model).__name__} has no backbone with blocks, for layer_decay.")
        # the first one in the order of modules() is the outermost
        (blocks, backbone) = (list(specs[models[0].config.model_type].blocks(models[0])), models[0])
        numbers = {id(p): number for number, block in enumerate(blocks) for p in block.parameters()}
        last = -1  # what stands between two blocks belongs to the one before
        for parameter in backbone.parameters():
            last = numbers.get(id(parameter), last)
            # final norms come after the last block and are not part of it: they learn at the full rate
            is_after = last == len(blocks) - 1 and id(parameter) not in numbers
            # last is -1 before the first block: embeddings get one factor more than block 0
            factors[id(parameter)] *= 1.0 if is_after else layer_decay ** (len(blocks) - last)
    return factors


class Lamb(torch.optim.Optimizer):
    """
    LAMB (https://huggingface.co/papers/1904.00962, algorithm 2): Adam's step, as long as the parameter is.

    With m and v the corrected moments of the gradients: x <- x - lr * (|x| / |r|) * r, where r = m / (sqrt(v) + eps) +
    weight_decay * x. As in timm, after which recipes are written, gradients are first scaled to a global norm of at
    most `max_grad_norm`, and parameters without weight decay take r itself as their step.

    Args:
        params: parameters or groups of them.
        lr: learning rate.
        betas: of the moments.
        eps: see above.
        weight_decay: see above.
        max_grad_norm: of all parameters together; `None` for no limit.
    """

    def __init__(
        self,
        params: Any,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-6,
        weight_decay: float = 0.0,
        max_grad_norm: float | None = 1.0,
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})
        self.max_grad_norm = max_grad_norm

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """One step; with the loss that `closure` computes, if there is one."""
        loss = None
        if closure is not None:
            # step itself runs without gradients, but a closure computes some
            with torch.enable_grad():
                loss = closure()
        gradients = [p.grad for group in self.param_groups for p in group["params"] if p.grad is not None]
        scale: Any = 1.0
        if self.max_grad_norm is not None and gradients:
            norm = torch.nn.utils.get_total_norm(gradients)
            # FSDP2: the norm over all shards, and not this process's part of it
            norm = norm.full_tensor() if isinstance(norm, DTensor) else norm
            scale = (norm / self.max_grad_norm).clamp(min=1.0)
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(parameter, parameter.grad / scale, group)
        return loss

    def _update(self, parameter: torch.Tensor, gradient: torch.Tensor, group: dict[str, Any]) -> None:
        state, (beta1, beta2) = self.state[parameter], group["betas"]
        if not state:
            state |= {"step": 0, "exp_avg": torch.zeros_like(parameter), "exp_avg_sq": torch.zeros_like(parameter)}
        state["step"] += 1
        state["exp_avg"].lerp_(gradient, 1 - beta1)
        state["exp_avg_sq"].lerp_(gradient.square(), 1 - beta2)
        # Adam's correction for moments that start at 0
        first = state["exp_avg"] / (1 - beta1 ** state["step"])
        second = state["exp_avg_sq"] / (1 - beta2 ** state["step"])
        update = first / (second.sqrt() + group["eps"])
        if group["weight_decay"]:
            update = update + group["weight_decay"] * parameter
            length, step = parameter.norm(), update.norm()
            # new parameters can be all zero: a ratio of 0 would keep them there for ever
            update = update * torch.where((length > 0) & (step > 0), length / step, 1.0)
        parameter.sub_(update * group["lr"])


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
    # a class that is no torch Optimizer is a factory to Trainer, which calls it with the model
    return GroupedOptimizer, {**kwargs, "optimizer_class": optimizer_class, "options": options}


__all__ = ["NO_DECAY", "GroupedOptimizer", "Lamb", "optimizer_cls_and_kwargs", "param_groups"]
