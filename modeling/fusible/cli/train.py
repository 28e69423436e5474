"""The command `fusible train`."""

import contextlib
import sys
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ._common import DryRun, Json, Overrides, RecipeName, show


def train(recipe: RecipeName, overrides: Overrides = None, dry_run: DryRun = False, json: Json = False) -> None:
    """
    Train what a recipe says, on this machine. It ends with both forms, evaluated.

    An interrupted training goes on from its last checkpoint when it is started again. On several devices, say
    accelerate launch -m fusible.training.train RECIPE [KEY=VALUE...]

    Examples:

        fusible train repavit-vit-tiny-0.5 dataset=digits training.num_train_epochs=2

        fusible train my-recipe.yaml output_dir=out/mine --dry-run
    """
    from ..recipes.catalog import find_recipe

    path = find_recipe(recipe)
    if dry_run:
        show(plan(path, overrides or []), json)
        return
    # after the dry run, which needs neither data sets nor Trainer
    from ..training.train import run

    with contextlib.redirect_stdout(sys.stderr):  # where Trainer's logs belong
        results = run(path, overrides or [])
    show(results, json)


def plan(path: Path, overrides: Iterable[str] = ()) -> dict[str, Any]:
    """
    What a recipe would train, on this machine: method, sizes of both forms, data and the settings that follow from it.

    Raises:
        ValueError: if the recipe is wrong, as `training.train.run` does; the data is not looked at.
    """
    import torch

    from ..core.modeling import FusiblePreTrainedModel
    from ..hub.form_facts import count_parameters, form_facts
    from ..recipes.catalog import method_name
    from ..recipes.recipe import Recipe

    recipe = Recipe.load(path, overrides)
    arguments = recipe.training_arguments()
    # sizes without the memory of weights
    with torch.device("meta"):
        model = recipe.model_class(recipe.config)
    if isinstance(model, FusiblePreTrainedModel):
        forms = {"training_form": False, **({"fused_form": True} if model.has_fused_form else {})}
        sizes: dict[str, Any] = {name: asdict(form_facts(model, fused)) for name, fused in forms.items()}
    else:
        sizes = {"parameters": count_parameters(model)}
    return {
        "recipe": str(path),
        "method": method_name(recipe.config.model_type),
        "class": type(model).__name__,
        **sizes,
        "dataset": recipe.dataset,
        "output_dir": str(recipe.output),
        "device": str(arguments.device),
        "processes": arguments.world_size,
        "optimizer": recipe.settings.optimizer,
        "learning_rate": arguments.learning_rate,
        "per_device_train_batch_size": arguments.per_device_train_batch_size,
        "gradient_accumulation_steps": arguments.gradient_accumulation_steps,
        "num_train_epochs": arguments.num_train_epochs,
        "max_steps": arguments.max_steps,
    }


__all__ = ["train"]
