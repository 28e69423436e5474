"""
scikit-learn's handwritten digits: 1,797 gray images of 8x8 pixels, in 10 classes.

A fifth of each digit's images is for testing. `digits_dataset` and `digit_images` draw it by different generators, so
that their splits differ; published numbers depend on either.
"""

from typing import Literal

import numpy as np
import torch
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image
from torch.utils.data import StackDataset

from .transforms import normalize


Split = Literal["train", "test"]


def load_digits() -> tuple[np.ndarray, np.ndarray]:
    """
    All images `[1797, 8, 8]` (uint8, 0 is the background) and their digits `[1797]` (int64).

    Raises:
        ImportError: if scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_digits as load
    except ImportError as error:
        raise ImportError("The digits come with scikit-learn: pip install scikit-learn") from error
    digits = load()
    # scikit-learn's gray levels go from 0 to 16
    return (digits.images * (255 / 16)).round().astype(np.uint8), digits.target.astype(np.int64)


def digits_dataset(seed: int = 0) -> DatasetDict:
    """The splits `train` and `test` with the columns `image` and `label`; `seed` is the split's."""
    images, digits = load_digits()
    features = Features({"image": Image(), "label": ClassLabel(names=[str(digit) for digit in range(10)])})
    dataset = Dataset.from_dict({"image": list(images), "label": digits.tolist()}, features=features)
    return dataset.train_test_split(test_size=0.2, seed=seed, stratify_by_column="label")


def digit_images(split: Split, *, seed: int = 0, images_per_digit: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """
    Images `[images, 8, 8]` (uint8, 0 is the background) and their digits `[images]` (int64).

    Args:
        split: a fifth of each digit's images is for testing, the rest for training.
        seed: of the split.
        images_per_digit: take so many of each, instead of all.

    Raises:
        ImportError: if scikit-learn is not installed.
        ValueError: for another split, or if there are not so many images.
    """
    if split not in ("train", "test"):
        raise ValueError(f"split is {split!r}; it must be 'train' or 'test'.")
    images, digits = load_digits()
    generator = np.random.default_rng(seed)
    chosen = []
    for digit in range(10):
        # each digit for itself, so that both splits have the same share of it
        members = generator.permutation(np.flatnonzero(digits == digit))
        first = len(members) // 5
        members = members[:first] if split == "test" else members[first:]
        if images_per_digit is not None and not 1 <= images_per_digit <= len(members):
            raise ValueError(f"images_per_digit is {images_per_digit}; the split has {len(members)} of digit {digit}.")
        chosen.append(members[:images_per_digit])
    # back into the order of the data set, in which digits are mixed
    rows = np.sort(np.concatenate(chosen))
    return images[rows], digits[rows]


def digit_pixels(split: Split, seed: int = 0) -> StackDataset:
    """The images of `digit_images` as rows of `pixel_values` `[1, 8, 8]` (float32, from -1 to 1) and `labels`."""
    images, digits = digit_images(split, seed=seed)
    pixels = normalize(torch.from_numpy(images)[:, None], [0.5], [0.5])
    return StackDataset(pixel_values=pixels, labels=torch.from_numpy(digits))  # type: ignore[arg-type]


__all__ = ["Split", "digit_images", "digit_pixels", "digits_dataset", "load_digits"]
