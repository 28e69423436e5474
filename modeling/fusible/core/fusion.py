"""Modules with a training form and an inference form."""

from abc import ABC, abstractmethod

import torch
from torch import nn


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
    """Replaces every `Fusible` inside a module, in place; returns the module, or its inference form if it is one."""
    if isinstance(module, Fusible):
        # no further down: what `fuse` returns has no Fusible inside
        return module.fuse()
    for name, child in module.named_children():
        fused = fuse_tree(child)
        if fused is not child:
            setattr(module, name, fused)
    return module


__all__ = ["Fusible", "fuse_tree", "make_linear"]
