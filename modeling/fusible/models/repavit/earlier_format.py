"""Fused weights of before format 3, in which the shortcut of an FFN was the diagonal of its linear."""

import re
from collections.abc import Iterable

import torch
from safetensors.torch import load_file


# what has another name today: all that was not in `ffn`, which an FFN had that came after a norm or merged nothing
NAME = re.compile(r"(.*\.feed_forward\.)(ffn\.(?=shortcut\.)|(?!ffn\.))(.*)")


def without_identity(weight: torch.Tensor) -> torch.Tensor:
    """`M` of a weight `I + M` `[width, width]`, in float32 or wider: whoever loads it casts it afterwards."""
    weight = weight.to(torch.promote_types(weight.dtype, torch.float32))
    return weight - torch.eye(len(weight), dtype=weight.dtype, device=weight.device)


def load_earlier_format(files: Iterable[str]) -> dict[str, torch.Tensor] | None:
    """
    The tensors of fused weights in their names and values of today.

    Args:
        files: safetensors files whose headers have an earlier format number or none.

    Returns:
        All tensors; `None` if those in the files are as they are today.

    Raises:
        ValueError: if they are quantized.
    """
    tensors: dict[str, torch.Tensor] = {}
    found = False
    for file in files:
        for name, tensor in load_file(file).items():
            match = NAME.fullmatch(name)
            if match is None:
                tensors[name] = tensor
                continue
            found = True
            if not (name.endswith((".weight", ".bias")) and tensor.is_floating_point()):
                raise ValueError(
                    f"{file} has quantized fused weights of an earlier fusible ({name}), whose identity cannot be "
                    "taken out exactly. Load the fused folder that they were made from, and quantize that."
                )
            prefix, ffn, rest = match.groups()
            # with a LayerNorm in front, the shortcut was never inside
            if not ffn and rest in ("weight", "shortcut.weight"):
                tensor = without_identity(tensor)
            tensors[f"{prefix}ffn.{rest.replace('shortcut.', 'linear.')}"] = tensor
    return tensors if found else None


__all__ = ["load_earlier_format", "without_identity"]
