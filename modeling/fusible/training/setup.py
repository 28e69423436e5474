"""Processor, data, model and teacher that a recipe names."""

import copy
from collections.abc import Iterator
from functools import partial
from typing import Any, cast

import numpy as np
import torch
import transformers
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel, TrainingArguments
from transformers.image_processing_utils import BaseImageProcessor
from transformers.utils import logging

from .._auto import auto_class_of
from ..core.backbone_configuration import BackboneFusibleConfig
from ..core.dense import dense_config
from ..core.modeling import FusiblePreTrainedModel
from ..core.positions import resize_positions_
from ..data import registry
from ..data.dataset import DataBundle
from ..hub.methods import METHODS
from ..hub.processors import NEEDED, SavedProcessor
from ..recipes.recipe import Recipe
from ..saved_models import load_complete
from .evaluate import with_classes_of


logger = logging.get_logger(__name__)
CALIBRATION_BATCHES = 16
CALIBRATION_BATCH_SIZE = 32


def model_config(recipe: Recipe) -> PreTrainedConfig:
    """
    The configuration of a recipe's model, but for the labels; the backbone of a plain `base_model` is that one's.

    Raises:
        ValueError: if `model.backbone_config` changes what the backbone of `base_model` does not have.
    """
    config, base = recipe.config, recipe.base_model
    if not isinstance(config, BackboneFusibleConfig) or base is None or _has_forms(base):
        return config
    config = copy.deepcopy(config)
    config.backbone_config = dense_config(base, recipe.model.get("backbone_config"))
    return config


def _has_forms(base_model: str) -> bool:
    return AutoConfig.from_pretrained(base_model).model_type in METHODS


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
        config = model_config(recipe)
        # a plain model has no backbone inside
        _fit_size(processor, getattr(getattr(config, "backbone_config", config), "image_size", None))
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
    """Lets an image processor make images of another size: a number, or height and width."""
    height, width = size if isinstance(size, list | tuple) else (size, size)
    wanted = {"height": height, "width": width}
    old = processor.crop_size if processor.do_center_crop else processor.size
    if height is None or old.get("height") is None or dict(old) == wanted:
        return
    if processor.do_center_crop:
        # keeps the share of the picture that the crop shows, such as 224 of 256
        edge = round(processor.size["shortest_edge"] * max(height, width) / max(old["height"], old["width"]))
        processor.size = {"shortest_edge": edge}
        processor.crop_size = wanted
    else:
        processor.size = wanted


def load_data(recipe: Recipe, processor: Any, config: PreTrainedConfig | None = None) -> DataBundle:
    """
    The data of a recipe.

    Args:
        recipe: names it.
        processor: image processor, tokenizer or feature extractor.
        config: of a saved model that reads the data; by default `model_config`.

    Raises:
        ValueError: as `fusible.data.load_data`.
    """
    data = registry.load_data(
        recipe.dataset,
        recipe.data,
        config=config or model_config(recipe),
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
    if config is None and recipe.base_model is not None and data.classes is not None:
        base = AutoConfig.from_pretrained(recipe.base_model)
        # a head for the same classes is kept, and so are its numbers of them
        if set(base.id2label.values()) == set(data.classes):
            data = with_classes_of(base, data, recipe.base_model, recipe.dataset)
    return data


def build_model(recipe: Recipe, data: DataBundle) -> PreTrainedModel:
    """
    The training form, or a plain model: new, or from the weights of `base_model`, with the classes of the data.

    Raises:
        ValueError: if the model's class cannot start from these weights, or not with these options.
    """
    config, model_class = recipe.config, cast(Any, recipe.model_class)
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
    if _has_forms(recipe.base_model) or not issubclass(model_class, FusiblePreTrainedModel):
        loading: dict[str, Any] = {"ignore_mismatched_sizes": True, "output_loading_info": True}
        model, info = model_class.from_pretrained(recipe.base_model, config=config, **loading)
        resize_positions_(model, info["mismatched_keys"], partial(model_class.from_pretrained, recipe.base_model))
        return model
    # these follow from the dense model; the rest of config.json are options of the method
    given = ("architectures", "backbone_config", "model_type", "transformers_version")
    options = {name: value for name, value in recipe.raw_config.items() if name not in given}
    # what config.json leaves out has the configuration's defaults, where those of `from_dense` differ
    for field in config.own_fields():
        value = getattr(config, field.name)
        if value is not None and field.name not in (*given, *config.derived_fields, "fused") and field.init:
            options.setdefault(field.name, value)
    if changes := recipe.model.get("backbone_config"):
        options["backbone_config"] = changes
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
    """A model for the same task, in its inference form if it has two."""
    auto_class = getattr(transformers, auto_class_of(type(student)))
    teacher = load_complete(auto_class, name)
    # plain models have no `fused`; those that are fused already have True
    return teacher.fuse(share=True) if getattr(teacher.config, "fused", None) is False else teacher


__all__ = ["build_model", "load_data", "load_processor", "load_teacher"]
