"""Where a training starts: processor and weights that a recipe names."""

import itertools
from typing import Any

import torch
import transformers
from transformers import AutoConfig, AutoImageProcessor, AutoTokenizer, PreTrainedModel
from transformers.utils import IMAGE_PROCESSOR_NAME, logging

from .._auto import auto_class_of
from ..data.dataset import Data
from ..hub.methods import METHODS
from ..models.ewa.modeling_ewa import EWAPreTrainedModel
from ..models.repavit.modeling_repavit import RePaViTPreTrainedModel
from ..models.zeroi2v.modeling_zeroi2v import ZeroI2VPreTrainedModel
from ..recipes.recipe import Recipe


logger = logging.get_logger(__name__)
CALIBRATION_BATCHES = 4


def load_processor(recipe: Recipe) -> Any:
    """The image processor or tokenizer beside a recipe, for images of the size that the model takes, or `None`."""
    if (recipe.folder / IMAGE_PROCESSOR_NAME).is_file():
        processor = AutoImageProcessor.from_pretrained(recipe.folder, backend="pil")
        size = getattr(getattr(recipe.config, "backbone_config", None), "image_size", None)
        old = (processor.crop_size if processor.do_center_crop else processor.size).get("height")
        if isinstance(size, int) and old not in (None, size):  # the configuration was changed
            square = {"height": size, "width": size}
            if processor.do_center_crop:
                edge = round(processor.size["shortest_edge"] * size / old)
                processor.crop_size, processor.size = square, {"shortest_edge": edge}
            else:
                processor.size = square
        return processor
    if (recipe.folder / "tokenizer_config.json").is_file():
        return AutoTokenizer.from_pretrained(recipe.folder)
    return None


def build_model(recipe: Recipe, data: Data) -> PreTrainedModel:
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
        config.id2label, config.label2id = labels["id2label"], labels["label2id"]
    if recipe.base_model is None:
        return model_class(config)
    options = {
        k: v for k, v in recipe.raw_config.items() if k not in ("architectures", "backbone_config", "model_type")
    }
    if labels:
        options.pop("num_labels", None)
        options |= labels
    if AutoConfig.from_pretrained(recipe.base_model).model_type in METHODS:
        return model_class.from_pretrained(recipe.base_model, config=config, ignore_mismatched_sizes=True)
    if issubclass(model_class, ZeroI2VPreTrainedModel):
        return model_class.from_image_model(recipe.base_model, **options)
    if issubclass(model_class, EWAPreTrainedModel):
        return model_class.from_dense(recipe.base_model, ignore_mismatched_sizes=True, **options)
    if issubclass(model_class, RePaViTPreTrainedModel):
        rows = (data.train[number] for number in torch.randperm(len(data.train)).tolist())
        size = min(32, len(data.train))
        batches = (data.collate([next(rows) for _ in range(size)]) for _ in range(len(data.train) // size))
        calibration = itertools.islice(batches, CALIBRATION_BATCHES)
        return model_class.from_dense(recipe.base_model, calibration=calibration, **options)
    raise ValueError(f"{model_class.__name__} starts from weights of its own kind only, not {recipe.base_model}.")


def load_teacher(name: str, student: PreTrainedModel) -> PreTrainedModel:
    """A classifier for the same task, in its inference form if it has two."""
    auto_class = getattr(transformers, auto_class_of(type(student)))
    teacher = auto_class.from_pretrained(name)
    return teacher.fuse() if getattr(teacher.config, "fused", None) is False else teacher


__all__ = ["build_model", "load_processor", "load_teacher"]
