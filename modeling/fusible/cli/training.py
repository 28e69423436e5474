"""The commands `fusible list`, `train` and `evaluate`."""

import contextlib
import sys
from pathlib import Path
from typing import Annotated

import typer

from .common import DryRun, Json, Revision, Source, clear_errors, recipe_names, show


RecipeName = Annotated[
    str,
    typer.Argument(
        metavar="RECIPE",
        help="A recipe's file or folder, or a name of fusible list.",
        autocompletion=recipe_names,
    ),
]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="KEY=VALUE", help="Changes of the recipe, such as training.learning_rate=1e-4."),
]


def list_recipes(
    method: Annotated[str | None, typer.Option(help="Only those of repavit, ewa, zeroi2v or s4.")] = None,
    json: Json = False,
) -> None:
    """
    The recipes that come with fusible, with the papers' numbers.

    Examples:

        fusible list --method repavit

        fusible list --json
    """
    from ..hub.methods import METHODS
    from ..recipes.catalog import catalog_table, describe_recipe, names

    with clear_errors():
        if method is not None and method not in METHODS:
            raise ValueError(f"There is no method {method!r}; fusible has {', '.join(sorted(METHODS))}.")
        recipes = [describe_recipe(name) for name in names()]
        if method is not None:
            recipes = [recipe for recipe in recipes if recipe["method"] == METHODS[method].name]
        show(recipes, json, catalog_table(recipes))


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

    with clear_errors():
        path = find_recipe(recipe)
        if dry_run:
            from .training_actions import plan

            show(plan(path, overrides or []), json)
        else:
            from ..training.train import run

            with contextlib.redirect_stdout(sys.stderr):  # where Trainer's logs belong
                results = run(path, overrides or [])
            show(results, json)


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
    from .training_actions import evaluate_saved

    with clear_errors():
        with contextlib.redirect_stdout(sys.stderr):
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


__all__ = ["evaluate", "list_recipes", "train"]
