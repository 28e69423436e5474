"""
Operations on pictures, and random ones among them, in the meaning of timm
(https://github.com/huggingface/pytorch-image-models), after which the recipes of the field are written.
"""

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from PIL import Image, ImageEnhance


ErasingMode = Literal["const", "rand", "pixel"]
Pair = tuple[float, float] | list[float]  # smallest and largest


def make_generator() -> np.random.Generator:
    """A generator that follows from the state of torch's, which moves on."""
    # torch's generator is the one that data loaders and SeededDataset seed
    return np.random.default_rng(int(torch.randint(2**62, ())))


def random_rectangle(
    height: int, width: int, generator: np.random.Generator, area: Pair, ratio: Pair
) -> tuple[int, int, int, int] | None:
    """
    Top, left, height and width of a random rectangle in a picture of this height and width, in pixels.

    Args:
        area: smallest and largest share of the picture.
        ratio: smallest and largest width over height, log-uniform.

    Returns:
        `None` if ten random rectangles do not fit.
    """
    for _ in range(10):
        pixels = generator.uniform(area[0], area[1]) * height * width
        # log-uniform: 3/4 and 4/3 are equally likely
        aspect = np.exp(generator.uniform(np.log(ratio[0]), np.log(ratio[1])))
        w, h = round((pixels * aspect) ** 0.5), round((pixels / aspect) ** 0.5)
        if 1 <= w <= width and 1 <= h <= height:
            top, left = generator.integers(height - h, endpoint=True), generator.integers(width - w, endpoint=True)
            return int(top), int(left), h, w
    return None


def random_resized_crop(
    picture: Image.Image,
    size: tuple[int, int],
    generator: np.random.Generator,
    area: Pair,
    ratio: Pair,
    resample: Image.Resampling,
) -> Image.Image:
    """A random rectangle (else the largest in the middle that `ratio` allows), resized to `size` (height, width)."""
    height, width = picture.height, picture.width
    found = random_rectangle(height, width, generator, area, ratio)
    if found is None:
        # whole width or whole height, as torchvision and timm fall back
        w, h = min(width, round(height * ratio[1])), min(height, round(width / ratio[0]))
        found = (height - h) // 2, (width - w) // 2, h, w
    top, left, h, w = found
    return picture.crop((left, top, left + w, top + h)).resize((size[1], size[0]), resample)


def jitter_colors(picture: Image.Image, strength: float, generator: np.random.Generator) -> Image.Image:
    """Brightness, contrast and saturation in random order, each times a factor within `strength` of 1."""
    enhancements = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)
    for number in generator.permutation(len(enhancements)):
        picture = enhancements[number](picture).enhance(generator.uniform(max(0.0, 1 - strength), 1 + strength))
    return picture


def erase(
    pixels: torch.Tensor, generator: np.random.Generator, probability: float, mode: ErasingMode = "const"
) -> torch.Tensor:
    """
    Random erasing (https://huggingface.co/papers/1708.04896) of a rectangle, the same one in all frames of a video.

    Args:
        pixels: `[..., channels, height, width]` (float), normalized; they stay as they are.
        generator: of random numbers.
        probability: that there is a rectangle. It has 2 to 33 % of the area and 0.3 to 3.3 times its height as width.
        mode: what is there then: "const" 0, the mean; "rand" a normal value per channel; "pixel" one per pixel.
    """
    if generator.random() >= probability:
        return pixels
    *leading, channels, height, width = pixels.shape
    found = random_rectangle(height, width, generator, (0.02, 1 / 3), (0.3, 1 / 0.3))
    if found is None:
        return pixels
    top, left, h, w = found
    # "pixel" differs from frame to frame of a video, the others are broadcast over frames
    shape = {"const": (), "rand": (channels, 1, 1), "pixel": (*leading, channels, h, w)}[mode]
    values = np.zeros(shape) if mode == "const" else generator.standard_normal(shape)
    pixels = pixels.clone()
    pixels[..., top : top + h, left : left + w] = torch.from_numpy(values).to(pixels.dtype)
    return pixels


def normalize(pixels: torch.Tensor, mean: Sequence[float], std: Sequence[float]) -> torch.Tensor:
    """`[..., channels, height, width]` (uint8) as float32: over 255, minus the mean, over the deviation."""
    scale, shift = (torch.tensor(values, dtype=torch.float32).view(-1, 1, 1) for values in (std, mean))
    return (pixels / 255 - shift) / scale


def check_probabilities(**values: float) -> None:
    """Raises `ValueError` for what is not between 0 and 1."""
    for name, value in values.items():
        if not 0 <= value <= 1:
            raise ValueError(f"{name} is {value}; it must be between 0 and 1.")


__all__ = [
    "ErasingMode",
    "Pair",
    "check_probabilities",
    "erase",
    "jitter_colors",
    "make_generator",
    "normalize",
    "random_rectangle",
    "random_resized_crop",
]
