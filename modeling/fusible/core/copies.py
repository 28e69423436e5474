"""Copies of modules that share the tensors, and the tensors' own copies afterwards."""

import copy
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import torch
from torch import nn
from transformers import PreTrainedConfig


Module = TypeVar("Module", bound=nn.Module)


def _tensors(module: nn.Module) -> Iterator[torch.Tensor]:
    """All tensors that modules hold: parameters, buffers, and plain attributes such as recorded outputs."""
    for part in module.modules():
        yield from (tensor for tensor in part.parameters(recurse=False))
        yield from (tensor for tensor in part.buffers(recurse=False))
        yield from (value for value in vars(part).values() if isinstance(value, torch.Tensor))


def copy_modules(module: Module, replace: Callable[[torch.Tensor], torch.Tensor]) -> Module:
    """
    A copy of a module with all that is in it and is no tensor: submodules, hooks, configurations.

    Args:
        module: stays as it is.
        replace: what the copy holds in the place of a tensor, such as `alias` or `to_meta` of it.
    """
    # deepcopy takes from the memo what it would copy otherwise; tied tensors are one entry and stay tied
    memo = {id(tensor): replace(tensor) for tensor in _tensors(module)}
    return copy.deepcopy(module, memo)


def alias(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor of the same memory, which may be frozen or get a gradient on its own."""
    values = tensor.detach()
    return nn.Parameter(values, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else values


def to_meta(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor's shape and dtype without its values."""
    values = tensor.detach().to("meta")
    return nn.Parameter(values, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else values


def own_configs_(module: nn.Module) -> None:
    """Gives all models inside a module, in place, configurations of their own: others may have the same objects."""
    # one memo, so that parts which share a configuration go on to share one
    copies: dict[int, Any] = {}
    for part in module.modules():
        if isinstance(vars(part).get("config"), PreTrainedConfig):
            part.config = copy.deepcopy(part.config, copies)


def own_tensors_(module: nn.Module, other: nn.Module) -> None:
    """Gives a module, in place, tensors of its own where they share memory with another module's."""
    shared = {_memory(tensor) for tensor in _tensors(other)} - {None}
    # by identity, so that tied tensors stay tied
    owned: dict[int, torch.Tensor] = {}
    for part in module.modules():
        for store in (part._parameters, part._buffers):
            for name, tensor in store.items():
                if tensor is None or _memory(tensor) not in shared:
                    continue
                if id(tensor) not in owned:
                    owned[id(tensor)] = alias(tensor)
                    owned[id(tensor)].data = tensor.detach().clone()
                store[name] = owned[id(tensor)]  # type: ignore[assignment]


def _memory(tensor: torch.Tensor) -> tuple[torch.device, int] | None:
    """Where a tensor's values are; `None` if it has none."""
    if tensor.is_meta or tensor.numel() == 0:
        return None
    return tensor.device, tensor.untyped_storage().data_ptr()


__all__ = ["alias", "copy_modules", "own_configs_", "own_tensors_", "to_meta"]
