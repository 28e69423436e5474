"""Checks that a model got all of its weights from a checkpoint: none is drawn at random without a word."""

from collections.abc import Collection, Iterable

import torch
from safetensors import safe_open
from torch import nn
from transformers import PreTrainedModel
from transformers.modeling_utils import load_state_dict


def _dtypes(file: str, weights_only: bool) -> dict[str, str]:
    """The dtypes of a weight file's tensors by name: `F32` or `torch.float32`, as its format calls them."""
    if file.endswith(".safetensors"):
        with safe_open(file, framework="pt") as opened:
            return {name: opened.get_slice(name).get_dtype() for name in opened.keys()}
    if file.endswith(".bin"):
        values = load_state_dict(file, "meta", weights_only)
        return {name: str(value.dtype) for name, value in values.items() if isinstance(value, torch.Tensor)}
    return {}


def check_dtypes(model: PreTrainedModel, files: Iterable[str], weights_only: bool = True) -> None:
    """
    Compares the kinds of numbers in weight files with those of a model; transformers would convert them.

    Args:
        model: to be loaded.
        files: `.safetensors` or `.bin`.
        weights_only: as for `from_pretrained`.

    Raises:
        ValueError: if a file has integers where the model has floating-point numbers, and the like.
    """
    expected = model.state_dict()
    for file in files:
        for name, dtype in _dtypes(file, weights_only).items():
            if name not in expected:
                continue
            # F32, BF16 and torch.float8_e4m3fn, or C64; I64, U8 and torch.bool are neither
            letters = dtype.removeprefix("torch.").upper()
            kind = (letters.lstrip("B").startswith("F"), letters.startswith("C"))
            if kind != (expected[name].is_floating_point(), expected[name].is_complex()):
                raise ValueError(
                    f"{file} has {name} as {dtype}, and the model has it as {expected[name].dtype}. Save or "
                    "download the weights again."
                )


def check_complete(
    model: nn.Module,
    where: str,
    missing: Collection[str],
    unexpected: Collection[str],
    shared: tuple[str, ...] = ("",),
    same_class: bool = True,
) -> None:
    """
    Checks the names that a model and a checkpoint do not have in common.

    Args:
        model: which was loaded.
        where: the checkpoint, for the message.
        missing: names of tensors that the checkpoint lacks.
        unexpected: names of tensors that the model lacks.
        shared: beginnings of the names that all classes of the family have; `("",)` are all.
        same_class: whether the checkpoint is of the model's class; those of others have other heads.

    Raises:
        ValueError: if there are names that must not be there.
    """
    modules = dict(model.named_modules())

    def is_dropped(name: str) -> bool:
        # a classifier of no labels is an identity, which leaves out the weights of another one
        return not same_class or type(modules.get(name.rpartition(".")[0])) is nn.Identity

    lacking = [name for name in missing if same_class or name.startswith(shared)]
    besides = [name for name in unexpected if name.startswith(shared) or not is_dropped(name)]
    for kind, names in (("lacks", sorted(lacking)), ("has besides", sorted(besides))):
        if names:
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            raise ValueError(
                f"{where} does not fit this {type(model).__name__}: it {kind} {', '.join(names[:3])}{more}. Save or "
                "download it again, or take another model."
            )


def shared_prefixes(model: PreTrainedModel, parts: Iterable[nn.Module]) -> tuple[str, ...]:
    """Beginnings of the names of tensors in parts of a model, as models with a head and without have them."""
    wanted = set(parts)
    names = [f"{name}." if name else "" for name, module in model.named_modules() if module in wanted]
    prefix = f"{model.base_model_prefix}." if model.base_model_prefix else ""
    return tuple(dict.fromkeys(other for name in names for other in (name, prefix + name, name.removeprefix(prefix))))


__all__ = ["check_complete", "check_dtypes", "shared_prefixes"]
