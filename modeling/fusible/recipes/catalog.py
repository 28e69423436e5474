"""Catalog of the recipes that come with fusible, from `hub_configs`. Nothing here needs torch or transformers."""

import json
from pathlib import Path
from typing import Any

import yaml

from ..hub.methods import METHODS
from .parsing import RECIPE_NAME, read_recipe


CARD_DATA_NAME = "card.yaml"


def catalog_folder() -> Path:
    """
    Where the recipes are: inside an installed package, or beside `modeling` in the repository.

    Raises:
        FileNotFoundError: if they are in neither place.
    """
    # wheels carry the recipes inside the package; a checkout has them at its root
    package = Path(__file__).parents[1]
    places = [package / "hub_configs", package.parents[1] / "hub_configs"]
    for place in places:
        if place.is_dir():
            return place
    raise FileNotFoundError(f"fusible's recipes are not there; looked for {' and '.join(map(str, places))}.")


def names() -> list[str]:
    """Of all recipes: their folders."""
    return sorted(file.parent.name for file in catalog_folder().glob(f"*/{RECIPE_NAME}"))


def find_recipe(name: str) -> Path:
    """
    The recipe that is meant: a file or folder, or one of `names`.

    Raises:
        FileNotFoundError: if it is neither.
    """
    # the user's own files first, so that a local recipe may have a catalog's name
    for place in (Path(name), catalog_folder() / name):
        if place.is_file() or (place / RECIPE_NAME).is_file():
            return place / RECIPE_NAME if place.is_dir() else place
    raise FileNotFoundError(f"{name} is no recipe, no folder with a {RECIPE_NAME}, and none of: {', '.join(names())}.")


def method_name(model_type: str) -> str:
    """The name of a model type's method; recipes train plain models, too."""
    return METHODS[model_type].name if model_type in METHODS else "none: a plain model"


def describe_recipe(name: str) -> dict[str, Any]:
    """
    Method, size, data and published results of one of `names`.

    Returns:
        `parameters_m` are those of the training form, in millions; `expected` is what the recipe says, and `paper`
        what `card.yaml` quotes, with the source.
    """
    folder = catalog_folder() / name
    model_type = json.loads((folder / "config.json").read_text(encoding="utf-8"))["model_type"]
    recipe = read_recipe(folder / RECIPE_NAME)
    card = yaml.safe_load((folder / CARD_DATA_NAME).read_text(encoding="utf-8"))
    return {
        "name": name,
        "method": method_name(model_type),
        "model_type": model_type,
        "dataset": recipe["dataset"],
        "parameters_m": card["parameters_m"],
        "expected": recipe.get("expected"),
        "paper": card["paper"],
    }


__all__ = ["catalog_folder", "describe_recipe", "find_recipe", "method_name", "names"]
