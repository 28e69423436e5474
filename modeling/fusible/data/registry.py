"""
Data sets by name: functions that return data for training and evaluation.

Their positional parameters are what a data set is prepared for (`config`, `model_class`, `processor`, `augmentation`,
`shuffle_seed`), as far as they need it; their keyword arguments are options, such as those of a recipe's section
`data`.
"""

import inspect
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from transformers import PreTrainedConfig, PreTrainedModel, TrainingArguments

from .._auto import auto_class_of
from ..core.options import check_keys, nearest
from .dataset import DataBundle
from .images.classification import IMAGE_REPOSITORIES, digits, fashion_mnist, image_data, images
from .images.segmentation import segmentation
from .point_clouds.datasets import SHAPES, PointClouds, generate_shapes, load_modelnet40, scale_and_translate
from .sequences.registry import SEQUENCES
from .videos.registry import VIDEOS, video_folder


def shapes(*, num_train: int = 4096, num_eval: int = 1024, num_points: int = 1024) -> DataBundle:
    """Generated clouds of points on simple solids, see `point_clouds.generate_shapes`."""
    train = generate_shapes(num_train, num_points, seed=0)
    test = generate_shapes(num_eval, num_points, seed=1)
    return DataBundle(PointClouds(*train, transform=scale_and_translate), PointClouds(*test), classes=list(SHAPES))


def modelnet40(*, folder: str, num_points: int = 1024) -> DataBundle:
    """ModelNet40, see `point_clouds.load_modelnet40`."""
    train, test = load_modelnet40(folder, "train"), load_modelnet40(folder, "test")
    return DataBundle(
        PointClouds(*train, num_points=num_points, transform=scale_and_translate),
        # the first points, as is usual: evaluation must be repeatable
        PointClouds(test[0][:, :num_points], test[1]),
    )


def generated(
    config: Any,
    model_class: type[PreTrainedModel],
    processor: Any = None,
    augmentation: Mapping[str, Any] | None = None,
    *,
    num_examples: int = 64,
    seed: int = 0,
) -> DataBundle:
    """
    Noise of the shape that the model takes: to try a recipe without its data.

    Images are pictures that go through the augmentation.
    """
    generator = np.random.default_rng(seed)
    auto_class = auto_class_of(model_class)
    if processor is not None and auto_class == "AutoModelForImageClassification":
        size = processor.crop_size["height"] if processor.do_center_crop else processor.size["height"]
        # a little larger than the model's input and not square, so that crops have something to do
        pictures = list(generator.integers(256, size=(num_examples, size + 8, size + 4, 3), dtype=np.uint8))
        classes = datasets.ClassLabel(names=[config.id2label[i] for i in range(config.num_labels)])
        features = datasets.Features({"image": datasets.Image(), "label": classes})
        labels = generator.integers(config.num_labels, size=num_examples).tolist()
        dataset = datasets.Dataset.from_dict({"image": pictures, "label": labels}, features=features)
        return image_data(datasets.DatasetDict(train=dataset, test=dataset), processor, augmentation)
    # weights take no memory here; dummy_inputs are tensors on the CPU nevertheless
    with torch.device("meta"):
        inputs = model_class(config).dummy_inputs
    columns: dict[str, torch.Tensor] = {}
    for name, example in inputs.items():
        if example.is_floating_point():
            columns[name] = torch.from_numpy(generator.standard_normal((num_examples, *example.shape[1:]), np.float32))
        else:
            # whole numbers are ids of vocabularies or calendars: only the model's own examples are surely valid
            columns[name] = example[torch.from_numpy(generator.integers(len(example), size=num_examples))]
    if auto_class == "AutoModelForCausalLM":
        # language models shift the labels themselves
        columns["labels"] = columns["input_ids"]
    elif auto_class == "AutoModelForTimeSeriesPrediction":
        shape = (num_examples, config.prediction_length, config.input_size)
        columns["future_values"] = torch.from_numpy(generator.standard_normal(shape, np.float32))
    elif auto_class == "AutoModelForSemanticSegmentation":
        shape = (num_examples, *columns["pixel_values"].shape[-2:])
        columns["labels"] = torch.from_numpy(generator.integers(config.num_labels, size=shape))
    else:
        columns["labels"] = torch.from_numpy(generator.integers(config.num_labels, size=num_examples))
    dataset = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
    return DataBundle(dataset, dataset)


DATASETS: dict[str, Callable[..., DataBundle]] = {
    **SEQUENCES,
    **VIDEOS,
    **{name: partial(images, path=repository) for name, repository in IMAGE_REPOSITORIES.items()},
    "digits": digits,
    "fashion_mnist": fashion_mnist,
    "generated": generated,
    "images": images,
    "modelnet40": modelnet40,
    "segmentation": segmentation,
    "shapes": shapes,
}
# data sets that read anything of a kind: the option that says what
_READ_FROM = {"arrays": "folder", "fashion_mnist": "folder", "forecasts": "file", "recordings": "folder"}
_BY_TASK: dict[str, Callable[..., DataBundle]] = {
    "AutoModelForImageClassification": images,
    "AutoModelForSemanticSegmentation": segmentation,
    "AutoModelForVideoClassification": video_folder,
}


def load_data(
    dataset: str,
    options: Mapping[str, Any] | None = None,
    *,
    config: PreTrainedConfig | None = None,
    model_class: type[PreTrainedModel] | None = None,
    processor: Any = None,
    augmentation: Mapping[str, Any] | None = None,
    shuffle_seed: int = TrainingArguments.seed,
) -> DataBundle:
    """
    A data set for training and evaluation, prepared for a model.

    Args:
        dataset: a name in `DATASETS`, or a folder or Hub repository of images or videos, for which `model_class` says
            what its rows are.
        options: of the data set: keyword arguments of its function.
        config: of the model; videos, recordings, forecasts and generated data depend on it.
        model_class: one of fusible's.
        processor: image processor or tokenizer; images and videos need one.
        augmentation: options of `TrainingTransform` for images, of `TrainingVideos` for videos.
        shuffle_seed: of the order of streams.

    Raises:
        ValueError: for an unknown name, options that the data set does not have or that are missing, or if something
            is missing that the data set depends on.
    """
    options = dict(options or {})
    function = DATASETS.get(dataset)
    # a path or owner/name rather than a misspelled name, which gets a hint below
    if function is None and model_class is not None and (Path(dataset).exists() or "/" in dataset):
        function = _BY_TASK.get(auto_class_of(model_class))
        options = {"path": dataset, **options}
    if function is None:
        hint = nearest(dataset, DATASETS)
        raise ValueError(f"There is no dataset {dataset!r}, nor a folder of that name. {hint}")
    parameters = inspect.signature(function).parameters.values()
    # keyword-only parameters are the user's options, the others come from the recipe's model
    known = {entry.name: entry for entry in parameters if entry.kind is entry.KEYWORD_ONLY}
    check_keys(options, known, f"data of {dataset!r}")
    missing = [name for name, entry in known.items() if entry.default is entry.empty and name not in options]
    if missing:
        needed = " ".join(f"data.{name}=..." for name in missing)
        raise ValueError(f"The dataset {dataset!r} needs to know where it is: give {needed}")
    given = {
        "config": config,
        "model_class": model_class,
        "processor": processor,
        "augmentation": augmentation,
        "shuffle_seed": shuffle_seed,
    }
    needs = [entry.name for entry in parameters if entry.kind is not entry.KEYWORD_ONLY]
    # a processor may be missing: data sets that need one say so themselves
    for name in {"config", "model_class"}.intersection(needs):
        if given[name] is None:
            raise ValueError(f"The dataset {dataset!r} depends on the model: give {name}.")
    return function(**{name: given[name] for name in needs}, **options)


def name_of_data(dataset: str, options: Mapping[str, Any] | None = None) -> str:
    """
    What to call the data that `load_data` reads with these arguments, for instance in a model card.

    That is the Hub repository; or the name of a file or folder, without where it is on this machine; or, where the
    location does not tell what is read, the data set's own name.
    """
    function = DATASETS.get(dataset)
    if function is None:
        place = dataset
    else:
        option = _READ_FROM.get(dataset, "path")
        default = getattr(inspect.signature(function).parameters.get(option), "default", None)
        place = (options or {}).get(option) or (default if isinstance(default, str) else dataset)
    path = Path(place)
    return path.resolve().stem if path.is_file() else path.resolve().name if path.is_dir() else str(place)


__all__ = ["DATASETS", "DataBundle", "generated", "load_data", "name_of_data"]
