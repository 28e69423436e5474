"""The command `fusible evaluate`."""

import contextlib
import math
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

import typer

from ._common import Json, Overrides, RecipeName, Revision, Source, show


def evaluate(
    source: Source,
    recipe: RecipeName,
    overrides: Overrides = None,
    revision: Revision = None,
    fused: Annotated[bool, typer.Option("--fused", help="Fuse a training form first.")] = False,
    batch_size: Annotated[int, typer.Option(min=1, help="Also of the latency.")] = 32,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first rows.")] = None,
    save: Annotated[bool, typer.Option("--save", help="Write the results into the folder's model card.")] = False,
    json: Json = False,
) -> None:
    """
    Measure a saved model on the data that a recipe evaluates on; videos in all their views.

    Examples:

        fusible evaluate out/digits repavit-vit-tiny-0.5 dataset=digits

        fusible evaluate user/my-model repavit-vit-base-0.75 dataset=imagenet-1k --fused --json
    """
    from ..recipes.catalog import find_recipe

    with contextlib.redirect_stdout(sys.stderr):  # where logs belong
        results = evaluate_saved(
            source,
            find_recipe(recipe),
            overrides or [],
            revision=revision,
            fused=fused,
            batch_size=batch_size,
            limit=limit,
            card=Path(source) if save else None,
        )
    show(results, json)


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
        ValueError: if the data has classes that the model does not have, it has no form to fuse to, its loss is not a
            number, there is no card, or the results are for a card but the model lacks the tokenizer or the statistics
            that it was trained with.
        OSError: if the model or the data are not there.
    """
    from transformers.utils import logging

    from ..data.registry import name_of_data
    from ..hub.processors import NEEDED
    from ..hub.weight_files import is_fusible_model
    from ..recipes.recipe import Recipe
    from ..saved_models import load, load_processor
    from ..training.evaluate import evaluate_model, task_of, with_classes_of, write_results
    from ..training.setup import load_data

    recipe = Recipe.load(recipe_path, overrides)
    model = load(source, revision, plain=True)
    processor = load_processor(source, revision, model.main_input_name)
    if fused and not is_fusible_model(model):
        raise ValueError(f"{source} is a plain {model.config.model_type!r} model, which has one form only.")
    # the model's configuration and not the recipe's: rates, frames and sizes are those it was trained with
    data = load_data(recipe, processor, model.config)
    dataset = name_of_data(recipe.dataset, recipe.data)
    # by name, as the same classes in another order would give an accuracy without meaning
    data = with_classes_of(model.config, data, source, dataset)
    if data.is_fitted:
        message = (
            f"{source} has no {NEEDED[model.main_input_name][0]}, so one was made of the data. The results are right "
            "only if that is the data that the model was trained on."
        )
        if card is not None:
            raise ValueError(f"{message} So they are not for a card; save it beside the model, or leave out --save.")
        logging.get_logger(__name__).warning(message)
    form: Any = model.fuse(share=True) if fused else model
    results = evaluate_model(form, data, batch_size=batch_size, limit=limit)
    loss = results.get("loss", 0.0)
    # metrics that only compare outputs would look like results
    if not math.isfinite(loss):
        raise ValueError(f"The loss of {source} on {dataset} is {loss}. Are its weights, and the data, finite?")
    if card is not None:
        write_results(card, task_of(model), dataset, results)
    name = "plain" if not is_fusible_model(model) else "fused" if fused or model.config.fused else "training"
    return {"source": source, "form": name, "dataset": dataset, **results}


__all__ = ["evaluate"]
