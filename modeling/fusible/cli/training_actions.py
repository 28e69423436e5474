"""Work of the commands `fusible evaluate` and `fusible train --dry-run`."""

from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from ..hub.form_facts import form_facts
from ..hub.methods import METHODS
from ..hub.weight_files import is_fusible_model
from ..recipes.recipe import Recipe
from ..saved_models import load, load_processor
from ..training.evaluate import evaluate_model, task_of, write_results
from ..training.setup import load_data


def plan(path: Path, overrides: Iterable[str] = ()) -> dict[str, Any]:
    """
    What a recipe would train, on this machine: method, sizes of both forms, data and the settings that follow from it.

    Raises:
        ValueError: if the recipe is wrong, as `training.train.run` does; the data is not looked at.
    """
    recipe = Recipe.load(path, overrides)
    arguments = recipe.training_arguments()
    with torch.device("meta"):
        model = recipe.model_class(recipe.config)
    forms = {"training_form": False, **({"fused_form": True} if model.has_fused_form else {})}
    return {
        "recipe": str(path),
        "method": METHODS[recipe.config.model_type].name,
        "class": type(model).__name__,
        **{name: asdict(form_facts(model, fused)) for name, fused in forms.items()},
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


def evaluate_saved(
    source: str,
    recipe_path: Path,
    overrides: Iterable[str] = (),
    *,
    revision: str | None = None,
    fused: bool = False,
    batch_size: int = 32,
    limit: int | None = None,
    card: Path | None = None,
) -> dict[str, Any]:
    """
    Measures a saved model on the data of a recipe, see `training.evaluate.evaluate_model`.

    Args:
        source: folder or Hub repository of the model, which may be a plain one.
        recipe_path: says which data; the model's own configuration and processor say how it is prepared.
        overrides: of the recipe.
        revision: of the source repository.
        fused: measure the inference form of a training form.
        batch_size: of the evaluation and of the latency.
        limit: number of rows, the first ones.
        card: folder into whose model card the results are written.

    Raises:
        ValueError: if the model's classes are not the data's, it has no form to fuse to, or there is no card.
        OSError: if the model or the data are not there.
    """
    recipe, model, processor = (
        Recipe.load(recipe_path, overrides),
        load(source, revision, plain=True),
        load_processor(source, revision),
    )
    if fused and not is_fusible_model(model):
        raise ValueError(f"{source} is a plain {model.config.model_type!r} model, which has one form only.")
    data = load_data(recipe, processor, model.config)
    if data.classes is not None and len(data.classes) != model.config.num_labels:
        raise ValueError(f"{source} has {model.config.num_labels} classes, {recipe.dataset} has {len(data.classes)}.")
    form: Any = model.fuse() if fused else model
    results = evaluate_model(form, data, batch_size=batch_size, limit=limit)
    if card is not None:
        write_results(card, task_of(model), recipe.dataset, results)
    name = "plain" if not is_fusible_model(model) else "fused" if fused or model.config.fused else "training"
    return {"source": source, "form": name, "dataset": recipe.dataset, **results}


__all__ = ["evaluate_saved", "plan"]
