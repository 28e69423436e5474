"""
Videos whose class is a direction: scikit-learn's handwritten digits moving on a torus.

A digit leaves the picture on one side and enters it on the other. Its first place is uniform, so its place is uniform
in every frame whatever the direction: neither a frame nor a frame and its number tell the class. The files are
lossless; a lossy codec would leave traces of a frame in the next one.
"""

import os
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import StackDataset

from ..images.digits import Split, digit_images
from ..images.transforms import normalize
from .decoding import write_video


DIRECTIONS = {"down": (1, 0), "left": (0, -1), "right": (0, 1), "up": (-1, 0)}  # rows, columns


def place_digit(image: np.ndarray, row: int, column: int, size: int = 24) -> np.ndarray:
    """`[size, size, 3]` (uint8): an image `[8, 8]` with its upper left corner at a place of the torus, on black."""
    picture = np.zeros((size, size), np.uint8)
    picture[: len(image), : image.shape[1]] = image
    return np.roll(picture, (row, column), (0, 1))[..., None].repeat(3, -1)


def moving_digit(
    image: np.ndarray, row: int, column: int, direction: str, *, num_frames: int = 8, step: int = 3, size: int = 24
) -> np.ndarray:
    """`[num_frames, size, size, 3]` (uint8): a digit that moves by `step` pixels a frame from its first place."""
    down, right = DIRECTIONS[direction]
    # in pixels; np.roll in place_digit wraps places outside the picture
    times = range(0, num_frames * step, step)
    return np.stack([place_digit(image, row + t * down, column + t * right, size) for t in times])


def write_moving_digits(
    folder: str | os.PathLike,
    *,
    videos_per_image: int = 1,
    num_frames: int = 8,
    step: int = 3,
    size: int = 24,
    seed: int = 0,
    images_per_digit: int | None = None,
) -> None:
    """
    Writes `folder/{train,test}/{down,left,right,up}/*.mp4`, which `folder_of_classes` finds.

    `DenseSampling(num_frames, 1)` takes their frames as they are; uniform sampling would repeat some and drop others.

    Args:
        videos_per_image: of each digit image in each direction, from different first places.
        num_frames: of a video.
        step: pixels that the digit moves from a frame to the next.
        size: height and width.
        seed: of the split and the places.
        images_per_digit: see `digit_images`.
    """
    generator = np.random.default_rng(seed)
    splits: tuple[Split, ...] = ("train", "test")
    for split in splits:
        images, _ = digit_images(split, seed=seed, images_per_digit=images_per_digit)
        for direction in DIRECTIONS:
            place = Path(folder, split, direction)
            place.mkdir(parents=True, exist_ok=True)
            for number, image in enumerate(images):
                for repeat, (row, column) in enumerate(generator.integers(size, size=(videos_per_image, 2)).tolist()):
                    frames = moving_digit(image, row, column, direction, num_frames=num_frames, step=step, size=size)
                    write_video(place / f"{number:04d}_{repeat}.mp4", frames)


def still_digits(
    split: Split,
    *,
    pictures_per_image: int = 1,
    size: int = 24,
    mean: float = 0.5,
    std: float = 0.5,
    seed: int = 0,
    images_per_digit: int | None = None,
) -> StackDataset:
    """
    Digits at random places, to recognize: what an image model learns before it is to see motion.

    Returns:
        Rows for `Trainer`: `pixel_values` `[3, size, size]` (float32, minus `mean`, divided by `std`) and `labels`,
        the digit (int64). The images of a split are those of the videos of the same split and seed.
    """
    images, digits = digit_images(split, seed=seed, images_per_digit=images_per_digit)
    # copies of an image stand side by side, and each gets a place of its own
    images, digits = images.repeat(pictures_per_image, 0), digits.repeat(pictures_per_image)
    places = np.random.default_rng(seed).integers(size, size=(len(images), 2)).tolist()
    placed = zip(images, places, strict=True)
    pictures = np.stack([place_digit(image, row, column, size) for image, (row, column) in placed])
    pixels = normalize(torch.from_numpy(pictures).movedim(-1, -3), [mean] * 3, [std] * 3).contiguous()
    return StackDataset(pixel_values=pixels, labels=torch.from_numpy(digits))  # type: ignore[arg-type]


__all__ = [
    "DIRECTIONS",
    "moving_digit",
    "place_digit",
    "still_digits",
    "write_moving_digits",
]
