"""
Trains what a recipe says, and ends with a fused, evaluated repository.

    accelerate launch -m fusible.training.train hub_configs/<repo>/recipe.yaml [key=value ...]
"""

import copy
import json
import os
import sys
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

import torch.distributed as dist
import yaml
from torch.utils.data import DataLoader, Sampler
from transformers import (
    PreTrainedModel,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, IntervalStrategy, set_seed
from transformers.utils import logging

from ..catalog import CARD_DATA_NAME, find_recipe
from ..commands import publish
from ..modeling_ewa import EWAPreTrainedModel
from .augmentation import MixupCutmix, RepeatedAugmentationSampler
from .callbacks import EWACallback
from .data import load_data
from .distillation import DistillationTrainer, soft_cross_entropy
from .ema import EMACallback
from .evaluate import model_index, task_of, trainer_metrics
from .optim import Lamb, optimizer_cls_and_kwargs
from .recipes import Recipe
from .rows import Data, EpochCallback, NumberedCopies, SeededCollator, SeededRows
from .starting import build_model, load_processor, load_teacher


logger = logging.get_logger(__name__)
COMPLETE = "complete.json"


class CheckpointMark(TrainerCallback):
    """
    Marks a checkpoint as whole when all processes have written their part.

    It must be the last callback, after those that write into checkpoints.
    """

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if dist.is_initialized():
            dist.barrier()
        if args.should_save:
            folder = Path(str(args.output_dir)) / f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}"
            (folder / COMPLETE).write_text(json.dumps({"processes": args.world_size}) + "\n", encoding="utf-8")


def last_checkpoint(folder: Path) -> Path | None:
    """The checkpoint of the most steps that was written to its end, if there is one."""
    found = [path.parent for path in folder.glob(f"{PREFIX_CHECKPOINT_DIR}-*/{COMPLETE}")]
    return max(found, key=lambda path: int(path.name.rpartition("-")[2]), default=None)


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


def make_trainer(recipe: Recipe, arguments: TrainingArguments, model: PreTrainedModel, data: Data) -> RecipeTrainer:
    """The trainer of a recipe, with the callbacks of the method."""
    augment, settings = recipe.augment, recipe.settings
    train, collate, sampler, options = data.train, data.collate, None, {}
    callbacks: list[TrainerCallback] = []
    if isinstance(model, EWAPreTrainedModel) and model.config.router is None:
        callbacks.append(EWACallback())
    if settings.ema_decay is not None:
        callbacks.append(EMACallback(settings.ema_decay, checkpoint_of(recipe)))
    if augment.mixup or augment.cutmix or augment.label_smoothing:
        mixing = {name: getattr(augment, name) for name in ("mixup", "cutmix", "mixup_switch", "label_smoothing")}
        collate = MixupCutmix(int(model.config.num_labels or 0), collate=collate, **mixing)
        options["compute_loss_func"] = soft_cross_entropy
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
    # FSDP wraps these classes, and stops at names of a backbone's other tower
    present = {type(module).__name__ for module in model.modules()}
    model._no_split_modules = sorted(present.intersection(model._no_split_modules or ()))
    if str(model._auto_class) == "AutoModelForTimeSeriesPrediction":
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


def run(path: str | os.PathLike, overrides: Iterable[str] = ()) -> dict[str, Any]:
    """
    Trains what a recipe says, in this process or in those of `accelerate launch`.

    `output_dir` gets the checkpoints, the training form with its processor and card, and `results.json`; its folder
    `fused` gets the same of the inference form.

    Args:
        path: of the recipe, or of its folder.
        overrides: `key=value`, such as `training.learning_rate=1e-4`.

    Returns:
        What `results.json` says: measurements of training, and of the evaluation of both forms.

    Raises:
        FileNotFoundError: if there is no such recipe.
        ValueError: if the recipe, the data or the machine do not go together; nothing is trained then.
    """
    recipe = Recipe.load(path, overrides)
    trainer, processor = prepare(recipe)
    outcome = trainer.train(resume_from_checkpoint=checkpoint_of(recipe))
    results: dict[str, Any] = {"train": outcome.metrics}
    if trainer.eval_dataset is not None:
        results["training_form"] = trainer.evaluate()
    trainer.save_model()
    _barrier()
    results = finish(recipe, trainer, processor, results)
    if trainer.args.should_save:
        (recipe.output / "results.json").write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    return results


def prepare(recipe: Recipe) -> tuple[RecipeTrainer, Any]:
    """The trainer of a recipe on this machine, and the processor that goes with the model."""
    arguments = recipe.training_arguments()
    logging.set_verbosity(arguments.get_process_log_level())
    set_seed(arguments.seed)
    processor = load_processor(recipe)
    with arguments.main_process_first(desc="data"):
        data = load_data(recipe, processor)
    model = build_model(recipe, data)
    return make_trainer(recipe, arguments, model, data), data.processor or processor


def checkpoint_of(recipe: Recipe) -> str | None:
    """
    The folder of the checkpoint that a recipe goes on from.

    Raises:
        ValueError: if there is no such folder.
    """
    if recipe.resume == "none":
        return None
    if recipe.resume != "auto":
        if not Path(recipe.resume).is_dir():
            raise ValueError(f"resume is {recipe.resume!r}; it must be 'auto', 'none' or the folder of a checkpoint.")
        return recipe.resume
    found = last_checkpoint(recipe.output)
    if found is not None:
        logger.warning_once(f"Going on from {found}; resume=none starts anew.")
    return None if found is None else str(found)


def finish(recipe: Recipe, trainer: RecipeTrainer, processor: Any, results: dict[str, Any]) -> dict[str, Any]:
    """
    Evaluates the inference form as well, saves both forms with processor and card, and pushes them if asked.

    Args:
        recipe: what was trained.
        trainer: whose model is in `output_dir` already.
        processor: what goes with the model.
        results: what was measured so far.

    Returns:
        The results with those of the inference form.
    """
    source = recipe.model_class.from_pretrained(recipe.output)
    fused = source.fuse() if source.has_fused_form else None
    # DeepSpeed prepares no model that is not trained
    if fused is not None and trainer.eval_dataset is not None and not trainer.is_deepspeed_enabled:
        judge = Trainer(
            copy.copy(fused),
            trainer.args,
            data_collator=trainer.eval_collator,
            eval_dataset=trainer.eval_dataset,
            **trainer_metrics(source),
        )
        results = results | {"fused_form": judge.evaluate()}
    if trainer.args.should_save:
        card_file = recipe.folder / CARD_DATA_NAME
        card = yaml.safe_load(card_file.read_text(encoding="utf-8"))["metadata"] if card_file.is_file() else {}
        dataset = (card.get("datasets") or [recipe.dataset])[0]
        repository = recipe.push_to_hub or recipe.output.resolve().name
        save = partial(publish, processor=processor, private=recipe.private or None)
        for model, name, folder, key in (
            (source, repository, recipe.output, "training_form"),
            (fused, f"{repository}-fused", recipe.output / "fused", "fused_form"),
        ):
            if model is not None:
                measured = {key.removeprefix("eval_"): value for key, value in results.get(key, {}).items()}
                card_data = card | model_index(name.rpartition("/")[2], task_of(source), dataset, measured)
                save(model, folder, source=source, repo_id=name if recipe.push_to_hub else None, card_data=card_data)
    _barrier()
    return results


def _barrier() -> None:
    if dist.is_initialized():
        dist.barrier()


def main() -> None:
    """The command `python -m fusible.training.train RECIPE [key=value ...]`."""
    if len(sys.argv) < 2 or sys.argv[1].startswith("-"):
        raise SystemExit(__doc__)
    try:
        run(find_recipe(sys.argv[1]), sys.argv[2:])
    except (OSError, ValueError, ImportError) as error:
        raise SystemExit(f"Error: {error}") from error
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


if __name__ == "__main__":
    main()


__all__ = ["RecipeTrainer", "build_model", "last_checkpoint", "load_processor", "make_trainer", "prepare", "run"]
