"""Mixins for single modules of transformers: one subclass per pair of mixin and stock class."""

from typing import Any

from torch import nn


_SUBCLASSES: dict[tuple[type[nn.Module], type[nn.Module]], type[nn.Module]] = {}


def subclass(mixin: type[nn.Module], stock: type[nn.Module]) -> type[nn.Module]:
    """
    The subclass of a mixin and a stock class, always the same one, under the stock class's name and module.

    transformers, accelerate and FSDP find modules by class or by the class's name. torch.compile compiles one graph
    for all modules of a class, so a class per module would mean a graph per module.
    """
    if (mixin, stock) not in _SUBCLASSES:
        names = {"__module__": stock.__module__, "__qualname__": stock.__qualname__, "__reduce_ex__": _reduce}
        _SUBCLASSES[mixin, stock] = type(stock.__name__, (mixin, stock), names)
    return _SUBCLASSES[mixin, stock]


def _reduce(module: nn.Module, protocol: Any) -> tuple[Any, ...]:
    # pickle would look for the class by its name, and find the stock one
    # the bases are mixin and stock class, both of which can be found by their names
    return _make_empty, type(module).__bases__, module.__getstate__()


def _make_empty(mixin: type[nn.Module], stock: type[nn.Module]) -> nn.Module:
    kind = subclass(mixin, stock)
    # without `__init__`, as pickle and deepcopy fill in the state afterwards
    return kind.__new__(kind)


def mix_in_(module: nn.Module, mixin: type[nn.Module]) -> None:
    """Puts a mixin before a module's class, in place: the mixin's forward runs, and `super()` is the stock one."""
    module.__class__ = subclass(mixin, type(module))


__all__ = ["mix_in_", "subclass"]
