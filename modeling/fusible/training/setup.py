"""Processor, data, model and teacher that a recipe names."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
import transformers
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel, TrainingArguments
from transformers.image_processing_utils import BaseImageProcessor
from transformers.utils import logging

from .._auto import auto_class_of
from ..core.modeling import FusiblePreTrainedModel
from ..data import registry
from ..data.dataset import DataBundle
from ..hub.methods import METHODS
from ..hub.processors import NEEDED, SavedProcessor
from ..recipes.recipe import Recipe
from ..saved_models import load_complete


logger = logging.get_logger(__name__)
CALIBRATION_BATCHES = 4
CALIBRATION_BATCH_SIZE = 32


def load_processor(recipe: Recipe) -> Any:
    """
    The image processor, tokenizer or feature extractor that the model of a recipe takes, or `None`.

    That of `base_model` goes before the one beside the recipe, as the weights were trained with it. If the two are of
    different classes, such as a video model's and an image model's, only the normalization is taken from it. Images
    get the size that the configuration says.

    Raises:
        OSError: if `base_model` is not there.
        ValueError: if a processor's files cannot be read.
    """
    main_input_name = recipe.model_class.main_input_name
    processor = SavedProcessor(recipe.folder).load(main_input_name)
    if recipe.base_model is not None:
        base = SavedProcessor(recipe.base_model).load(main_input_name)
        if processor is None or type(base) is type(processor):
            processor = base or processor
        elif base is not None:
            _normalize_alike(processor, base, recipe.base_model)
    if isinstance(processor, BaseImageProcessor):
        _fit_size(processor, getattr(getattr(recipe.config, "backbone_config", None), "image_size", None))
    return processor


def _normalize_alike(processor: Any, base: Any, name: str) -> None:
    """Gives an image processor the mean and deviation of another one."""
    for statistic in ("image_mean", "image_std"):
        old, new = (getattr(values, statistic, None) for values in (processor, base))
        # the same numbers rounded in another way are no difference
        if old is not None and new is not None and not np.allclose(old, new, atol=1e-2):
            logger.warning(f"{name} was trained with the {statistic} {new}, which takes the place of {old}.")
            setattr(processor, statistic, new)


def _fit_size(processor: Any, size: Any) -> None:
    """Lets an image processor make images of another size, if that is one number."""
    old = (processor.crop_size if processor.do_center_crop else processor.size).get("height")
    if not isinstance(size, int) or old in (None, size):
        return
    square = {"height": size, "width": size}
    if processor.do_center_crop:
        # keeps the share of the picture that the crop shows, such as 224 of 256
        edge = round(processor.size["shortest_edge"] * size / old)
        processor.crop_size = square
        processor.size = {"shortest_edge": edge}
    else:
        processor.size = square


def load_data(recipe: Recipe, processor: Any, config: PreTrainedConfig | None = None) -> DataBundle:
    """
    The data of a recipe.

    Args:
        recipe: names it.
        processor: image processor, tokenizer or feature extractor.
        config: of a saved model that reads the data; by default the recipe's.

    Raises:
        ValueError: as `fusible.data.load_data`.
    """
    data = registry.load_data(
        recipe.dataset,
        recipe.data,
        config=config or recipe.config,
        model_class=recipe.model_class,
        processor=processor,
        augmentation=recipe.augment.changed(),
        shuffle_seed=int(recipe.training.get("seed", TrainingArguments.seed)),
    )
    if data.is_fitted and config is None and recipe.base_model is not None:
        logger.warning(
            f"{recipe.base_model} has no {NEEDED[recipe.model_class.main_input_name][0]}: one was made of the data; "
            "the weights fit to it only if they were trained on the same data."
        )
    return data


def build_model(recipe: Recipe, data: DataBundle) -> FusiblePreTrainedModel:
    """
    The training form: new, or from the weights of `base_model`, with the classes of the data.

    Raises:
        ValueError: if the model's class cannot start from these weights.
    """
    config, model_class = recipe.config, recipe.model_class
    labels: dict[str, Any] = {}
    if data.classes is not None:
        if len(data.classes) != config.num_labels:
            logger.warning(f"The data has {len(data.classes)} classes, so the model gets as many.")
        labels = {"id2label": dict(enumerate(data.classes)), "label2id": {n: i for i, n in enumerate(data.classes)}}
        config.id2label = labels["id2label"]
        config.label2id = labels["label2id"]
    if recipe.base_model is None:
        return model_class(config)
    # a training form goes on as it is, but for a head of other classes; a dense model is converted below
    if AutoConfig.from_pretrained(recipe.base_model).model_type in METHODS:
        return model_class.from_pretrained(recipe.base_model, config=config, ignore_mismatched_sizes=True)
    # these follow from the dense model; the rest of config.json are options of the method
    given = ("architectures", "backbone_config", "model_type", "transformers_version")
    options = {name: value for name, value in recipe.raw_config.items() if name not in given}
    if labels:
        # id2label gives the number as well, which may differ from the configuration's
        options.pop("num_labels", None)
        options |= labels
    if model_class.starts_from_data:
        options["calibration"] = _calibration(data)
    return model_class.from_dense(recipe.base_model, **options)


def _calibration(data: DataBundle) -> Iterator[dict[str, Any]]:
    """Some batches of the training data, in random order."""
    # random, as data sets are often sorted by class
    numbers = torch.randperm(len(data.train))[: CALIBRATION_BATCHES * CALIBRATION_BATCH_SIZE]
    for batch in numbers.split(CALIBRATION_BATCH_SIZE):
        yield data.collate([data.train[number] for number in batch.tolist()])


def load_teacher(name: str, student: PreTrainedModel) -> PreTrainedModel:
    """A classifier for the same task, in its inference form if it has two."""
    auto_class = getattr(transformers, auto_class_of(type(student)))
    teacher = load_complete(auto_class, name)
    # plain models have no `fused`; those that are fused already have True
    return teacher.fuse(share=True) if getattr(teacher.config, "fused", None) is False else teacher


__all__ = ["build_model", "load_data", "load_processor", "load_teacher"]
