"""Sizes and crops of all frames of a video at once."""

from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F

from ..images.transforms import Pair, random_rectangle


def resize_short_side(frames: torch.Tensor, size: int, antialias: bool = False) -> torch.Tensor:
    """`[frames, 3, height, width]` (uint8), bilinear, so that the shorter side is `size` and the ratio is kept."""
    height, width = frames.shape[-2:]
    scale = size / min(height, width)
    # half a pixel is rounded up, as by mmcv; Python's round would take the even number
    new = (int(height * scale + 0.5), int(width * scale + 0.5))
    return frames if new == (height, width) else F.interpolate(frames, new, mode="bilinear", antialias=antialias)


def crops(frames: torch.Tensor, size: int, num_crops: Literal[1, 3] = 1) -> list[torch.Tensor]:
    """Squares `[..., size, size]`: the middle, or both ends of the longer side (left or top first) and the middle."""
    height, width = frames.shape[-2:]
    row, column = (height - size) // 2, (width - size) // 2
    places = [(row, column)]
    if num_crops == 3:
        # 2 * column is a pixel short of the edge where the margin is odd, as in mmaction2's ThreeCrop
        places = [(row, 0), (row, 2 * column)] if width >= height else [(0, column), (2 * row, column)]
        places.append((row, column))
    return [frames[..., top : top + size, left : left + size] for top, left in places]


def random_resized_crop(
    frames: torch.Tensor,
    size: int,
    generator: np.random.Generator,
    area: Pair = (0.08, 1.0),
    ratio: Pair = (3 / 4, 4 / 3),
    antialias: bool = False,
) -> torch.Tensor:
    """
    One random rectangle of all frames, resized to a square `[..., size, size]`.

    Args:
        area: smallest and largest share of the picture.
        ratio: smallest and largest width over height, log-uniform. The largest square in the middle is taken if ten
            random rectangles do not fit.
    """
    height, width = frames.shape[-2:]
    found = random_rectangle(height, width, generator, area, ratio)
    if found is None:
        cut = crops(frames, min(height, width))[0]
    else:
        top, left, h, w = found
        cut = frames[..., top : top + h, left : left + w]
    same = cut.shape[-2:] == (size, size)
    return cut if same else F.interpolate(cut, (size, size), mode="bilinear", antialias=antialias)


__all__ = ["crops", "random_resized_crop", "resize_short_side"]
