"""
Data sets by name, as recipes call them: functions that return rows for training and evaluation, and their collator.

A recipe's section `data` has the keyword arguments of the function.
"""

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import datasets
import numpy as np
import torch

from .._auto import auto_class_of
from ..recipes.parsing import check_keys, nearest
from ..recipes.recipe import Recipe
from .dataset import Data
from .images.classification import IMAGE_REPOSITORIES, digits, image_data, images
from .images.segmentation import segmentation
from .point_clouds.datasets import SHAPES, PointClouds, generate_shapes, load_modelnet40, scale_and_translate
from .sequences.registry import SEQUENCES
from .videos import annotations as video_lists
from .videos.annotations import VideoList
from .videos.datasets import TestVideos, TrainingVideos
from .videos.sampling import make_sampling


def video_data(recipe: Recipe, processor: Any, train: VideoList, test: VideoList, frame_files: str) -> Data:
    """Lists of videos as data for video classifiers, sampled as the model's configuration says; one view of each."""
    if processor is None:
        raise ValueError(f"Videos need a preprocessor_config.json beside the recipe, in {recipe.folder}.")
    config, augment = cast(Any, recipe.config), recipe.augment
    sampling = make_sampling(config.sampling, config.num_frames, config.frame_interval)
    common: dict[str, Any] = {
        "size": processor.crop_size["height"],
        "resize": processor.crop_size["height"] * 8 // 7,
        "mean": processor.image_mean,
        "std": processor.image_std,
        "frame_files": frame_files,
    }
    training = TrainingVideos(
        train,
        sampling,
        area=cast(Any, tuple(augment.resized_crop_area)),
        ratio=cast(Any, tuple(augment.resized_crop_ratio)),
        flip=augment.horizontal_flip,
        auto_augment=augment.auto_augment,
        random_erasing=augment.random_erasing,
        random_erasing_mode=augment.random_erasing_mode,
        **common,
    )
    return Data(training, TestVideos(test, sampling, **common), classes=train.classes)


def video_folder(
    recipe: Recipe,
    processor: Any,
    *,
    path: str | None = None,
    eval_split: str = "test",
    frame_files: str = "img_*.jpg",
) -> Data:
    """Folders `train` and `eval_split` in `path` (by default the recipe's `dataset`), with a folder for each class."""
    folder = Path(path or recipe.dataset)
    train, test = (video_lists.folder_of_classes(folder / split) for split in ("train", eval_split))
    return video_data(recipe, processor, train, test, frame_files)


def kinetics400(
    recipe: Recipe,
    processor: Any,
    *,
    train_folder: str,
    eval_folder: str,
    train_annotations: str,
    eval_annotations: str,
    frame_files: str = "img_*.jpg",
) -> Data:
    """Kinetics from its annotations, see `videos.annotations.kinetics`."""
    train = video_lists.kinetics(train_annotations, train_folder)
    test = video_lists.kinetics(eval_annotations, eval_folder, train.classes)
    return video_data(recipe, processor, train, test, frame_files)


def something_something_v2(
    recipe: Recipe, processor: Any, *, folder: str, annotations: str, frame_files: str = "img_*.jpg"
) -> Data:
    """Something-Something V2: videos in `folder`, and its three files of annotations in the folder `annotations`."""
    file = str(Path(annotations, "something-something-v2-{}.json"))
    train, test = (
        video_lists.something_something_v2(file.format(split), file.format("labels"), folder)
        for split in ("train", "validation")
    )
    return video_data(recipe, processor, train, test, frame_files)


def ucf101(
    recipe: Recipe, processor: Any, *, folder: str, splits: str, split: int = 1, frame_files: str = "img_*.jpg"
) -> Data:
    """UCF101, see `videos.annotations.ucf101`."""
    train, test = (video_lists.ucf101(folder, splits, split, train) for train in (True, False))
    return video_data(recipe, processor, train, test, frame_files)


def hmdb51(
    recipe: Recipe, processor: Any, *, folder: str, splits: str, split: int = 1, frame_files: str = "img_*.jpg"
) -> Data:
    """HMDB51, see `videos.annotations.hmdb51`."""
    train, test = (video_lists.hmdb51(folder, splits, split, train) for train in (True, False))
    return video_data(recipe, processor, train, test, frame_files)


def shapes(
    recipe: Recipe, processor: Any, *, num_train: int = 4096, num_eval: int = 1024, num_points: int = 1024
) -> Data:
    """Generated clouds of points on simple solids, see `point_clouds.generate_shapes`."""
    train = generate_shapes(num_train, num_points, seed=0)
    test = generate_shapes(num_eval, num_points, seed=1)
    return Data(PointClouds(*train, transform=scale_and_translate), PointClouds(*test), classes=list(SHAPES))


def modelnet40(recipe: Recipe, processor: Any, *, folder: str, num_points: int = 1024) -> Data:
    """ModelNet40, see `point_clouds.load_modelnet40`."""
    train, test = (load_modelnet40(folder, cast(Any, split)) for split in ("train", "test"))
    return Data(
        PointClouds(*train, num_points=num_points, transform=scale_and_translate),
        PointClouds(test[0][:, :num_points], test[1]),
    )


def generated(recipe: Recipe, processor: Any, *, num_examples: int = 64, seed: int = 0) -> Data:
    """
    Noise of the shape that the model takes: to try a recipe without its data.

    Images are pictures that go through the recipe's augmentation.
    """
    generator = np.random.default_rng(seed)
    config, model_class = cast(Any, recipe.config), recipe.model_class
    if processor is not None and auto_class_of(model_class) == "AutoModelForImageClassification":
        size = processor.crop_size["height"] if processor.do_center_crop else processor.size["height"]
        pictures = list(generator.integers(256, size=(num_examples, size + 8, size + 4, 3), dtype=np.uint8))
        classes = datasets.ClassLabel(names=[config.id2label[i] for i in range(config.num_labels)])
        features = datasets.Features({"image": datasets.Image(), "label": classes})
        labels = generator.integers(config.num_labels, size=num_examples).tolist()
        rows = datasets.Dataset.from_dict({"image": pictures, "label": labels}, features=features)
        return image_data(recipe, processor, datasets.DatasetDict(train=rows, test=rows))
    with torch.device("meta"):
        inputs = model_class(config).dummy_inputs
    columns: dict[str, torch.Tensor] = {}
    for name, example in inputs.items():
        if example.is_floating_point():
            columns[name] = torch.from_numpy(generator.standard_normal((num_examples, *example.shape[1:]), np.float32))
        else:
            columns[name] = example[torch.from_numpy(generator.integers(len(example), size=num_examples))]
    if auto_class_of(model_class) == "AutoModelForCausalLM":
        columns["labels"] = columns["input_ids"]
    elif auto_class_of(model_class) == "AutoModelForTimeSeriesPrediction":
        shape = (num_examples, config.prediction_length, config.input_size)
        columns["future_values"] = torch.from_numpy(generator.standard_normal(shape, np.float32))
    elif auto_class_of(model_class) == "AutoModelForSemanticSegmentation":
        shape = (num_examples, *columns["pixel_values"].shape[-2:])
        columns["labels"] = torch.from_numpy(generator.integers(config.num_labels, size=shape))
    else:
        columns["labels"] = torch.from_numpy(generator.integers(config.num_labels, size=num_examples))
    rows = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
    return Data(rows, rows)


DATASETS: dict[str, Callable[..., Data]] = {
    **SEQUENCES,
    **dict.fromkeys(IMAGE_REPOSITORIES, images),
    "digits": digits,
    "generated": generated,
    "hmdb51": hmdb51,
    "images": images,
    "kinetics400": kinetics400,
    "modelnet40": modelnet40,
    "segmentation": segmentation,
    "shapes": shapes,
    "something_something_v2": something_something_v2,
    "ucf101": ucf101,
    "video_folder": video_folder,
}
_BY_TASK: dict[str, Callable[..., Data]] = {
    "AutoModelForImageClassification": images,
    "AutoModelForSemanticSegmentation": segmentation,
    "AutoModelForVideoClassification": video_folder,
}


def load_data(recipe: Recipe, processor: Any) -> Data:
    """
    The data that a recipe names: an entry of `DATASETS`, or a folder or Hub repository of images or videos.

    Raises:
        ValueError: for an unknown name, or options that the data set does not have or that are missing.
    """
    function: Callable[..., Data] | None = DATASETS.get(recipe.dataset)
    if function is None and (Path(recipe.dataset).exists() or "/" in recipe.dataset):
        function = _BY_TASK.get(auto_class_of(recipe.model_class))
    if function is None:
        raise ValueError(f"There is no dataset {recipe.dataset!r}, nor a folder of that name. "
                         f"{nearest(recipe.dataset, DATASETS)}")  # fmt: skip
    options = {
        name: parameter
        for name, parameter in inspect.signature(function).parameters.items()
        if parameter.kind == inspect.Parameter.KEYWORD_ONLY
    }
    check_keys(recipe.data, options, f"data of {recipe.dataset!r}")
    missing = [name for name, value in options.items() if value.default is value.empty and name not in recipe.data]
    if missing:
        needed = " ".join(f"data.{name}=..." for name in missing)
        raise ValueError(f"The dataset {recipe.dataset!r} needs to know where it is: give {needed}")
    return function(recipe, processor, **recipe.data)


__all__ = ["DATASETS", "Data", "generated", "load_data", "video_data"]
