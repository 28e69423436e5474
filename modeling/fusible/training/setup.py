"""Processor, data, model and teacher that a recipe names."""

from collections.abc import Iterator
from typing import Any

import torch
import transformers
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    TrainingArguments,
)
from transformers.utils import IMAGE_PROCESSOR_NAME, logging

from .._auto import auto_class_of
from ..core.modeling import FusiblePreTrainedModel
from ..data import registry
from ..data.dataset import DataBundle
from ..hub.methods import METHODS
from ..recipes.recipe import Recipe
from ..saved_models import load_complete


logger = logging.get_logger(__name__)
CALIBRATION_BATCHES = 4
CALIBRATION_BATCH_SIZE = 32


def load_processor(recipe: Recipe) -> Any:
    """The image processor or tokenizer beside a recipe, for images of the size that the model takes, or `None`."""
    if (recipe.folder / IMAGE_PROCESSOR_NAME).is_file():
        # PIL in training and evaluation alike: torchvision's resizing gives slightly different pixels
        processor = AutoImageProcessor.from_pretrained(recipe.folder, backend="pil")
        size = getattr(getattr(recipe.config, "backbone_config", None), "image_size", None)
        old = (processor.crop_size if processor.do_center_crop else processor.size).get("height")
        if isinstance(size, int) and old not in (None, size):  # the configuration was changed
            square = {"height": size, "width": size}
            if processor.do_center_crop:
                # keeps the share of the picture that the crop shows, such as 224 of 256
                edge = round(processor.size["shortest_edge"] * size / old)
                processor.crop_size = square
                processor.size = {"shortest_edge": edge}
            else:
                processor.size = square
        return processor
    if (recipe.folder / "tokenizer_config.json").is_file():
        return AutoTokenizer.from_pretrained(recipe.folder)
    return None


def load_data(recipe: Recipe, processor: Any, config: PreTrainedConfig | None = None) -> DataBundle:
    """
    The data of a recipe.

    Args:
        recipe: names it.
        processor: image processor or tokenizer.
        config: of the model that reads the data, by default the recipe's.

    Raises:
        ValueError: as `fusible.data.load_data`.
    """
    return registry.load_data(
        recipe.dataset,
        recipe.data,
        config=config or recipe.config,
        model_class=recipe.model_class,
        processor=processor,
        augmentation=recipe.augment.changed(),
        shuffle_seed=int(recipe.training.get("seed", TrainingArguments.seed)),
    )


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
