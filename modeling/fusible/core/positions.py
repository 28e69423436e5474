"""Position embeddings of trained weights for images of another size."""

import re
from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.nn.functional as F
from transformers import PreTrainedModel


POSITIONS = re.compile(r"(^|\.)position_embeddings?(\.weight)?$")
HEAD = re.compile(r"(^|\.)(classifier|\w*head)\.")


def interpolate_positions(positions: torch.Tensor, old: tuple[int, int], new: tuple[int, int]) -> torch.Tensor:
    """
    Position embeddings for another grid of patches, by bicubic interpolation as in transformers' models.

    Args:
        positions: `[..., tokens, channels]`, those of class and other special tokens first, which stay as they are.
        old: rows and columns of patches that they are for.
        new: rows and columns that are wanted.
    """
    special, patches = positions.split([positions.shape[-2] - old[0] * old[1], old[0] * old[1]], dim=-2)
    # [tokens, channels] to [1, channels, rows, columns]
    grid = patches.reshape(*old, -1).movedim(-1, 0)[None].float()
    grid = F.interpolate(grid, new, mode="bicubic", align_corners=False)
    patches = grid[0].flatten(1).mT.to(positions.dtype).view(*positions.shape[:-2], -1, positions.shape[-1])
    return torch.cat([special, patches], dim=-2)


@torch.no_grad()
def resize_positions_(
    model: PreTrainedModel, mismatched: Iterable[tuple[Any, ...]], load_original: Callable[[], PreTrainedModel]
) -> None:
    """
    Gives a model that was loaded with another image size the position embeddings that belong to it.

    Args:
        model: with random numbers where shapes did not fit.
        mismatched: the `mismatched_keys` of its loading; those of a head stay new.
        load_original: loads the model in the sizes that its weights were saved with.

    Raises:
        ValueError: if other weights have other shapes as well, or if the positions are not those of images.
    """
    names = sorted(name for name, *_ in mismatched if not HEAD.search(name))
    if others := [name for name in names if not POSITIONS.search(name)]:
        raise ValueError(
            f"{type(model).__name__} has weights of another size than the options say: {', '.join(others[:3])}. Only "
            "position embeddings can be interpolated; leave out the options that change others."
        )
    if names:
        original = load_original()
        for name in names:
            old, new = original.get_parameter(name), model.get_parameter(name)
            new.copy_(interpolate_positions(old, _grid(original), _grid(model)))


def _grid(model: PreTrainedModel) -> tuple[int, int]:
    config: Any = getattr(model.config, "backbone_config", model.config)
    config = getattr(config, "vision_config", config)
    if not hasattr(config, "image_size"):
        raise ValueError(
            f"{type(model).__name__} has another number of position embeddings; only those of images are interpolated."
        )
    values = (config.image_size, config.patch_size)
    image, patch = (value if isinstance(value, list | tuple) else (value, value) for value in values)
    return image[0] // patch[0], image[1] // patch[1]


__all__ = ["interpolate_positions", "resize_positions_"]
