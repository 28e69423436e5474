"""S4's weights of before format 4: activations beside the state spaces, and fused systems in another basis."""

from collections.abc import Sequence

import torch
from safetensors import safe_open
from safetensors.torch import load_file


def load_earlier_format(files: Sequence[str], fused_mode: str | None) -> dict[str, torch.Tensor] | None:
    """
    The tensors in their names and shapes of today.

    Args:
        files: safetensors files whose headers have an earlier format number or none.
        fused_mode: `mode` of the state spaces of an inference form; `None` for a training form.

    Returns:
        All tensors; `None` if those in the files are as they are today.

    Raises:
        ValueError: for a fused system with low rank, of which only the modes were stored.
    """
    places: dict[str, str] = {}
    for file in files:
        with safe_open(file, framework="pt") as opened:
            places |= {name: file for name in opened.keys()}  # noqa: SIM118
    names = {name: _name_of_today(name, places) for name in places}
    if all(old == new for old, new in names.items()):
        return None
    if fused_mode == "dplr":
        raise ValueError(
            f"{files[0]} has fused state spaces of an earlier fusible, which hold modes and dense matrices instead of "
            "diagonal plus low rank. Fuse the training checkpoint again, or load the folder with its own code "
            "(trust_remote_code=True) where this package is not installed."
        )
    tensors: dict[str, torch.Tensor] = {}
    for file in files:
        for name, tensor in load_file(file).items():
            today = names[name]
            if today is None:
                continue
            # blocks of a state of one mode, [heads, 1, 2, 2], whose second columns say nothing new
            is_block = name.endswith((".ssm.transition", ".ssm.transition_tail")) and tensor.ndim == 4
            tensors[today] = tensor[..., 0].contiguous() if is_block else tensor
    return tensors


def _name_of_today(name: str, names: dict[str, str]) -> str | None:
    """`None` for what is no longer stored: how exact a fused system is."""
    prefix, mixer, rest = name.rpartition(".mixer.activation.")
    if mixer and f"{prefix}.mixer.ssm.D" in names:
        return f"{prefix}.mixer.ssm.activation.{rest}"
    return None if name.endswith(".ssm.kernel_error") else name


__all__ = ["load_earlier_format"]
