"""
Images of classes, from `datasets`: folders, parquet files, webdataset shards and Hub repositories, also as streams.

They are decoded by PIL, in the workers of the data loader.
"""

import inspect
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, cast

import datasets
import torch
from PIL import Image
from transformers import TrainingArguments

from ...core.options import check_keys
from ..classes import class_numbers
from ..dataset import DataBundle, MappedDataset
from .augmentation import TrainingTransform, image_transform
from .digits import digits_dataset
from .fashion_mnist import fashion_mnist_dataset


# names in recipes -> repository on the Hub
IMAGE_REPOSITORIES = {
    "cifar10": "uoft-cs/cifar10",
    "cifar100": "uoft-cs/cifar100",
    "imagenet-1k": "ILSVRC/imagenet-1k",
}
EVAL_SPLITS = ("validation", "val", "test")
AUGMENTATION = [name for name in inspect.signature(TrainingTransform).parameters if name != "processor"]


def _image_row(
    row: Mapping[str, Any],
    transform: Callable[[Image.Image], torch.Tensor],
    image: str,
    label: str,
    numbers: Sequence[int] | None,
) -> dict[str, Any]:
    number = int(row[label])
    # a negative label is that of a split without labels
    return {"pixel_values": transform(row[image]), "labels": numbers[number] if numbers and number >= 0 else number}


def find_eval_split(splits: Mapping[str, Any], train_split: str, eval_split: str | None) -> str | None:
    """
    The split to evaluate on: the given one, or else validation, val or test, if there is one.

    Raises:
        ValueError: if a split that was named is not there.
    """
    for name in filter(None, (train_split, eval_split)):
        if name not in splits:
            raise ValueError(f"There is no split {name!r}; there are {', '.join(splits)}.")
    return eval_split or next((name for name in EVAL_SPLITS if name in splits), None)


def find_column(features: Mapping[str, Any], given: str | None, kind: type, option: str) -> str:
    """The column that is given, or else the only one of a kind; raises `ValueError` if that does not tell one."""
    if given is not None:
        if given not in features:
            raise ValueError(f"data.{option} is {given!r}; the columns are {', '.join(features)}.")
        return given
    found = [name for name, feature in features.items() if isinstance(feature, kind)]
    # plain numbers as labels, under the usual names; cls is webdataset's ending of their files
    found = found or [name for name in ("label", "labels", "cls") if option == "label_column" and name in features]
    if len(found) != 1:
        raise ValueError(f"Which of the columns {', '.join(features)} is meant? Say it with data.{option}=NAME.")
    return found[0]


def image_data(
    splits: Any,
    processor: Any,
    augmentation: Mapping[str, Any] | None = None,
    *,
    train_split: str = "train",
    eval_split: str | None = None,
    image_column: str | None = None,
    label_column: str | None = None,
    num_examples: int | None = None,
) -> DataBundle:
    """
    Splits of `datasets`, in memory, on disk or as streams, as data for image classifiers.

    Args:
        splits: by name, such as a `DatasetDict`.
        processor: the image processor.
        augmentation: options of `TrainingTransform`.
        train_split: name of the split to train on.
        eval_split: name of the split to evaluate on; by default validation, val or test.
        image_column: needed if there are several columns of images.
        label_column: needed if there are several columns of classes.
        num_examples: of a stream for training, if it is known.

    Raises:
        ValueError: if there is no image processor, no such split or augmentation, no telling which columns are
            meant, or the split to evaluate on has a class that the one to train on has not.
    """
    if processor is None:
        raise ValueError("Images need a processor: give one, or put preprocessor_config.json beside the recipe.")
    augmentation = augmentation or {}
    check_keys(augmentation, AUGMENTATION, "augmentation of images")
    eval_split = find_eval_split(splits, train_split, eval_split)
    train = splits[train_split]
    is_stream = isinstance(train, datasets.IterableDataset)
    features = train.features or next(iter(train)).keys()
    if not isinstance(features, Mapping):  # a stream that does not know before it has been read
        features = dict.fromkeys(features)
    image = find_column(features, image_column, datasets.Image, "image_column")
    label = find_column(features, label_column, datasets.ClassLabel, "label_column")
    names = features[label].names if isinstance(features[label], datasets.ClassLabel) else None

    def prepared(split: Any, training: bool) -> Any:
        transform = image_transform(processor, training, **augmentation)
        feature = (split.features or {}).get(label)
        numbers = None
        # splits from several sources may number the same classes differently
        if names is not None and isinstance(feature, datasets.ClassLabel) and feature.names != names:
            numbers = class_numbers(feature.names, names, eval_split, train_split)
        function = partial(_image_row, transform=transform, image=image, label=label, numbers=numbers)
        # maps of streams are lazy, so the transform runs in the workers, as it does in MappedDataset
        if is_stream:
            return split.map(function, remove_columns=list(features))
        return MappedDataset(split, function)

    return DataBundle(
        prepared(train, True),
        prepared(splits[eval_split], False) if eval_split else None,
        classes=names,
        num_examples=num_examples,
    )


def images(
    processor: Any,
    augmentation: Mapping[str, Any] | None = None,
    shuffle_seed: int = TrainingArguments.seed,
    *,
    path: str,
    name: str | None = None,
    revision: str | None = None,
    streaming: bool = False,
    shuffle_buffer: int = 10_000,
    num_examples: int | None = None,
    train_split: str = "train",
    eval_split: str | None = None,
    image_column: str | None = None,
    label_column: str | None = None,
) -> DataBundle:
    """
    Images of classes by `datasets.load_dataset`: a folder of images, parquet files or webdataset shards, or a
    repository on the Hub.

    Args:
        processor: the image processor.
        augmentation: options of `TrainingTransform`.
        shuffle_seed: of the order of a stream.
        path: folder or repository.
        name: of one of the repository's configurations.
        revision: of the repository.
        streaming: read while training, instead of before.
        shuffle_buffer: a stream is shuffled within so many examples.
        num_examples: of a stream for training, where the repository does not say it.
        train_split: name of the split to train on.
        eval_split: name of the split to evaluate on; by default validation, val or test.
        image_column: needed if there are several columns of images.
        label_column: needed if there are several columns of classes.
    """
    splits = cast(Any, datasets.load_dataset(path, name, revision=revision, streaming=streaming))
    if streaming:
        train = splits.get(train_split)
        if train is not None:
            # a stream has no length, but schedules need one
            known = (train.info.splits or {}).get(train_split)
            num_examples = num_examples or (known.num_examples if known else None)
            # here and not by a sampler, which streams cannot have
            splits[train_split] = train.shuffle(seed=shuffle_seed, buffer_size=shuffle_buffer)
    return image_data(
        splits,
        processor,
        augmentation,
        train_split=train_split,
        eval_split=eval_split,
        image_column=image_column,
        label_column=label_column,
        num_examples=num_examples,
    )


def digits(processor: Any, augmentation: Mapping[str, Any] | None = None, *, seed: int = 0) -> DataBundle:
    """The 1,797 images of scikit-learn's digits, of which a fifth is for evaluation; `seed` is the split's."""
    splits = digits_dataset(seed)
    data = image_data(splits, processor, augmentation)
    data.train.dataset = list(splits["train"])  # small, so decoded once
    data.eval.dataset = list(splits["test"])
    return data


def fashion_mnist(
    processor: Any, augmentation: Mapping[str, Any] | None = None, *, folder: str | None = None
) -> DataBundle:
    """Fashion-MNIST from IDX files on this machine, or from the Hub; see `fashion_mnist_dataset`."""
    return image_data(fashion_mnist_dataset(folder), processor, augmentation)


__all__ = ["IMAGE_REPOSITORIES", "digits", "fashion_mnist", "find_column", "find_eval_split", "image_data", "images"]
