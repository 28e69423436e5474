"""The `Trainer` of a recipe: what the stock one has no arguments for, and what the model's class asks for."""

import contextlib
from collections.abc import Iterator
from dataclasses import fields
from functools import partial
from typing import Any

import torch
from torch.utils.data import DataLoader, Sampler
from transformers import PreTrainedModel, Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_utils import IntervalStrategy
from transformers.utils import logging

from ..core.modeling import FusiblePreTrainedModel
from ..data.dataset import DataBundle
from ..data.images.augmentation import MixupCutmix, RepeatedAugmentationSampler
from ..data.reproducible import EpochCallback, RepeatSampler, SeededCollator, SeededDataset
from ..recipes.recipe import Recipe
from .distillation import DistillationTrainer, soft_cross_entropy
from .ema import EMACallback
from .evaluate import SEGMENTATION, task_of, trainer_metrics
from .optim import Lamb, optimizer_cls_and_kwargs
from .resume import CheckpointMark, checkpoint_of
from .setup import load_teacher


logger = logging.get_logger(__name__)


class RecipeTrainer(Trainer):
    """
    `Trainer` with what it has no arguments for: a sampler, and augmentation of batches that evaluation does without.

    A training that has done all of its steps does no more of them when it is started again.

    Args:
        sampler: of the training data; by default `Trainer`'s own.
        eval_collator: makes the batches of evaluation and of predictions.
        **kwargs: of `Trainer`.
    """

    def __init__(self, *, sampler: Sampler | None, eval_collator: Any, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.sampler = sampler
        self.eval_collator = eval_collator

    def _get_train_sampler(self, *args: Any, **kwargs: Any) -> Sampler | None:
        return self.sampler or super()._get_train_sampler(*args, **kwargs)

    def get_eval_dataloader(self, *args: Any, **kwargs: Any) -> DataLoader:
        with self._collating_for_evaluation():
            return super().get_eval_dataloader(*args, **kwargs)

    def get_test_dataloader(self, *args: Any, **kwargs: Any) -> DataLoader:
        with self._collating_for_evaluation():
            return super().get_test_dataloader(*args, **kwargs)

    @contextlib.contextmanager
    def _collating_for_evaluation(self) -> Iterator[None]:
        # Trainer has one collator for all; a loader keeps the one that it is built with
        training_collator, self.data_collator = self.data_collator, self.eval_collator
        try:
            yield
        finally:
            self.data_collator = training_collator

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        # Trainer asks only after a step whether it was the last
        if self.state.global_step >= self.state.max_steps:
            logger.warning(f"All {self.state.max_steps} steps are done already; none is added.")
            self.control.should_training_stop = True
            return
        super()._run_epoch(*args, **kwargs)


class DistillingTrainer(RecipeTrainer, DistillationTrainer):
    """A `RecipeTrainer` with a teacher."""


def mixed_loss(
    model: PreTrainedModel,
    outputs: Any,
    labels: torch.Tensor,
    num_items_in_batch: torch.Tensor | int | None = None,
) -> torch.Tensor:
    """`soft_cross_entropy` and, in training, what a model has in its own loss beside the labels'."""
    loss = soft_cross_entropy(outputs, labels, num_items_in_batch)
    # a plain model has none
    if isinstance(model, FusiblePreTrainedModel) and model.auxiliary_loss is not None and model.training:
        loss = loss + model.auxiliary_loss(labels, num_items_in_batch)
    return loss


def make_trainer(
    recipe: Recipe,
    arguments: TrainingArguments,
    model: PreTrainedModel,
    data: DataBundle,
    processor: Any = None,
) -> RecipeTrainer:
    """
    The trainer of a recipe, with the callbacks of the model's class.

    Args:
        recipe: what to do.
        arguments: of this machine; `max_steps`, `eval_strategy` and `label_names` are set where the recipe leaves
            them open, and `save_total_limit` goes to `CheckpointMark`.
        model: the training form, or a plain model.
        data: to train with.
        processor: what makes the model's inputs, to be saved with each checkpoint.

    Raises:
        ValueError: if recipe, model and data do not go together.
    """
    # a plain model says nothing about its training
    own = model if isinstance(model, FusiblePreTrainedModel) else None
    if arguments.label_smoothing_factor and own is not None and own.auxiliary_loss is not None:
        raise ValueError(
            "training.label_smoothing_factor would leave out the loss that the model adds to the labels'; give "
            "augmentation.label_smoothing."
        )
    if data.eval is None and "eval_strategy" not in recipe.training:
        # the default of recipes evaluates each epoch, which Trainer refuses without data
        arguments.eval_strategy = IntervalStrategy.NO
    if own is not None and own.label_names is not None:
        arguments.label_names = list(own.label_names)
    settings = recipe.settings
    dataset, sampler, callbacks = _training_data(recipe, arguments, data)
    # before EMA: it averages the weights as the method's callbacks leave them
    callbacks = [*(own.training_callbacks() if own is not None else ()), *callbacks]
    if settings.ema_decay is not None:
        callbacks.append(EMACallback(settings.ema_decay, checkpoint_of(recipe)))
    mark, arguments.save_total_limit = CheckpointMark(arguments.save_total_limit), None
    collate, options = _batch_augmentation(recipe, model, data)
    trainer_class: type[RecipeTrainer] = RecipeTrainer
    if recipe.teacher is not None:
        trainer_class = DistillingTrainer
        options |= {entry.name: getattr(recipe.distill, entry.name) for entry in fields(recipe.distill)}
        options["teacher"] = load_teacher(recipe.teacher, model)
    groups = {
        name: getattr(settings, name)
        for name in ("backbone_learning_rate_factor", "layer_decay", "ssm_learning_rate", "ssm_parameters")
    }
    # None for the one that arguments.optim names
    optimizer_class = Lamb if settings.optimizer == "lamb" else None
    return trainer_class(
        model=model,
        args=arguments,
        data_collator=SeededCollator(collate),
        eval_collator=data.collate,
        sampler=sampler,
        processing_class=processor,
        train_dataset=dataset,
        eval_dataset=data.eval,
        callbacks=[*callbacks, mark],
        optimizer_cls_and_kwargs=optimizer_cls_and_kwargs(arguments, optimizer_class, **groups),
        **options,
        **trainer_metrics(model),
    )


def _training_data(
    recipe: Recipe, arguments: TrainingArguments, data: DataBundle
) -> tuple[Any, Sampler | None, list[TrainerCallback]]:
    """The data set with random changes that can be repeated, its sampler if it needs one, and its callbacks."""
    is_stream = not hasattr(data.train, "__len__")
    rows = data.num_examples if is_stream else len(data.train)
    smallest = arguments.train_batch_size * arguments.world_size
    if arguments.dataloader_drop_last and rows is not None and rows < smallest:
        raise ValueError(
            f"The data has {rows} rows to train on, which make no batch of {smallest}, and smaller ones are left out: "
            "give a smaller training.global_batch_size or per_device_train_batch_size, or "
            "training.dataloader_drop_last=false."
        )
    if is_stream:
        if arguments.max_steps <= 0:
            if data.num_examples is None:
                raise ValueError(
                    "The data is a stream of unknown length: give training.max_steps or data.num_examples."
                )
            # a stream has no length, from which Trainer would compute the steps of an epoch
            batch = arguments.train_batch_size * arguments.gradient_accumulation_steps * arguments.world_size
            arguments.max_steps = max(1, int(arguments.num_train_epochs * data.num_examples / batch))
        return data.train, None, []
    dataset = SeededDataset(data.train, arguments.seed)
    sampler = None
    if recipe.augment.repeated_augmentation > 1:
        repeated = RepeatedAugmentationSampler(
            len(dataset),
            recipe.augment.repeated_augmentation,
            batch_size=arguments.per_device_train_batch_size,
            num_processes=arguments.world_size,
            seed=arguments.seed,
        )
        sampler = RepeatSampler(repeated, len(dataset))
    return dataset, sampler, [EpochCallback(dataset)]


def _batch_augmentation(recipe: Recipe, model: PreTrainedModel, data: DataBundle) -> tuple[Any, dict[str, Any]]:
    """The collator of training batches, and the argument of `Trainer` for the loss of the labels that it makes."""
    augment = recipe.augment
    for name in ("mixup", "cutmix", "label_smoothing"):
        if getattr(augment, name) and task_of(model) == SEGMENTATION:
            raise ValueError(f"augmentation.{name} is not for segmentation, which has horizontal_flip only.")
    # the model's own loss is kept where labels stay classes
    if not (augment.mixup or augment.cutmix or augment.label_smoothing):
        return data.collate, {}
    if recipe.training.get("label_smoothing_factor"):
        raise ValueError(
            "training.label_smoothing_factor has no effect together with mixup, cutmix or label_smoothing of "
            "augmentation, whose loss is another one; give augmentation.label_smoothing."
        )
    collate = MixupCutmix(
        int(model.config.num_labels or 0),
        mixup=augment.mixup,
        cutmix=augment.cutmix,
        mixup_switch=augment.mixup_switch,
        label_smoothing=augment.label_smoothing,
        collate=data.collate,
    )
    # the model itself, as Trainer gives outputs and labels only, and an auxiliary loss is in neither
    return collate, {"compute_loss_func": partial(mixed_loss, model)}


__all__ = ["DistillingTrainer", "RecipeTrainer", "make_trainer", "mixed_loss"]
