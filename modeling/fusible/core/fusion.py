"""Modules with a training form and an inference form."""

from abc import ABC, abstractmethod

import torch
from torch import nn


LIBRARIES = ("accelerate.", "torch.distributed.", "transformers.")  # whose hooks leave outputs as they are


class Fusible(nn.Module, ABC):
    """
    A module that trains as itself and runs as `fuse()`: in eval mode both are the same function.

    `fuse` computes in float64, keeps dtype and device, and leaves `self` as it was. On the meta device, where a saved
    model is built before its weights are read, it only makes the modules.
    """

    @abstractmethod
    def fuse(self) -> nn.Module:
        """The inference form: a plain module without any `Fusible` inside."""


def make_linear(weight: torch.Tensor, bias: torch.Tensor | None = None) -> nn.Linear:
    """An `nn.Linear` of this weight `[out, in]` and bias `[out]`, made without drawing random numbers."""
    linear = nn.Linear(1, 1, bias=bias is not None, device="meta")
    linear.out_features = weight.shape[0]
    linear.in_features = weight.shape[1]
    linear.weight = nn.Parameter(weight)
    if bias is not None:
        linear.bias = nn.Parameter(bias)
    return linear


def fuse_tree(module: nn.Module) -> nn.Module:
    """
    Replaces every `Fusible` inside a module, in place; returns the module, or its inference form if it is one.

    Raises:
        TypeError: if parts of a `Fusible` were replaced by modules that its algebra does not cover.
    """
    return _fuse_tree(module, {})


def _fuse_tree(module: nn.Module, fused: dict[nn.Module, nn.Module]) -> nn.Module:
    if module in fused:
        # under a second name
        return fused[module]
    fused[module] = module
    if isinstance(module, Fusible):
        _check_no_hooks(module)
        # no further down: what `fuse` returns has no Fusible inside
        fused[module] = module.fuse()
        return fused[module]
    for name, child in list(module._modules.items()):
        if child is not None and _fuse_tree(child, fused) is not child:
            setattr(module, name, fused[child])
    return module


def _check_no_hooks(fusible: Fusible) -> None:
    """Raises `TypeError` for what runs besides a module's own forward, and which would be gone with the module."""
    for name, module in fusible.named_modules():
        where = f"{name} of a {type(fusible).__name__}" if name else f"A {type(fusible).__name__}"
        if name and not any(True for _ in module.parameters()):
            # stays what it is, with all its hooks, or changes nothing in eval mode
            continue
        hooks = [*module._forward_hooks.values(), *module._forward_pre_hooks.values()]
        # those of libraries record outputs or move tensors, and change none
        if not all(str(getattr(hook, "__module__", "")).startswith(LIBRARIES) for hook in hooks):
            raise TypeError(f"{where} has a forward hook, which fusing would lose. Remove it, then fuse.")
        if "forward" in vars(module) and not hasattr(module, "_hf_hook"):
            raise TypeError(
                f"{where} has a forward of its own, which fusing would lose. Restore its class's, then fuse."
            )


def check_part(fusible: Fusible, name: str, *kinds: type[nn.Module]) -> None:
    """
    Checks that a part of a `Fusible` computes what one of these classes does, as the algebra takes for granted.

    Raises:
        TypeError: for modules of other classes, and for subclasses with another forward.
    """
    module = fusible.get_submodule(name)
    if not any(isinstance(module, kind) and type(module).forward is kind.forward for kind in kinds):
        names = " or ".join(sorted({kind.__name__ for kind in kinds}))
        raise TypeError(
            f"{name} of a {type(fusible).__name__} is a {type(module).__name__}, which cannot be fused; "
            f"it must be {names}. Merge it into one, or keep the training form."
        )


__all__ = ["Fusible", "check_part", "fuse_tree", "make_linear"]
