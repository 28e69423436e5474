"""The `Trainer` of a recipe: what the stock one has no arguments for, and the callbacks of the method."""

from functools import partial
from typing import Any

import torch
from torch.utils.data import DataLoader, Sampler
from transformers import PreTrainedModel, Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_utils import IntervalStrategy

from .._auto import auto_class_of
from ..data.dataset import Data, EpochCallback, NumberedCopies, SeededCollator, SeededRows
from ..data.images.augmentation import MixupCutmix, RepeatedAugmentationSampler
from ..models.ewa.modeling_ewa import EWAPreTrainedModel
from ..recipes.recipe import Recipe
from .callbacks import EWACallback
from .distillation import DistillationTrainer, soft_cross_entropy
from .ema import EMACallback
from .evaluate import trainer_metrics
from .optim import Lamb, optimizer_cls_and_kwargs
from .resume import CheckpointMark, checkpoint_of
from .setup import load_teacher


class RecipeTrainer(Trainer):
    """
    `Trainer` with what it has no arguments for: a sampler, and augmentation of batches that evaluation does without.

    Args:
        sampler: of the training rows; by default `Trainer`'s own.
        eval_collator: makes the batches of evaluation.
        **kwargs: of `Trainer`.
    """

    def __init__(self, *, sampler: Sampler | None, eval_collator: Any, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.sampler, self.eval_collator = sampler, eval_collator

    def _get_train_sampler(self, *args: Any, **kwargs: Any) -> Sampler | None:
        return self.sampler or super()._get_train_sampler(*args, **kwargs)

    def get_eval_dataloader(self, *args: Any, **kwargs: Any) -> DataLoader:
        training_collator, self.data_collator = self.data_collator, self.eval_collator
        try:
            return super().get_eval_dataloader(*args, **kwargs)
        finally:
            self.data_collator = training_collator


class DistillingTrainer(RecipeTrainer, DistillationTrainer):
    """A `RecipeTrainer` with a teacher."""


def mixed_loss(
    model: PreTrainedModel, outputs: Any, labels: torch.Tensor, num_items_in_batch: torch.Tensor | int | None = None
) -> torch.Tensor:
    """`soft_cross_entropy` and, in training, what a model has in its own loss beside the labels'."""
    loss = soft_cross_entropy(outputs, labels, num_items_in_batch)
    if isinstance(model, EWAPreTrainedModel) and model.config.router is not None and model.training:
        loss = loss + model.router_loss(labels, num_items_in_batch)
    return loss


def make_trainer(recipe: Recipe, arguments: TrainingArguments, model: PreTrainedModel, data: Data) -> RecipeTrainer:
    """The trainer of a recipe, with the callbacks of the method."""
    augment, settings = recipe.augment, recipe.settings
    train, collate, sampler = data.train, data.collate, None
    options: dict[str, Any] = {}
    callbacks: list[TrainerCallback] = []
    if isinstance(model, EWAPreTrainedModel):
        if model.config.router is None:
            callbacks.append(EWACallback())
        elif arguments.label_smoothing_factor:
            raise ValueError(
                "training.label_smoothing_factor would leave out the router's loss; give augmentation.label_smoothing."
            )
    if settings.ema_decay is not None:
        callbacks.append(EMACallback(settings.ema_decay, checkpoint_of(recipe)))
    if augment.mixup or augment.cutmix or augment.label_smoothing:
        mixing = {name: getattr(augment, name) for name in ("mixup", "cutmix", "mixup_switch", "label_smoothing")}
        collate = MixupCutmix(int(model.config.num_labels or 0), collate=collate, **mixing)
        options["compute_loss_func"] = partial(mixed_loss, model)
    if hasattr(train, "__len__"):
        train = SeededRows(train, arguments.seed)
        callbacks.append(EpochCallback(train))
        if augment.repeated_augmentation > 1:
            repeated = RepeatedAugmentationSampler(
                len(train),
                augment.repeated_augmentation,
                batch_size=arguments.per_device_train_batch_size,
                num_processes=arguments.world_size,
                seed=arguments.seed,
            )
            sampler = NumberedCopies(repeated, len(train))
    elif arguments.max_steps <= 0:
        if data.num_examples is None:
            raise ValueError("The data is a stream of unknown length: give training.max_steps or data.num_examples.")
        batch = arguments.train_batch_size * arguments.gradient_accumulation_steps * arguments.world_size
        arguments.max_steps = int(arguments.num_train_epochs * data.num_examples / batch)
    if data.eval is None and "eval_strategy" not in recipe.training:
        arguments.eval_strategy = IntervalStrategy.NO
    groups = {
        name: getattr(settings, name)
        for name in ("backbone_learning_rate_factor", "layer_decay", "ssm_learning_rate", "ssm_parameters")
    }
    optimizer_class = Lamb if settings.optimizer == "lamb" else None
    trainer_class: Any = RecipeTrainer
    if recipe.distill.teacher is not None:
        trainer_class, distill = DistillingTrainer, recipe.distill
        options |= {name: getattr(distill, name) for name in ("alpha", "kind", "temperature")}
        options["teacher"] = load_teacher(str(distill.teacher), model)
    if auto_class_of(type(model)) == "AutoModelForTimeSeriesPrediction":
        arguments.label_names = ["future_values"]
    return trainer_class(
        model=model,
        args=arguments,
        data_collator=SeededCollator(collate),
        eval_collator=data.collate,
        sampler=sampler,
        train_dataset=train,
        eval_dataset=data.eval,
        callbacks=[*callbacks, CheckpointMark()],
        optimizer_cls_and_kwargs=optimizer_cls_and_kwargs(arguments, optimizer_class, **groups),
        **options,
        **trainer_metrics(model),
    )


__all__ = ["DistillingTrainer", "RecipeTrainer", "make_trainer", "mixed_loss"]
