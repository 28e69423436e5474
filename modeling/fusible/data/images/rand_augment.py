"""
RandAugment (https://huggingface.co/papers/1909.13719) of pictures and videos, as recipes spell it.

The spelling `rand-m9-mstd0.5-inc1`, and what it means, are those of timm
(https://github.com/huggingface/pytorch-image-models); for videos they are those of pytorchvideo
(https://github.com/facebookresearch/pytorchvideo) in mmaction2, which gives it bytes.
"""

import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageEnhance, ImageOps


LARGEST = 10  # magnitude


def _affine(picture: Image.Image, matrix: Sequence[float], geometry: dict[str, Any]) -> Image.Image:
    return picture.transform(picture.size, Image.Transform.AFFINE, tuple(matrix), **geometry)


def _table(picture: Image.Image, values: list[int]) -> Image.Image:
    # PIL takes one table of 256 values for each band
    return picture.point(values * len(picture.getbands()))


# from a picture, the operation's argument, and the keywords of PIL's geometric methods
OPERATIONS: dict[str, Callable[[Image.Image, Any, dict[str, Any]], Image.Image]] = {
    "auto_contrast": lambda picture, _, geometry: ImageOps.autocontrast(picture),
    "equalize": lambda picture, _, geometry: ImageOps.equalize(picture),
    "invert": lambda picture, _, geometry: ImageOps.invert(picture),
    "rotate": lambda picture, degrees, geometry: picture.rotate(degrees, **geometry),
    # minus binds tighter than the shifts: (v >> (8 - bits)) << (8 - bits)
    "posterize": lambda picture, bits, geometry: _table(picture, [v >> 8 - bits << 8 - bits for v in range(256)]),
    "solarize": lambda picture, threshold, geometry: ImageOps.solarize(picture, threshold),
    "solarize_add": lambda picture, add, geometry: _table(
        picture, [min(255, v + add) if v < 128 else v for v in range(256)]
    ),
    "color": lambda picture, factor, geometry: ImageEnhance.Color(picture).enhance(factor),
    "contrast": lambda picture, factor, geometry: ImageEnhance.Contrast(picture).enhance(factor),
    "brightness": lambda picture, factor, geometry: ImageEnhance.Brightness(picture).enhance(factor),
    "sharpness": lambda picture, factor, geometry: ImageEnhance.Sharpness(picture).enhance(factor),
    "shear_x": lambda picture, slope, geometry: _affine(picture, (1, slope, 0, 0, 1, 0), geometry),
    "shear_y": lambda picture, slope, geometry: _affine(picture, (1, 0, 0, slope, 1, 0), geometry),
    "translate_x": lambda picture, part, geometry: _affine(picture, (1, 0, part * picture.width, 0, 1, 0), geometry),
    "translate_y": lambda picture, part, geometry: _affine(picture, (1, 0, 0, 0, 1, part * picture.height), geometry),
}
SIGNED = {"rotate": 30.0, "shear_x": 0.3, "shear_y": 0.3, "translate_x": 0.45, "translate_y": 0.45}
ENHANCEMENTS = ("color", "contrast", "brightness", "sharpness")


class RandAugment:
    """
    Random operations on a picture, or the same ones on all frames of a video.

    Args:
        policy: "rand", then parts in any order: `m` magnitude, of at most 10 (default 10); `n` number of operations
            (2); `p` probability of each (0.5); `mstd` deviation of a normal magnitude (0); `inc1` for operations all
            of which grow with the magnitude: otherwise enhancements go from 0.1 to 1.9, and posterizing and
            solarizing are strongest at 0. For videos `mstd` is 0.5 and `inc` is 1.
        fill: color of what geometric operations leave empty, from 0 to 255 per channel; for videos, black.
        resample: of geometric operations; `None` takes bilinear or bicubic at random, for pictures.
        video: no operation twice and none of `solarize_add`, solarizing inverts all but black, and bilinear geometry.

    Raises:
        ValueError: if the policy cannot be read.
    """

    def __init__(
        self,
        policy: str,
        fill: tuple[int, ...] = (128, 128, 128),
        resample: Image.Resampling | None = None,
        video: bool = False,
    ) -> None:
        numbers: dict[str, float] = {"m": LARGEST, "n": 2, "p": 0.5, "mstd": 0.5 * video, "inc": float(video)}
        kind, *parts = policy.split("-")
        matches = [re.fullmatch(r"(m|n|p|mstd|inc)(\d+(?:\.\d+)?)", part) for part in parts]
        if kind != "rand" or not all(matches):
            raise ValueError(f"{policy!r} is no policy; write for instance 'rand-m9-n2-p0.5-mstd0.5-inc1'.")
        numbers |= {match[1]: float(match[2]) for match in matches if match is not None}
        self.magnitude = numbers["m"]
        self.layers = int(numbers["n"])
        self.probability = numbers["p"]
        self.deviation = numbers["mstd"]
        self.increasing = bool(numbers["inc"])
        self.video = video
        if not (self.magnitude <= LARGEST and 1 <= self.layers <= len(OPERATIONS) and self.probability <= 1):
            raise ValueError(f"{policy!r} must have m up to {LARGEST}, n from 1 to {len(OPERATIONS)} and p up to 1.")
        self.fill = (0, 0, 0) if video else fill
        self.resample = resample
        self.names = [name for name in OPERATIONS if not (video and name == "solarize_add")]

    def argument(self, name: str, magnitude: float, generator: np.random.Generator) -> float | int | None:
        """What an operation takes at this magnitude; signs are random."""
        level = magnitude / LARGEST
        if name in SIGNED:
            return level * SIGNED[name] * generator.choice((-1, 1))
        if name in ENHANCEMENTS:
            if not self.increasing:
                return level * 1.8 + 0.1
            return max(0.1, 1 + level * 0.9 * generator.choice((-1, 1)))
        if name == "posterize":
            return 4 - int(level * 4) if self.increasing else int(level * 4)
        if name == "solarize":
            # pytorchvideo's threshold is meant for values up to 1, but mmaction2 gives it bytes
            if self.video:
                return 1
            return 256 - int(level * 256) if self.increasing else int(level * 256)
        return int(level * 110) if name == "solarize_add" else None

    def __call__(self, pictures: list[Image.Image], generator: np.random.Generator) -> list[Image.Image]:
        """The pictures (RGB), all of which get the same operations."""
        for name in generator.choice(self.names, self.layers, replace=not self.video):
            if generator.random() >= self.probability:
                continue
            # drawn anew for each operation, but once for all frames
            magnitude = min(max(generator.normal(self.magnitude, self.deviation), 0.0), float(LARGEST))
            argument = self.argument(name, magnitude, generator)
            resample = Image.Resampling.BILINEAR if self.video else self.resample
            if resample is None:
                resample = Image.Resampling(generator.choice((Image.Resampling.BILINEAR, Image.Resampling.BICUBIC)))
            geometry = {"fillcolor": self.fill, "resample": resample}
            pictures = [OPERATIONS[name](picture, argument, geometry) for picture in pictures]
        return pictures


__all__ = ["OPERATIONS", "RandAugment"]
