"""
Training of a recipe, up to a fused, evaluated repository.

    accelerate launch -m fusible.training.train hub_configs/<repo>/recipe.yaml [key=value ...]
"""

import contextlib
import copy
import json
import os
import sys
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch.distributed as dist
import yaml
from torch import nn
from transformers import Trainer
from transformers.trainer_utils import set_seed
from transformers.utils import logging

from ..core.modeling import FusiblePreTrainedModel
from ..data.registry import name_of_data
from ..recipes.catalog import CARD_DATA_NAME, find_recipe
from ..recipes.recipe import Recipe
from ..saved_models import publish
from .ema import EMACallback
from .evaluate import model_index, task_of, trainer_metrics
from .resume import checkpoint_of, is_finished
from .setup import build_model, load_data, load_processor
from .trainer import RecipeTrainer, make_trainer


RESULTS_NAME = "results.json"


def run(path: str | os.PathLike, overrides: Iterable[str] = ()) -> dict[str, Any]:
    """
    Trains what a recipe says, in this process or in those of `accelerate launch`.

    `output_dir` gets the checkpoints, the training form with its processor and card, and `results.json`; its folder
    `fused` gets the same of the inference form. With `training.ema_decay`, both have the average of the weights. A
    training that is finished is evaluated and saved again. A plain model has one form, and no card of ours.

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
    checkpoint = checkpoint_of(recipe)
    outcome = trainer.train(resume_from_checkpoint=checkpoint)
    results: dict[str, Any] = {"train": outcome.metrics}
    if is_finished(checkpoint, outcome.global_step):
        # nothing was measured now; what was measured when it was trained stays
        file = recipe.output / RESULTS_NAME
        results = {"train": json.loads(file.read_text(encoding="utf-8"))["train"]} if file.is_file() else {}
    average = next((c for c in trainer.callback_handler.callbacks if isinstance(c, EMACallback)), None)
    # what is evaluated is what is saved
    with contextlib.nullcontext() if average is None else average.averaged(cast(nn.Module, trainer.model)):
        if trainer.eval_dataset is not None:
            results["training_form"] = trainer.evaluate()
        trainer.save_model()
    # the main process saves; finish loads the folder in all of them
    _barrier()
    results = finish(recipe, trainer, processor, results)
    if trainer.args.should_save:
        (recipe.output / RESULTS_NAME).write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    return results


def prepare(recipe: Recipe) -> tuple[RecipeTrainer, Any]:
    """The trainer of a recipe on this machine, and the processor that goes with the model."""
    arguments = recipe.training_arguments()
    logging.set_verbosity(arguments.get_process_log_level())
    # before the model is built: new weights and random choices of data follow from the seed
    set_seed(arguments.seed)
    processor = load_processor(recipe)
    # one process downloads or generates, the others then find the result
    with arguments.main_process_first(desc="data"):
        data = load_data(recipe, processor)
    model = build_model(recipe, data)
    processor = data.processor or processor
    return make_trainer(recipe, arguments, model, data, processor), processor


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
    # from the folder and not from the trainer, whose model may be wrapped, sharded or in the state of training
    source: Any = recipe.model_class.from_pretrained(recipe.output)
    is_fusible = isinstance(source, FusiblePreTrainedModel)
    fused = source.fuse(share=True) if is_fusible and source.has_fused_form else None
    # DeepSpeed prepares no model that is not trained
    if fused is not None and trainer.eval_dataset is not None and not trainer.is_deepspeed_enabled:
        eval_trainer = Trainer(
            # mixed precision replaces the model's `forward`; the copy shares weights and keeps `fused` fit to be saved
            copy.copy(fused),
            trainer.args,
            data_collator=trainer.eval_collator,
            eval_dataset=trainer.eval_dataset,
            **trainer_metrics(source),
        )
        results = results | {"fused_form": eval_trainer.evaluate()}
    if trainer.args.should_save:
        card_file = recipe.folder / CARD_DATA_NAME
        card = yaml.safe_load(card_file.read_text(encoding="utf-8"))["metadata"] if card_file.is_file() else {}
        dataset = name_of_data(recipe.dataset, recipe.data)
        # what was read and started from, which overrides may have changed; the Hub knows no local folder
        base = recipe.base_model
        card |= {"datasets": [dataset], "base_model": None if base is None or Path(base).exists() else base}
        repository = recipe.push_to_hub or recipe.output.resolve().name
        # None leaves the visibility to the Hub: False would make it public where an organization's default is private
        save = partial(publish, processor=processor, private=recipe.private or None)
        for model, name, folder, key in (
            (source, repository, recipe.output, "training_form"),
            (fused, f"{repository}-fused", recipe.output / "fused", "fused_form"),
        ):
            if model is not None:
                measured = {key.removeprefix("eval_"): value for key, value in results.get(key, {}).items()}
                card_data = card | model_index(name.rpartition("/")[2], task_of(source), dataset, measured)
                save(
                    model,
                    folder,
                    source=source if is_fusible else None,
                    repo_id=name if recipe.push_to_hub else None,
                    card_data=card_data,
                )
    _barrier()
    return results


def _barrier() -> None:
    if not dist.is_initialized():
        return
    if dist.get_backend() == "gloo":
        # its other barrier ends in a thread that still needs the GIL; if DDP is freed next, which holds the GIL and
        # waits for this thread, the process hangs
        dist.monitored_barrier()
    else:
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
        # else NCCL warns of leaked resources, also after an error
        if dist.is_initialized():
            dist.destroy_process_group()


if __name__ == "__main__":
    main()


__all__ = ["finish", "main", "prepare", "run"]
