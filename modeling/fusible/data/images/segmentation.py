"""Images and the class of each of their pixels, from `datasets`: folders, parquet files and Hub repositories."""

from collections.abc import Mapping
from functools import partial
from typing import Any, cast

import datasets
import numpy as np
import torch
from PIL import ImageOps

from ..dataset import DataBundle, MappedDataset
from .classification import find_column, find_eval_split
from .color_modes import class_numbers, to_rgb


IGNORED = 255


def _row(row: Mapping[str, Any], processor: Any, image: str, label_map: str, flip: float) -> dict[str, torch.Tensor]:
    picture, classes = to_rgb(row[image]), row[label_map]
    # torch's generator, which data loaders seed for each worker and SeededDataset for each row
    if float(torch.rand(())) < flip:
        picture, classes = ImageOps.mirror(picture), ImageOps.mirror(classes)
    pixels = processor(images=picture, return_tensors="pt")["pixel_values"][0]
    # by ourselves: some processors of transformers mix the numbers of neighboring classes
    labels = class_numbers(classes, (pixels.shape[2], pixels.shape[1]))
    if getattr(processor, "do_reduce_labels", False):  # where 0 is no class
        # ignored pixels stay ignored: subtracting 1 from 255 would make them class 254
        labels = np.where((labels == 0) | (labels == IGNORED), IGNORED, labels - 1)
    return {"pixel_values": pixels, "labels": torch.from_numpy(labels)}


def segmentation(
    processor: Any,
    augmentation: Mapping[str, Any] | None = None,
    *,
    path: str,
    name: str | None = None,
    revision: str | None = None,
    train_split: str = "train",
    eval_split: str | None = None,
    image_column: str | None = None,
    map_column: str | None = None,
) -> DataBundle:
    """
    Images with maps of classes, by `datasets.load_dataset`.

    In a folder of images, `metadata.csv` names the maps in a column such as `map_file_name`. They are images of one
    channel, of up to 32 bits, whose values are class ids; 255 does not count. They are scaled to what the image
    processor makes of their images, also for evaluation.

    Args:
        processor: the image processor, which must not crop; `do_reduce_labels` makes 0 no class.
        augmentation: `horizontal_flip` only, the probability of it (0.5 by default).
        path: folder or repository.
        name: of one of the repository's configurations.
        revision: of the repository.
        train_split: name of the split to train on.
        eval_split: name of the split to evaluate on; by default validation, val or test.
        image_column: of the images, `image` by default.
        map_column: of the maps; by default the one other column of images.

    Raises:
        ValueError: if there is no processor or it crops, there is no such split or column, or for other augmentation
            than flips.
    """
    if processor is None:
        raise ValueError("Images need a processor: give one, or put preprocessor_config.json beside the recipe.")
    if getattr(processor, "do_center_crop", False):
        raise ValueError("The image processor crops, so that maps would not fit; set its do_center_crop to false.")
    augmentation = {"horizontal_flip": 0.5, **(augmentation or {})}
    for option in augmentation.keys() - {"horizontal_flip"}:
        raise ValueError(f"augmentation.{option} is not for segmentation, which has horizontal_flip only.")
    splits = cast(Any, datasets.load_dataset(path, name, revision=revision))
    eval_split = find_eval_split(splits, train_split, eval_split)
    features = splits[train_split].features
    image = find_column(features, image_column or "image", datasets.Image, "image_column")
    # without the images, the maps are the only column of images in most data sets
    others = {column: feature for column, feature in features.items() if column != image}
    columns: dict[str, Any] = {
        "image": image,
        "label_map": find_column(others, map_column, datasets.Image, "map_column"),
    }
    train = partial(_row, processor=processor, flip=augmentation["horizontal_flip"], **columns)
    evaluation = partial(_row, processor=processor, flip=0.0, **columns)
    return DataBundle(
        MappedDataset(splits[train_split], train),
        MappedDataset(splits[eval_split], evaluation) if eval_split is not None else None,
    )


__all__ = ["segmentation"]
