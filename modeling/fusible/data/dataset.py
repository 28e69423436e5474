"""Data for training and evaluation, and how its rows become batches."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import torch
from transformers import default_data_collator


@dataclass
class DataBundle:
    """
    What a model learns from.

    Args:
        train: rows, which are dictionaries of a model's inputs; with a length, or iterable.
        eval: likewise, if there are any.
        collate: makes batches of rows.
        classes: names of the classes that labels number, if there are any.
        processor: what turns other inputs into such rows, if it follows from the data, such as a tokenizer.
        is_fitted: whether that was made of the rows to train with, so that a model fits to no other one.
        num_examples: of a stream for training, if it is known.
    """

    train: Any
    eval: Any = None
    collate: Callable[[list[dict[str, Any]]], dict[str, Any]] = default_data_collator
    classes: Sequence[str] | None = None
    processor: Any = None
    is_fitted: bool = False
    num_examples: int | None = None


class MappedDataset(torch.utils.data.Dataset):
    """Rows of a data set with a length, each after a function."""

    def __init__(self, dataset: Any, function: Callable[[Any], dict[str, Any]]) -> None:
        self.dataset = dataset
        self.function = function

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.function(self.dataset[index])


def load_split(path: str, split: str, name: str | None = None) -> datasets.Dataset:
    """A split of a Hub repository, or of a folder with files that `datasets.load_dataset` reads."""
    if Path(path).is_dir():
        # an absolute path cannot be taken for the name of a Hub repository; folders have no configurations
        return datasets.load_dataset(str(Path(path).resolve()), split=split)
    return datasets.load_dataset(path, name, split=split)


__all__ = ["DataBundle", "MappedDataset", "load_split"]
